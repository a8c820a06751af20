#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include <scalevec/core/checkpoint/checkpoint.h>
#include <scalevec/core/checkpoint/gguf.h>
#include <scalevec/core/model_spec.h>

namespace scalevec {

/// The three names of one tensor, without ".weight" or ".bias"; {} stands for the layer's number. An HF name
/// that begins with "model." stands for whatever the file has in its place.
struct FamilyRow {
  std::string_view slot, hf, gguf;
};

/// An architecture as data: its names, and the facts that its files leave out. To add one, write a row table
/// and an entry (families.cpp), and give tests/python/conftest.py a tiny model of it.
struct Family {
  enum class Window {
    never,
    always,    // `sliding_window` in every layer
    optional,  // Qwen: if `use_sliding_window`, from layer `max_window_layers` on
    pattern,   // Gemma: all layers but each `window_pattern`-th
  };

  std::string_view name;          // what Checkpoint::family() says
  std::string_view model_type;    // of config.json
  std::string_view architecture;  // of config.json, where there is no model_type
  std::string_view gguf;  // general.architecture; empty: the container does not have it under this name
  std::span<const FamilyRow> rows;
  /// A JSON object: what transformers takes for a field that config.json leaves out.
  std::string_view defaults;

  std::string_view config_in = "";     // the part of config.json that describes the text model, "text_config"
  double hf_offset = 0.0;              // what the model adds to the vectors of an HF file; GGUF holds the sum
  bool qk_norm = false;                // per head, one vector for all heads
  bool sandwich = false;               // output norms of attention and MLP
  bool qkv_bias = false;               // always; else `attention_bias` says, for o too
  bool scaled_embedding = false;       // times sqrt(width)
  bool query_pre_attn_scalar = false;  // config.json may say what q . k is divided by the root of
  std::string_view activation_key = "hidden_act";
  Activation activation = Activation::silu;  // GGUF does not say
  RopeSpec::Pairing gguf_pairing = RopeSpec::Pairing::halves;
  Window window = Window::never;
  std::int64_t window_pattern = 0;
  double local_rope_base = 0.0;  // of layers with a window; 0: as the others
  std::int64_t wide_scale_layers =
      0;  // GGUF: a model of so many layers scales q . k by 1 / sqrt(width / heads)
};

std::span<const Family> families();
/// E_CONFIG with the known ones, or the reason why a mixture of experts is not read.
const Family& family_of_config(const nlohmann::json& config, const std::string& file);
const Family& family_of_gguf(const GgufFile& file);

/// How the tensors of a file are named: a container, and for HF files what "model." and the head's name begin
/// with.
struct Naming {
  Container container = Container::safetensors;
  std::string body = "model.";
  std::string head = "";
};

/// The native name that fills a slot of ModelSpec::tensor_slots(); empty if the family has none.
std::string native_name(const Family& family, const Naming& naming, std::string_view slot);

/// The address of the site that files of another container call `name`; empty if the table of no family, of
/// those whose names these sites have, knows it.
std::string address_elsewhere(std::string_view name, std::span<const Site> sites);

/// What both containers say of a model, each in its way.
struct LayerFacts {
  std::int64_t window = 0;
  RopeSpec rope;
  bool q_bias = false, k_bias = false, v_bias = false, o_bias = false;
  bool gate_bias = false, up_bias = false, down_bias = false;
};
struct ModelFacts {
  std::int64_t vocabulary = 0, width = 0, context = 0, heads = 0, kv_heads = 0, head_dim = 0, inner = 0;
  double eps = 0.0, attention_scale = 0.0, offset = 0.0;
  Activation activation = Activation::silu;
  bool tied_head = false, head_bias = false;
  std::vector<LayerFacts> layers;
};
ModelSpec assemble(const Family& family, const ModelFacts& facts);

/// The tensors that a file has, by name: null if there is none.
using FindTensor = std::function<const TensorInfo*(std::string_view)>;

/// What config.json says. E_CONFIG for a field that is missing, out of range, unknown to us and not neutral,
/// or that contradicts the tensors. Adds to `warnings` what a reader should know.
ModelFacts facts_of_config(const Family& family, const nlohmann::json& config, const std::string& file,
                           const Naming& naming, const FindTensor& find, std::vector<std::string>& warnings);
/// The same of a GGUF file's metadata.
ModelFacts facts_of_gguf(const Family& family, const GgufFile& file, std::vector<std::string>& warnings);

/// The rotary embedding that config.json describes for one kind of layer, "full_attention" or
/// "sliding_attention".
class ConfigReader;
RopeSpec rope_of_config(const Family& family, const ConfigReader& config, std::string_view layer_type,
                        std::int64_t head_dim);

}  // namespace scalevec
