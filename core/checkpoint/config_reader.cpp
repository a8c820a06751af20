#include <scalevec/core/checkpoint/config_reader.h>

#include <cmath>

#include <fmt/format.h>

#include <scalevec/core/checkpoint/json.h>
#include <scalevec/core/error.h>

namespace scalevec {
namespace {

const nlohmann::json absent;

// A value as the file has it, short enough for a message.
std::string shown(const nlohmann::json& value) {
  constexpr std::size_t longest = 60;
  return printable(json_text(value), longest);
}

}  // namespace

ConfigReader::ConfigReader(nlohmann::json values, nlohmann::json defaults, std::string file,
                           std::string where)
    : values_(std::move(values)),
      defaults_(std::move(defaults)),
      file_(std::move(file)),
      where_(std::move(where)) {}

const nlohmann::json& ConfigReader::value(std::string_view key) const {
  const auto find = [&](const nlohmann::json& object) -> const nlohmann::json* {
    if (!object.is_object()) return nullptr;
    const auto found = object.find(key);
    return found == object.end() ? nullptr : &*found;
  };
  if (const nlohmann::json* found = find(values_)) return *found;
  if (const nlohmann::json* found = find(defaults_)) return *found;
  return absent;
}

bool ConfigReader::stands(std::string_view key) const {
  const auto found = values_.find(key);
  return found != values_.end() && !found->is_null();
}

void ConfigReader::refuse(std::string_view key, std::string_view reason, std::string expected) const {
  const nlohmann::json& found = value(key);
  fail(ErrorCode::config, fmt::format("model configuration: {}{}: {}", where_, key, reason),
       {.file = file_,
        .key = where_ + std::string(key),
        .expected = std::move(expected),
        .found = found.is_null() ? "nothing" : shown(found)});
}

std::int64_t ConfigReader::integer(std::string_view key, std::int64_t least, std::int64_t most) const {
  const nlohmann::json& found = value(key);
  const std::string expected = fmt::format("an integer from {} to {}", least, most);
  if (found.is_null()) refuse(key, "the field is missing", expected);
  if (!found.is_number_integer()) refuse(key, "it is no integer", expected);
  const bool fits = found.is_number_unsigned()
                        ? found.get<std::uint64_t>() <= static_cast<std::uint64_t>(most)
                        : found.get<std::int64_t>() <= most;
  if (!fits || found.get<std::int64_t>() < least) refuse(key, "it is out of range", expected);
  return found.get<std::int64_t>();
}

double ConfigReader::number(std::string_view key, double least, double most) const {
  const nlohmann::json& found = value(key);
  const std::string expected = fmt::format("a number from {} to {}", least, most);
  if (found.is_null()) refuse(key, "the field is missing", expected);
  if (!found.is_number()) refuse(key, "it is no number", expected);
  const double number = found.get<double>();
  if (!std::isfinite(number) || number < least || number > most) refuse(key, "it is out of range", expected);
  return number;
}

bool ConfigReader::boolean(std::string_view key) const {
  const nlohmann::json& found = value(key);
  if (found.is_null()) return false;
  if (!found.is_boolean()) refuse(key, "it is neither true nor false", "true or false");
  return found.get<bool>();
}

std::string ConfigReader::text(std::string_view key) const {
  const nlohmann::json& found = value(key);
  if (found.is_null()) refuse(key, "the field is missing", "a string");
  if (!found.is_string()) refuse(key, "it is no string", "a string");
  return found.get<std::string>();
}

std::optional<std::int64_t> ConfigReader::optional_integer(std::string_view key, std::int64_t least,
                                                           std::int64_t most) const {
  if (!has(key)) return std::nullopt;
  return integer(key, least, most);
}

std::optional<double> ConfigReader::optional_number(std::string_view key, double least, double most) const {
  if (!has(key)) return std::nullopt;
  return number(key, least, most);
}

ConfigReader ConfigReader::object(std::string_view key) const {
  if (!value(key).is_object()) refuse(key, "it is no object", "a JSON object");
  return {value(key), nlohmann::json::object(), file_, fmt::format("{}{}.", where_, key)};
}

}  // namespace scalevec
