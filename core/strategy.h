// core/strategy.h: models to train, as the paper varies them (arXiv 2605.26895, sections 2-4): values of
// ModelSpec, nothing else.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <scalevec/core/model_spec.h>

namespace scalevec {

/// The size of a model with rotary attention, SwiGLU and norms before attention, MLP and head. With experts
/// the MLP is a mixture and its own part the shared expert.
struct ModelShape {
  std::int64_t vocabulary = 50304;
  std::int64_t width = 768;
  std::int64_t layers = 6;
  std::int64_t head_dim = 64;
  std::int64_t kv_heads = 0;  // 0: as many as heads, width / head_dim
  std::int64_t inner = 0;     // of the MLP; 0: int(8 width / 3)
  std::int64_t context = 512;
  double eps = 1e-5;
  double rope_base = 10000.0;
  bool tied_head = false;
  std::int64_t experts = 0;       // routed ones; 0: none, a dense model
  std::int64_t active = 0;        // routed experts of a token
  std::int64_t expert_inner = 0;  // of a routed expert; 0: int(2 width / 3)

  std::int64_t heads() const;
};

/// Where scale vectors stand and how they are stored. Branches are q, k, v, o, gate, up, down and head. In a
/// mixture a vector of gate's or up's own is that of shared and routed experts, while the router keeps the
/// shared vector; outputs stand behind the shared expert's maps only: the paper does not say.
struct Strategy {
  enum class Output {
    none,
    scale,  // g * (W x): AP, and DP where the input has a vector too
    norm,   // g * Norm(W x), per head behind q, k and v: DNP
  };
  bool input = true;             // whether norms before linear maps have vectors: not under removal and AP
  std::vector<std::string> own;  // HG: branches with an input vector of their own
  Output output = Output::none;  // what stands behind the maps of `outputs`
  std::vector<std::string> outputs;
  Parametrisation input_form = Parametrisation::plain;  // plain, OR or ER
  Parametrisation output_form = Parametrisation::plain;
  bool qk_norm = false;   // a norm of each head of q and k, with one vector for all heads
  bool sandwich = false;  // a norm behind attention and MLP

  /// "standard", "removal", "unified", "gemma", or what is varied, joined by "+": "hg", then "ap", "dp" or
  /// "dnp", then "or" or "er" (of all vectors but Gemma's), e.g. "hg+dnp+or". A list in brackets says which
  /// branches: "hg[q,k,v]+dp[v]"; left out, q, k, v, gate and up have vectors of their own, and these and the
  /// head have outputs. "unified" is "hg+dnp+or"; "or-input" and "er-input" leave the output vectors plain.
  /// Throws E_VALUE with the words that are known.
  static Strategy parse(std::string_view text);
};

/// E_CONFIG where shape and strategy contradict each other. Weights are drawn by the trainer.
ModelSpec make_spec(const ModelShape& shape, const Strategy& strategy);

/// Entries of all tensors. A head that is tied to the embedding counts once.
std::int64_t parameter_count(const ModelSpec& spec);
/// Those that one token meets: all but the routed experts that it is not sent to.
std::int64_t active_parameter_count(const ModelSpec& spec);

/// The paper's sizes (its table of models), dense and with 32 experts, 4 of them active; its control
/// "0.12B-wide", whose MLP has about as many more parameters as the unified strategy adds; and small ones.
struct Preset {
  std::string_view name;  // "0.12B", "MoE-0.25B"
  ModelShape shape;
};
std::span<const Preset> presets();
/// E_VALUE with the known names.
const Preset& find_preset(std::string_view name);

}  // namespace scalevec
