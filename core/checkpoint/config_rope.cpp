// `rope_parameters` of transformers 5, and `rope_scaling` with `rope_theta` of those before it.

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <scalevec/core/checkpoint/config_reader.h>
#include <scalevec/core/checkpoint/family.h>

namespace scalevec {
namespace {

constexpr double largest = std::numeric_limits<double>::max();
constexpr double smallest = std::numeric_limits<double>::min();
constexpr double usual_base = 10000.0;
constexpr double least_base = 1.000001;  // at 1 nothing turns, and yarn divides by its logarithm
constexpr std::string_view full = "full_attention", sliding = "sliding_attention";

constexpr std::array known_keys = {"rope_type",
                                   "type",
                                   "rope_theta",
                                   "factor",
                                   "low_freq_factor",
                                   "high_freq_factor",
                                   "original_max_position_embeddings",
                                   "attention_factor",
                                   "beta_fast",
                                   "beta_slow",
                                   "mscale",
                                   "mscale_all_dim",
                                   "partial_rotary_factor",
                                   "truncate",
                                   "finetuned"};

void check_keys(const ConfigReader& parameters) {
  for (const auto& [key, value] : parameters.values().items()) {
    if (std::find(known_keys.begin(), known_keys.end(), key) == known_keys.end() && !value.is_null()) {
      parameters.refuse(key, "an unknown field of the rotary embedding", "nothing");
    }
  }
  if (parameters.optional_number("partial_rotary_factor", 0.0, 1.0).value_or(1.0) != 1.0) {
    parameters.refuse("partial_rotary_factor", "heads that are rotated in part are not supported",
                      "1 or nothing");
  }
  if (parameters.has("truncate") && !parameters.boolean("truncate")) {
    parameters.refuse("truncate", "yarn without rounding is not supported", "true or nothing");
  }
}

double mscale(double factor, double scale) {
  return factor <= 1.0 ? 1.0 : 0.1 * scale * std::log(factor) + 1.0;
}

void read_yarn(const ConfigReader& parameters, double context, RopeSpec& rope) {
  // A factor of null is the ratio of the contexts.
  rope.factor = parameters.optional_number("factor", smallest, largest)
                    .value_or(context / static_cast<double>(rope.original_context));
  rope.attention_factor = parameters.optional_number("attention_factor", smallest, largest).value_or(0.0);
  const double scale = parameters.optional_number("mscale", 0.0, largest).value_or(0.0);
  const double scale_all = parameters.optional_number("mscale_all_dim", 0.0, largest).value_or(0.0);
  if (rope.attention_factor == 0.0) {
    rope.attention_factor = scale != 0.0 && scale_all != 0.0
                                ? mscale(rope.factor, scale) / mscale(rope.factor, scale_all)
                                : mscale(rope.factor, 1.0);
  }
  // 0 counts as left out, as in transformers.
  const double fast = parameters.optional_number("beta_fast", 0.0, largest).value_or(0.0);
  const double slow = parameters.optional_number("beta_slow", 0.0, largest).value_or(0.0);
  if (fast != 0.0) rope.beta_fast = fast;
  if (slow != 0.0) rope.beta_slow = slow;
}

// `parameters` describes one kind of layer; theta stands for one that it leaves out.
RopeSpec read(const ConfigReader& config, const ConfigReader& parameters, double theta,
              std::int64_t head_dim) {
  check_keys(parameters);
  RopeSpec rope;
  rope.dimensions = head_dim;
  rope.base = parameters.optional_number("rope_theta", least_base, largest).value_or(theta);
  const std::string_view type_key = parameters.has("rope_type") ? "rope_type" : "type";
  const std::string type = parameters.has(type_key) ? parameters.text(type_key) : "default";
  const double context = config.number("max_position_embeddings", 1, largest);
  const auto read_context = [&] {
    constexpr std::string_view key = "original_max_position_embeddings";
    constexpr std::int64_t most = std::int64_t{1} << 31;
    const auto outside = config.optional_integer(key, 1, most);
    rope.original_context =
        outside ? *outside
                : parameters.optional_integer(key, 1, most).value_or(static_cast<std::int64_t>(context));
  };
  if (type == "default") {
    rope.scaling = RopeSpec::Scaling::none;
  } else if (type == "linear") {
    rope.scaling = RopeSpec::Scaling::linear;
    rope.factor = parameters.number("factor", smallest, largest);
  } else if (type == "llama3") {
    rope.scaling = RopeSpec::Scaling::llama3;
    rope.factor = parameters.number("factor", smallest, largest);
    rope.low_freq_factor = parameters.number("low_freq_factor", smallest, largest);
    rope.high_freq_factor = parameters.number("high_freq_factor", smallest, largest);
    if (rope.low_freq_factor >= rope.high_freq_factor) {
      parameters.refuse("high_freq_factor", "it is not above low_freq_factor",
                        fmt::format("a number above {}", rope.low_freq_factor));
    }
    read_context();
  } else if (type == "yarn") {
    rope.scaling = RopeSpec::Scaling::yarn;
    read_context();
    read_yarn(parameters, context, rope);
  } else {
    parameters.refuse(type_key, "the kind of rotary scaling is not supported",
                      "default, linear, llama3 or yarn");
  }
  return rope;
}

}  // namespace

RopeSpec rope_of_config(const Family& family, const ConfigReader& config, std::string_view layer_type,
                        std::int64_t head_dim) {
  const bool local = layer_type == sliding;
  const std::string_view base_key = local ? "rope_local_base_freq" : "rope_theta";
  const double fallback = local ? family.local_rope_base : usual_base;
  const double theta = config.optional_number(base_key, least_base, largest).value_or(fallback);

  const std::string_view key = config.has("rope_scaling") ? "rope_scaling" : "rope_parameters";
  const ConfigReader empty(nlohmann::json::object(), nlohmann::json::object(), "");
  if (!config.has(key)) return read(config, empty, theta, head_dim);
  const ConfigReader parameters = config.object(key);
  const bool by_type = parameters.has(full) || parameters.has(sliding);
  if (family.local_rope_base == 0.0) {
    if (by_type)
      config.refuse(key, "one rotary embedding is expected for all layers", "one rotary embedding");
    return read(config, parameters, theta, head_dim);
  }
  if (key == "rope_scaling" && !by_type) {  // before transformers 5: of the layers without a window
    return read(config, local ? empty : parameters, theta, head_dim);
  }
  if (!by_type)
    config.refuse(key, "a rotary embedding is expected for each kind of layer", std::string(full));
  if (!parameters.has(layer_type)) return read(config, empty, theta, head_dim);
  return read(config, parameters.object(layer_type), theta, head_dim);
}

}  // namespace scalevec
