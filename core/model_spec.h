#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <scalevec/core/site.h>

namespace scalevec {

/// A norm and its vector. Pretrained families and the strategies of arXiv 2605.26895 are values of the same
/// struct: a removed vector has width 0; q/k-norm has group = width = head dimension; DNP group = head
/// dimension and the full width; AP and DP are Statistics::none.
struct NormSpec {
  Statistics statistics = Statistics::rms;
  double eps = 1e-5;
  std::int64_t group = 0;  // entries that share one rms
  std::int64_t width = 0;  // entries of the vector; 0: none
  Parametrisation parametrisation = Parametrisation::plain;
  double offset = 0.0;
  bool bias = false;
};

/// A linear map y = W x (+ b), W stored (out, in).
struct LinearSpec {
  std::int64_t in = 0;
  std::int64_t out = 0;
  bool bias = false;
  bool own_vector = false;         // HG: this branch has its own vector of the norm before it
  std::optional<NormSpec> output;  // QK-norm, AP, DP, DNP: on the map's output, before RoPE or the activation
};

/// Rotary embedding. Pairs are (i, i + d/2) in HF order and (2i, 2i + 1) in GGUF `llama` order; weights are
/// never permuted in memory.
struct RopeSpec {
  enum class Pairing { halves, interleaved };
  enum class Scaling { none, linear, llama3, yarn };
  double base = 10000.0;
  std::int64_t dimensions = 0;  // rotated entries of a head
  Pairing pairing = Pairing::halves;
  Scaling scaling = Scaling::none;
  double factor = 1.0;
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  // llama3
  double beta_fast = 32.0, beta_slow = 1.0;              // yarn
  double attention_factor = 0.0;                         // yarn; 0: 0.1 ln(factor) + 1
  std::int64_t original_context = 0;                     // llama3, yarn
  std::string factors_tensor;  // canonical slot of per-frequency divisors ("rope_factors"), or empty

  /// (dimensions / 2) angular frequencies in radians per position, before `factors_tensor`.
  std::vector<double> inverse_frequencies() const;
  /// What cos and sin are multiplied by (yarn); else 1.
  double amplitude() const;
};

struct AttentionSpec {
  std::int64_t heads = 0, kv_heads = 0, head_dim = 0;
  double scale = 0.0;       // of q . k; 1 / sqrt(head_dim) unless the family says otherwise
  std::int64_t window = 0;  // a position sees itself and window - 1 before it; 0: all
  RopeSpec rope;
  LinearSpec q, k, v, o;
};

enum class Activation { silu, gelu_tanh };

/// Routed experts: of each token the `active` most probable, by a softmax of the router over all of them.
/// gate, up and down are one expert's; a branch's weights of all experts are one tensor, (experts, out, in).
/// No biases, and no norms on outputs.
struct MixtureSpec {
  std::int64_t experts = 0, active = 0;
  bool renormalise = true;  // the chosen probabilities, to sum 1
  LinearSpec router, gate, up, down;
};

/// down(activation(gate x) * (up x)); with a mixture that is the shared expert, which each token passes, or
/// nothing where gate.out is 0. A branch of shared and routed experts reads one vector.
struct MlpSpec {
  Activation activation = Activation::silu;
  LinearSpec gate, up, down;
  std::optional<MixtureSpec> mixture;

  bool dense_part() const { return !mixture || gate.out > 0; }
};

struct LayerSpec {
  std::optional<NormSpec> attn_input, attn_output, mlp_input, mlp_output;
  AttentionSpec attn;
  MlpSpec mlp;
};

/// One transformer, as data. Slots of its tensors have canonical names (see `tensor_slots`).
struct ModelSpec {
  std::string family;  // "llama", "qwen3", "gemma3"
  std::int64_t vocabulary = 0;
  std::int64_t width = 0;        // d_model
  std::int64_t context = 0;      // positions the model was made for
  double embedding_scale = 1.0;  // Gemma: sqrt(width), rounded to the compute dtype as the family does
  std::vector<LayerSpec> layers;
  std::optional<NormSpec> final_norm;
  bool tied_head = false;
  LinearSpec head;

  /// All norm sites in forward order, canonical addresses, no native names. Sites without a vector have width
  /// 0; a branch vector is a site of its own, "layers.0.attn.input_norm[q]". On a linear map's output:
  /// "layers.0.attn.q_norm" for q and k normalised per head with one vector, else
  /// "layers.0.attn.v.output_norm", and for a bare scale "layers.0.attn.v.output_scale"; on the head's,
  /// "lm_head.output_norm".
  std::vector<Site> sites() const;

  /// Canonical slots of every tensor and its shape, outermost first: "embed.weight",
  /// "layers.0.attn.q.weight", "layers.0.attn.q.bias", "layers.0.attn.input_norm.weight",
  /// "layers.0.attn.q_norm.weight", "final_norm.weight", "head.weight" (absent when tied); of a mixture
  /// "layers.0.mlp.router.weight" and "layers.0.mlp.experts.gate.weight". The slot of a site's vector is its
  /// address + ".weight", of its bias + ".bias"; of a vector with components + ".alpha", (width,), and +
  /// ".beta", (1,).
  std::map<std::string, std::vector<std::int64_t>> tensor_slots() const;
};

}  // namespace scalevec
