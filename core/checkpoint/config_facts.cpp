// What config.json says of a model.

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <scalevec/core/checkpoint/config_reader.h>
#include <scalevec/core/checkpoint/family.h>
#include <scalevec/core/checkpoint/json.h>
#include <scalevec/core/error.h>

namespace scalevec {
namespace {

constexpr std::int64_t most_layers = 10000;
constexpr std::int64_t most_width = std::int64_t{1} << 24;
constexpr std::int64_t most_vocabulary = std::int64_t{1} << 31;
constexpr double largest = std::numeric_limits<double>::max();
constexpr double smallest = std::numeric_limits<double>::min();

// Fields that change what a model computes in ways that ModelSpec does not describe, with the value that
// changes nothing. Other unknown fields are left alone: every tool writes its own.
struct ForeignField {
  std::string_view key;
  double neutral;
};
constexpr std::array foreign_fields{
    ForeignField{"attn_logit_softcapping", 0},
    ForeignField{"final_logit_softcapping", 0},
    ForeignField{"logit_softcapping", 0},
    ForeignField{"logits_soft_cap", 0},
    ForeignField{"partial_rotary_factor", 1},
    ForeignField{"rotary_pct", 1},
    ForeignField{"clip_qkv", 0},
    ForeignField{"use_bidirectional_attention", 0},
    ForeignField{"logit_scale", 1},
    ForeignField{"logits_scaling", 1},
    ForeignField{"residual_multiplier", 1},
    ForeignField{"embedding_multiplier", 1},
    ForeignField{"attention_multiplier", 0},
    ForeignField{"use_qk_norm", 0},
    ForeignField{"qk_layernorm", 0},
    ForeignField{"parallel_attn", 0},
    ForeignField{"alibi", 0},
    ForeignField{"attention_sinks", 0},
    ForeignField{"attn_temperature_tuning", 0},
    ForeignField{"no_rope_layers", 0},
    ForeignField{"no_rope_layer_interval", 0},
    ForeignField{"num_kv_shared_layers", 0},
    ForeignField{"add_cross_attention", 0},
    ForeignField{"is_encoder_decoder", 0},
    ForeignField{"per_layer_config", 0},
    ForeignField{"block_configs", 0},
};

bool is_neutral(const nlohmann::json& value, double neutral) {
  if (value.is_null()) return true;
  if (value.is_boolean()) return (value.get<bool>() ? 1.0 : 0.0) == neutral;
  if (value.is_number()) return value.get<double>() == neutral;
  return value.is_structured() && value.empty();
}

void refuse_foreign(const ConfigReader& config) {
  for (const ForeignField& field : foreign_fields) {
    if (!is_neutral(config.value(field.key), field.neutral)) {
      config.refuse(field.key, "it changes what the model computes in a way that is not supported",
                    fmt::format("{} or nothing", field.neutral));
    }
  }
  if (config.has("quantization_config")) {
    config.refuse("quantization_config",
                  "quantised Hugging Face checkpoints are not read; use the unquantised model or a GGUF file",
                  "nothing");
  }
}

Activation activation(const ConfigReader& config, std::string_view key) {
  const std::string name = config.text(key);
  if (name == "silu" || name == "swish") return Activation::silu;
  if (name == "gelu_pytorch_tanh" || name == "gelu_new") return Activation::gelu_tanh;
  config.refuse(key, "the activation is not supported", "silu or gelu_pytorch_tanh");
}

constexpr std::string_view full = "full_attention", sliding = "sliding_attention";

// Each layer's kind, where the file lists them or the family has a rule.
std::vector<bool> windowed_layers(const Family& family, const ConfigReader& config, std::int64_t layers) {
  const auto count = static_cast<std::size_t>(layers);
  std::vector<bool> windowed(count, family.window == Family::Window::always);
  if (config.has("layer_types")) {
    const nlohmann::json& types = config.value("layer_types");
    if (!types.is_array() || types.size() != count) {
      config.refuse("layer_types", "it does not give one kind for each layer",
                    fmt::format("{} kinds", layers));
    }
    for (std::size_t i = 0; i < count; ++i) {
      if (types[i] != full && types[i] != sliding) {
        config.refuse("layer_types", fmt::format("layer {} is of an unknown kind", i),
                      fmt::format("{} or {}", full, sliding));
      }
      const bool is_sliding = types[i] == sliding;
      if (is_sliding != windowed[i] &&
          (family.window == Family::Window::always || family.window == Family::Window::never)) {
        config.refuse("layer_types", fmt::format("model_type {} has layers of one kind", family.model_type),
                      std::string(windowed[i] ? sliding : full));
      }
      windowed[i] = is_sliding;
    }
    return windowed;
  }
  if (family.window == Family::Window::optional && config.boolean("use_sliding_window")) {
    const std::int64_t first =
        config.integer("max_window_layers", 0, std::numeric_limits<std::int32_t>::max());
    for (std::int64_t i = first; i < layers; ++i) windowed[static_cast<std::size_t>(i)] = true;
  }
  if (family.window == Family::Window::pattern) {
    // transformers 5 writes the pattern with an underscore.
    const std::string_view key =
        config.has("sliding_window_pattern") ? "sliding_window_pattern" : "_sliding_window_pattern";
    const std::int64_t period = config.optional_integer(key, 1, most_layers).value_or(family.window_pattern);
    for (std::int64_t i = 0; i < layers; ++i) windowed[static_cast<std::size_t>(i)] = (i + 1) % period != 0;
  }
  return windowed;
}

std::vector<std::int64_t> windows(const Family& family, const ConfigReader& config, std::int64_t layers,
                                  std::int64_t context) {
  std::vector<std::int64_t> result(static_cast<std::size_t>(layers), 0);
  const auto window = config.optional_integer("sliding_window", 1, std::numeric_limits<std::int32_t>::max());
  if (family.window == Family::Window::never) {
    if (window && *window < context) {
      config.refuse("sliding_window",
                    fmt::format("model_type {} has no sliding window; a Mistral model says so in model_type",
                                family.model_type),
                    "nothing");
    }
    return result;
  }
  // Mistral: no window given is none. Qwen: `use_sliding_window` must agree. Gemma needs one.
  const std::vector<bool> windowed = windowed_layers(family, config, layers);
  const bool any = std::find(windowed.begin(), windowed.end(), true) != windowed.end();
  if (family.window == Family::Window::always && !window) return result;
  if (any &&
      (!window || (family.window == Family::Window::optional && !config.boolean("use_sliding_window")))) {
    config.refuse(window ? "use_sliding_window" : "sliding_window",
                  "some layers have a window, but it is switched off",
                  window ? "true" : "a number of positions");
  }
  for (std::size_t i = 0; i < result.size(); ++i) result[i] = windowed[i] ? *window : 0;
  return result;
}

// Whether the head is the embedding: what config.json says, held against what the file has.
bool tied_head(const Family& family, const ConfigReader& outer, const ConfigReader& config,
               const Naming& naming, const FindTensor& find, std::vector<std::string>& warnings) {
  constexpr std::string_view key = "tie_word_embeddings";
  const bool stored = find(native_name(family, naming, "head.weight")) != nullptr;
  const ConfigReader& speaks = outer.stands(key) ? outer : config;
  const bool tied = speaks.boolean(key);
  if (stored && tied) {
    warnings.push_back(
        "config.json ties head and embedding, but the file has both: they are taken as two tensors");
  }
  if (!stored && !tied && speaks.stands(key)) {
    speaks.refuse(key,
                  fmt::format("the head is said to be a tensor of its own, but {} is missing",
                              native_name(family, naming, "head.weight")),
                  "true");
  }
  if (!stored && !tied) {
    warnings.push_back(
        "config.json does not say whether the head is tied, and the file has none: it is taken as tied");
  }
  return !stored;
}

}  // namespace

ModelFacts facts_of_config(const Family& family, const nlohmann::json& values, const std::string& file,
                           const Naming& naming, const FindTensor& find, std::vector<std::string>& warnings) {
  const nlohmann::json defaults = parse_json(family.defaults, family.model_type);
  const ConfigReader outer(values, nlohmann::json::object(), file);
  const ConfigReader config = family.config_in.empty()
                                  ? ConfigReader(values, defaults, file)
                                  : ConfigReader(outer.object(family.config_in).values(), defaults, file,
                                                 std::string(family.config_in) + ".");
  refuse_foreign(config);
  if (!family.config_in.empty()) refuse_foreign(outer);

  ModelFacts facts;
  facts.offset = family.hf_offset;
  facts.width = config.integer("hidden_size", 1, most_width);
  facts.inner = config.integer("intermediate_size", 1, most_width);
  const std::int64_t layers = config.integer("num_hidden_layers", 1, most_layers);
  facts.vocabulary = config.integer("vocab_size", 1, most_vocabulary);
  facts.context = config.integer("max_position_embeddings", 1, most_vocabulary);
  facts.heads = config.integer("num_attention_heads", 1, most_width);
  facts.kv_heads = config.optional_integer("num_key_value_heads", 1, most_width).value_or(facts.heads);
  if (facts.heads % facts.kv_heads != 0) {
    config.refuse("num_key_value_heads", fmt::format("it does not divide the {} heads", facts.heads),
                  "a divisor of num_attention_heads");
  }
  const auto head_dim = config.optional_integer("head_dim", 2, most_width);
  if (!head_dim && facts.width % facts.heads != 0) {
    config.refuse("num_attention_heads", fmt::format("it does not divide hidden_size {}", facts.width),
                  "a divisor of hidden_size");
  }
  facts.head_dim = head_dim.value_or(facts.width / facts.heads);
  if (facts.head_dim % 2 != 0) {
    config.refuse(head_dim ? "head_dim" : "num_attention_heads",
                  fmt::format("a head of {} entries cannot be rotated in pairs", facts.head_dim),
                  "an even head_dim");
  }
  facts.eps = config.number("rms_norm_eps", 0.0, 1.0);
  facts.activation = activation(config, family.activation_key);
  facts.attention_scale = 1.0 / std::sqrt(config.optional_number("query_pre_attn_scalar", smallest, largest)
                                              .value_or(static_cast<double>(facts.head_dim)));
  if (config.stands("query_pre_attn_scalar") && !family.query_pre_attn_scalar) {
    config.refuse("query_pre_attn_scalar", fmt::format("model_type {} does not have it", family.model_type),
                  "nothing");
  }
  facts.tied_head = tied_head(family, outer, config, naming, find, warnings);

  LayerFacts layer;
  const bool attention_bias = config.boolean("attention_bias");
  layer.q_bias = layer.k_bias = layer.v_bias = attention_bias || family.qkv_bias;
  layer.o_bias = attention_bias;
  layer.gate_bias = layer.up_bias = layer.down_bias = config.boolean("mlp_bias");
  const RopeSpec everywhere = rope_of_config(family, config, full, facts.head_dim);
  const RopeSpec local =
      family.local_rope_base > 0.0 ? rope_of_config(family, config, sliding, facts.head_dim) : everywhere;
  for (const std::int64_t window : windows(family, config, layers, facts.context)) {
    layer.window = window;
    layer.rope = window > 0 ? local : everywhere;
    facts.layers.push_back(layer);
  }
  return facts;
}

}  // namespace scalevec
