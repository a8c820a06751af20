#include <scalevec/core/checkpoint/json_fields.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <scalevec/core/checkpoint/json.h>

namespace scalevec {

using nlohmann::json;

JsonFields::JsonFields(const json& object, const OwnJsonFile& file, std::string where, std::int64_t entry)
    : object_(object), file_(file), where_(std::move(where)), entry_(entry) {
  if (!object.is_object()) refuse("", "an object", object.type_name());
}

std::string JsonFields::place(std::string_view key) const {
  return key.empty() || where_.empty() ? where_ + std::string(key) : fmt::format("{}.{}", where_, key);
}

void JsonFields::refuse(std::string_view key, const std::string& expected, const std::string& found) const {
  const std::string name = place(key);
  fail(
      file_.code,
      fmt::format("{} is damaged: {} should be {}, but is {}. {}", file_.name,
                  name.empty() ? "the whole" : printable(name, 80), expected, printable(found), file_.remedy),
      {.file = file_.path,
       .key = name,
       .index = entry_ < 0 ? std::nullopt : std::optional(entry_),
       .expected = expected,
       .found = found});
}

bool JsonFields::has(std::string_view key) const { return object_.contains(key); }

const json& JsonFields::get(std::string_view key) const {
  const auto found = object_.find(key);
  if (found == object_.end()) refuse(key, "there", "missing");
  return *found;
}

std::string JsonFields::text(std::string_view key) const {
  const json& value = get(key);
  if (!value.is_string()) refuse(key, "text", value.type_name());
  return value.get<std::string>();
}

std::int64_t JsonFields::integer(std::string_view key, std::int64_t least, std::int64_t most) const {
  const json& value = get(key);
  const bool large =
      value.is_number_unsigned() && value.get<std::uint64_t>() > std::numeric_limits<std::int64_t>::max();
  const bool fits = value.is_number_integer() && !large;
  const std::int64_t number = fits ? value.get<std::int64_t>() : 0;
  if (!fits || number < least || number > most) {
    refuse(key, fmt::format("an integer in {}..{}", least, most), json_text(value));
  }
  return number;
}

std::string JsonFields::digest(std::string_view key) const {
  std::string value = text(key);
  const auto hex = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  if (value.size() != 71 || !value.starts_with("sha256:") ||
      !std::all_of(value.begin() + 7, value.end(), hex)) {
    refuse(key, "\"sha256:\" and 64 lower-case hex digits", value);
  }
  return value;
}

JsonFields JsonFields::fields(std::string_view key) const { return {get(key), file_, place(key), entry_}; }

const JsonFields& JsonFields::only(std::initializer_list<std::string_view> known) const {
  for (const auto& [key, unused] : object_.items()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) refuse(key, "absent", "an unknown field");
  }
  return *this;
}

const JsonFields& JsonFields::exactly(std::initializer_list<std::string_view> known) const {
  for (const std::string_view key : known) get(key);
  return only(known);
}

}  // namespace scalevec
