// What the metadata of a GGUF file says of a model; the keys are those of llama.cpp.

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include <fmt/format.h>

#include <scalevec/core/checkpoint/family.h>
#include <scalevec/core/error.h>

namespace scalevec {
namespace {

constexpr std::int64_t most_width = std::int64_t{1} << 24;
constexpr std::int64_t most_context = std::int64_t{1} << 31;
constexpr double largest = std::numeric_limits<double>::max();
constexpr double smallest = std::numeric_limits<double>::min();
constexpr double least_base = 1.000001;

// Keys below the architecture's name that are read here, or that change nothing in the models known.
constexpr std::array known_keys = {"vocab_size",
                                   "context_length",
                                   "embedding_length",
                                   "block_count",
                                   "feed_forward_length",
                                   "attention.head_count",
                                   "attention.head_count_kv",
                                   "attention.key_length",
                                   "attention.value_length",
                                   "attention.layer_norm_rms_epsilon",
                                   "attention.scale",
                                   "attention.sliding_window",
                                   "attention.sliding_window_pattern",
                                   "rope.dimension_count",
                                   "rope.dimension_count_swa",
                                   "attention.key_length_swa",
                                   "attention.value_length_swa",
                                   "rope.freq_base",
                                   "rope.freq_base_swa",
                                   "rope.scaling.type",
                                   "rope.scaling.factor",
                                   "rope.scaling.attn_factor",
                                   "rope.scaling.original_context_length",
                                   "rope.scaling.finetuned",
                                   "rope.scaling.yarn_beta_fast",
                                   "rope.scaling.yarn_beta_slow",
                                   "rope.scale_linear",
                                   "tensor_data_layout"};

// Keys that change what a model computes in ways that ModelSpec does not describe, with the value that does
// not.
struct ForeignKey {
  std::string_view key;
  double neutral;
};
constexpr std::array foreign_keys{
    ForeignKey{"attn_logit_softcapping", 0},
    ForeignKey{"final_logit_softcapping", 0},
    ForeignKey{"logit_scale", 1},
    ForeignKey{"residual_scale", 1},
    ForeignKey{"embedding_scale", 1},
    ForeignKey{"use_parallel_residual", 0},
    ForeignKey{"attention.clamp_kqv", 0},
    ForeignKey{"attention.max_alibi_bias", 0},
    ForeignKey{"attention.causal", 1},
    ForeignKey{"attention.output_scale", 1},
    ForeignKey{"attention.temperature_scale", 0},
    ForeignKey{"attention.temperature_length", 0},
    ForeignKey{"attention.shared_kv_layers", 0},
    ForeignKey{"pooling_type", 0},
    ForeignKey{"rope.scaling.alpha", 0},
    ForeignKey{"rope.scaling.yarn_log_multiplier", 0},
    ForeignKey{"rope.scaling.yarn_ext_factor", 1},
    ForeignKey{"rope.scaling.yarn_attn_factor", 1},
    ForeignKey{"expert_count", 0},
    ForeignKey{"nextn_predict_layers", 0},
};

class Reader {
 public:
  explicit Reader(const GgufFile& file) : file_(file), metadata_(file.metadata()) {}

  bool has(std::string_view key) const { return metadata_.has(name(key)); }
  std::string name(std::string_view key) const { return file_.model_key(key); }

  std::int64_t integer(std::string_view key, std::int64_t least, std::int64_t most) const {
    const std::int64_t value = metadata_.integer(name(key));
    if (value < least || value > most)
      refuse(key, std::to_string(value), fmt::format("{} to {}", least, most));
    return value;
  }
  std::int64_t integer(std::string_view key, std::int64_t least, std::int64_t most,
                       std::int64_t fallback) const {
    return has(key) ? integer(key, least, most) : fallback;
  }
  double number(std::string_view key, double least, double most) const {
    const double value = metadata_.number(name(key));
    if (!std::isfinite(value) || value < least || value > most) {
      refuse(key, fmt::format("{}", value), fmt::format("{} to {}", least, most));
    }
    return value;
  }
  double number(std::string_view key, double least, double most, double fallback) const {
    return has(key) ? number(key, least, most) : fallback;
  }
  // A number or a truth value, as a number.
  double any_number(std::string_view key) const {
    if (metadata_.type(name(key)) == GgufType::boolean) return metadata_.boolean(name(key)) ? 1.0 : 0.0;
    return metadata_.number(name(key));
  }
  std::string_view text(std::string_view key, std::string_view fallback) const {
    return metadata_.text(name(key), fallback);
  }

  [[noreturn]] void refuse(std::string_view key, std::string found, std::string expected,
                           std::string_view reason = "it is out of range") const {
    ErrorFields fields{.file = file_.path().string(),
                       .key = name(key),
                       .expected = std::move(expected),
                       .found = std::move(found)};
    if (has(key)) fields.offset = metadata_.offset(name(key));
    fail(ErrorCode::config, fmt::format("model configuration: {}: {}", name(key), reason), std::move(fields));
  }

  const GgufFile& file() const { return file_; }
  const GgufMetadata& metadata() const { return metadata_; }

 private:
  const GgufFile& file_;
  const GgufMetadata& metadata_;
};

void check_keys(const Reader& reader, std::vector<std::string>& warnings) {
  for (const ForeignKey& foreign : foreign_keys) {
    if (!reader.has(foreign.key)) continue;
    const double value = reader.any_number(foreign.key);
    if (value == foreign.neutral) continue;
    const bool experts = foreign.key == "expert_count";
    if (experts && value == 1.0) continue;
    reader.refuse(foreign.key, fmt::format("{}", value), fmt::format("{} or nothing", foreign.neutral),
                  experts ? "it is a mixture of experts, which is not read yet; only dense models are"
                          : "it changes what the model computes in a way that is not supported");
  }
  const std::string prefix = reader.name("");
  for (std::string_view key : reader.metadata().keys()) {
    if (!key.starts_with(prefix)) continue;
    key.remove_prefix(prefix.size());
    const auto is_key = [&](const ForeignKey& foreign) { return foreign.key == key; };
    if (std::find(known_keys.begin(), known_keys.end(), key) == known_keys.end() &&
        std::find_if(foreign_keys.begin(), foreign_keys.end(), is_key) == foreign_keys.end()) {
      warnings.push_back(
          fmt::format("the metadata key '{}{}' is not known and not honoured", prefix, printable(key)));
    }
  }
}

RopeSpec read_rope(const Family& family, const Reader& reader, const ModelFacts& facts) {
  RopeSpec rope;
  rope.pairing = family.gguf_pairing;
  rope.base = reader.number("rope.freq_base", least_base, largest, 10000.0);
  rope.dimensions = reader.integer("rope.dimension_count", 2, facts.head_dim, facts.head_dim);
  if (rope.dimensions % 2 != 0) {
    reader.refuse("rope.dimension_count", std::to_string(rope.dimensions), "an even number");
  }
  // llama.cpp takes a factor without a type as linear, and once wrote it as rope.scale_linear; 0 is none.
  double factor = reader.number("rope.scaling.factor", 0.0, largest,
                                reader.number("rope.scale_linear", 0.0, largest, 0.0));
  if (factor == 0.0) factor = 1.0;
  const std::string_view type = reader.text("rope.scaling.type", "linear");
  if (type == "linear") {
    if (factor != 1.0) rope.scaling = RopeSpec::Scaling::linear;
    rope.factor = factor;
  } else if (type == "yarn") {
    rope.scaling = RopeSpec::Scaling::yarn;
    rope.factor = factor;
    rope.original_context =
        reader.integer("rope.scaling.original_context_length", 1, most_context, facts.context);
    rope.beta_fast = reader.number("rope.scaling.yarn_beta_fast", smallest, largest, rope.beta_fast);
    rope.beta_slow = reader.number("rope.scaling.yarn_beta_slow", smallest, largest, rope.beta_slow);
    const double usual = factor <= 1.0 ? 1.0 : 0.1 * std::log(factor) + 1.0;
    rope.attention_factor = usual * reader.number("rope.scaling.attn_factor", smallest, largest, 1.0);
  } else if (type != "none") {
    reader.refuse("rope.scaling.type", printable(type, 40), "none, linear or yarn",
                  "the kind of rotary scaling is not supported");
  }
  constexpr std::string_view slot = "rope_factors";
  const TensorInfo* factors = reader.file().find(native_name(family, {.container = Container::gguf}, slot));
  if (factors != nullptr) {
    rope.factors_tensor = slot;
    if (!is_scale_dtype(factors->dtype)) {
      fail(ErrorCode::dtype, "model configuration: the rotary factors are no floating numbers",
           {.file = reader.file().path().string(), .tensor = factors->name, .found = factors->dtype_text});
    }
  }
  return rope;
}

// Which layers have a window.
std::vector<bool> windowed_layers(const Family& family, const Reader& reader, std::int64_t layers) {
  constexpr std::string_view key = "attention.sliding_window_pattern";
  const auto count = static_cast<std::size_t>(layers);
  std::vector<bool> windowed(count, family.window != Family::Window::pattern);
  if (reader.has(key) && reader.metadata().type(reader.name(key)) == GgufType::array) {
    windowed = reader.metadata().booleans(reader.name(key));
    if (windowed.size() != count) {
      reader.refuse(key, fmt::format("{} entries", windowed.size()), fmt::format("{} entries", layers),
                    "it does not give one value for each layer");
    }
    return windowed;
  }
  if (family.window == Family::Window::pattern || reader.has(key)) {
    const std::int64_t period = reader.integer(key, 1, layers + 1, family.window_pattern);
    for (std::int64_t i = 0; i < layers; ++i) windowed[static_cast<std::size_t>(i)] = (i + 1) % period != 0;
  }
  return windowed;
}

}  // namespace

ModelFacts facts_of_gguf(const Family& family, const GgufFile& file, std::vector<std::string>& warnings) {
  const Reader reader(file);
  const std::int64_t layers = file.block_count();
  check_keys(reader, warnings);

  ModelFacts facts;  // offset 0: converting to GGUF adds the 1
  facts.width = reader.integer("embedding_length", 1, most_width);
  facts.inner = reader.integer("feed_forward_length", 1, most_width);
  facts.context = reader.integer("context_length", 1, most_context);
  facts.heads = reader.integer("attention.head_count", 1, most_width);
  facts.kv_heads = reader.integer("attention.head_count_kv", 1, most_width, facts.heads);
  if (facts.heads % facts.kv_heads != 0) {
    reader.refuse("attention.head_count_kv", std::to_string(facts.kv_heads), "a divisor of the heads",
                  fmt::format("it does not divide the {} heads", facts.heads));
  }
  if (!reader.has("attention.key_length") && facts.width % facts.heads != 0) {
    reader.refuse("attention.head_count", std::to_string(facts.heads), "a divisor of embedding_length",
                  fmt::format("it does not divide the width {}", facts.width));
  }
  facts.head_dim = reader.integer("attention.key_length", 2, most_width, facts.width / facts.heads);
  if (facts.head_dim % 2 != 0) {
    const std::string_view key =
        reader.has("attention.key_length") ? "attention.key_length" : "attention.head_count";
    reader.refuse(key, fmt::format("heads of {} entries", facts.head_dim), "an even number",
                  "such a head cannot be rotated in pairs");
  }
  for (const std::string_view key :
       {"attention.value_length", "attention.key_length_swa", "attention.value_length_swa"}) {
    if (reader.integer(key, 1, most_width, facts.head_dim) != facts.head_dim) {
      reader.refuse(key, std::to_string(reader.integer(key, 1, most_width)), std::to_string(facts.head_dim),
                    "keys and values of different lengths are not supported");
    }
  }
  facts.eps = reader.number("attention.layer_norm_rms_epsilon", 0.0, 1.0);
  facts.activation = family.activation;
  const double per_head =
      static_cast<double>(layers == family.wide_scale_layers ? facts.width / facts.heads : facts.head_dim);
  facts.attention_scale = reader.number("attention.scale", 0.0, largest, 0.0);
  if (facts.attention_scale == 0.0) facts.attention_scale = 1.0 / std::sqrt(per_head);
  facts.tied_head = file.find("output.weight") == nullptr;
  facts.head_bias = file.find("output.bias") != nullptr;

  // The embedding says how many tokens there are; the key, where it stands, must agree.
  const TensorInfo* embedding = file.find("token_embd.weight");
  if (embedding != nullptr && embedding->shape.size() == 2 &&
      embedding->shape[0] <= static_cast<std::uint64_t>(most_context)) {
    facts.vocabulary = static_cast<std::int64_t>(embedding->shape[0]);
  }
  facts.vocabulary =
      reader.integer("vocab_size", 1, most_context, std::max<std::int64_t>(facts.vocabulary, 1));

  const RopeSpec everywhere = read_rope(family, reader, facts);
  if (reader.integer("rope.dimension_count_swa", 2, most_width, everywhere.dimensions) !=
      everywhere.dimensions) {
    reader.refuse("rope.dimension_count_swa", "another number", std::to_string(everywhere.dimensions),
                  "layers that are rotated in different parts are not supported");
  }
  RopeSpec local = everywhere;
  if (family.local_rope_base > 0.0) {
    local = RopeSpec{};
    local.dimensions = everywhere.dimensions;
    local.pairing = everywhere.pairing;
    local.base = reader.number("rope.freq_base_swa", least_base, largest, family.local_rope_base);
  } else if (reader.has("rope.freq_base_swa")) {
    local.base = reader.number("rope.freq_base_swa", least_base, largest);
  }
  // Files without a window in their metadata mean every position, whatever the model was trained with.
  const std::int64_t window = reader.integer("attention.sliding_window", 0, most_context, 0);
  if (window == 0 && family.window == Family::Window::pattern) {
    reader.refuse("attention.sliding_window", "nothing", "a number of positions",
                  "the family needs a window");
  }
  const std::vector<bool> windowed = windowed_layers(family, reader, layers);
  for (std::int64_t i = 0; i < layers; ++i) {
    const auto bias = [&](std::string_view map) {
      return file.find(fmt::format("blk.{}.{}.bias", i, map)) != nullptr;
    };
    LayerFacts layer;
    const bool has_window = window > 0 && windowed[static_cast<std::size_t>(i)];
    layer.window = has_window ? window : 0;
    layer.rope = has_window ? local : everywhere;
    layer.q_bias = family.qkv_bias || bias("attn_q");
    layer.k_bias = family.qkv_bias || bias("attn_k");
    layer.v_bias = family.qkv_bias || bias("attn_v");
    layer.o_bias = bias("attn_output");
    layer.gate_bias = bias("ffn_gate");
    layer.up_bias = bias("ffn_up");
    layer.down_bias = bias("ffn_down");
    facts.layers.push_back(std::move(layer));
  }
  return facts;
}

}  // namespace scalevec
