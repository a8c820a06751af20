#include <scalevec/core/checkpoint/json.h>

#include <charconv>
#include <limits>

#include <nlohmann/json.hpp>

namespace scalevec {
namespace {

nlohmann::json number_value(std::string_view text) {
  const char* const last = text.data() + text.size();
  if (text.find_first_of(".eE") == std::string_view::npos && text != "-0") {
    std::int64_t integer = 0;
    if (std::from_chars(text.data(), last, integer).ec == std::errc()) return integer;
    std::uint64_t natural = 0;
    if (text[0] != '-' && std::from_chars(text.data(), last, natural).ec == std::errc()) return natural;
  }
  double value = 0;
  if (std::from_chars(text.data(), last, value).ec == std::errc()) return value;
  // Out of range, upwards or downwards: nlohmann discards the one and rounds the other to (sub)normals or
  // zero.
  const auto parsed = nlohmann::json::parse(text, nullptr, false);
  if (!parsed.is_discarded()) return parsed.get<double>();
  return text[0] == '-' ? -std::numeric_limits<double>::infinity() : std::numeric_limits<double>::infinity();
}

nlohmann::json token_value(const JsonReader& reader) {
  switch (reader.token()) {
    case JsonToken::begin_object:
      return nlohmann::json::object();
    case JsonToken::begin_array:
      return nlohmann::json::array();
    case JsonToken::string:
      return std::string(reader.text());
    case JsonToken::number:
      return number_value(reader.text());
    case JsonToken::boolean:
      return reader.text() == "true";
    default:
      return nullptr;
  }
}

}  // namespace

std::string json_text(const nlohmann::json& value) {
  return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

nlohmann::json parse_json(std::string_view text, std::string_view source, JsonLimits limits) {
  if (const auto twice = check_json(text, source, limits).duplicate) refuse_duplicate_key(*twice, source);
  nlohmann::json root;
  std::vector<nlohmann::json*> open;
  std::string key;
  JsonReader reader(text, source, limits);
  for (JsonToken token = reader.next(); token != JsonToken::end; token = reader.next()) {
    if (token == JsonToken::key) {
      key = reader.text();
    } else if (token == JsonToken::end_object || token == JsonToken::end_array) {
      open.pop_back();
    } else {
      // Only the innermost container grows, so the pointers to the outer ones stay good.
      nlohmann::json* place = &root;
      if (!open.empty())
        place = open.back()->is_object() ? &(*open.back())[key] : &open.back()->emplace_back();
      *place = token_value(reader);
      if (token == JsonToken::begin_object || token == JsonToken::begin_array) open.push_back(place);
    }
  }
  return root;
}

}  // namespace scalevec
