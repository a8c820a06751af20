#include <scalevec/core/checkpoint/gguf_json.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <scalevec/core/checkpoint/json.h>
#include <scalevec/core/error.h>

namespace scalevec {
namespace {

constexpr std::uint64_t longest_array = 64;

template <class Values>
nlohmann::json as_array(const Values& values) {
  nlohmann::json array = nlohmann::json::array();
  array.get_ref<nlohmann::json::array_t&>().reserve(values.size());
  for (const auto& value : values) array.push_back(value);
  return array;
}

nlohmann::json array_value(const GgufMetadata& metadata, std::string_view key) {
  switch (metadata.element_type(key)) {
    case GgufType::string:
      return as_array(metadata.strings(key));
    case GgufType::boolean: {
      nlohmann::json array = nlohmann::json::array();
      for (const bool value : metadata.booleans(key)) array.push_back(value);
      return array;
    }
    case GgufType::f32:
    case GgufType::f64:
      return as_array(metadata.numbers(key));
    default:
      return as_array(metadata.integers(key));
  }
}

nlohmann::json value_of(const GgufMetadata& metadata, std::string_view key) {
  switch (metadata.type(key)) {
    case GgufType::array:
      return array_value(metadata, key);
    case GgufType::string:
      return metadata.bytes(key);
    case GgufType::boolean:
      return metadata.boolean(key);
    case GgufType::f32:
    case GgufType::f64:
      return metadata.number(key);
    case GgufType::u64: {
      constexpr double exact = 9007199254740992.0;  // 2^53; beyond int64 there is no integer to ask for
      const double number = metadata.number(key);
      if (number > exact) return number;
      return metadata.integer(key);
    }
    default:
      return metadata.integer(key);
  }
}

}  // namespace

std::string tokenizer_json(const GgufMetadata& metadata) {
  std::string text;
  for (const std::string_view key : metadata.keys()) {
    if (!key.starts_with("tokenizer.")) continue;
    try {
      text +=
          fmt::format("{}{}:{}", text.empty() ? "" : ",", json_quoted(key), value_of(metadata, key).dump());
    } catch (const nlohmann::json::type_error&) {
      fail(ErrorCode::utf8,
           fmt::format("reading GGUF metadata: '{}' holds text that is not UTF-8", printable(key)),
           {.key = printable(key), .expected = "UTF-8"});
    }
  }
  return "{" + text + "}";
}

std::string metadata_json(const GgufMetadata& metadata) {
  nlohmann::json values = nlohmann::json::object();
  for (const std::string_view key : metadata.keys()) {
    if (metadata.type(key) == GgufType::array && metadata.count(key) > longest_array) {
      values[std::string(key)] = {{"array_of", gguf_type_name(metadata.element_type(key))},
                                  {"count", metadata.count(key)}};
    } else {
      values[std::string(key)] = value_of(metadata, key);
    }
  }
  return values.dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace scalevec
