#include <scalevec/edits/edit_fields.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <scalevec/core/error.h>
#include <scalevec/core/selector.h>
#include <scalevec/edits/base64.h>

namespace scalevec {

using nlohmann::json;

std::string channels_field(std::span<const std::int64_t> channels, std::int64_t width) {
  std::string text = channels_text(channels);
  const std::size_t bytes = static_cast<std::size_t>(width + 7) / 8;
  if (text.size() <= 5 + (bytes + 2) / 3 * 4) return text;
  std::vector<std::byte> bits(bytes);
  for (const std::int64_t channel : channels)
    bits[static_cast<std::size_t>(channel / 8)] |= std::byte{1} << channel % 8;
  return "bits:" + base64_encode(bits);
}

EditFields::EditFields(const json& object, std::string_view file, std::string where, std::int64_t entry)
    : object_(object), file_(file), where_(std::move(where)), entry_(entry) {
  if (!object.is_object()) refuse("", "an object", object.type_name());
}

void EditFields::refuse(std::string_view key, const std::string& expected, const std::string& found) const {
  std::string name = where_;
  if (!key.empty()) name += (name.empty() ? "" : ".") + std::string(key);
  fail(ErrorCode::bundle,
       fmt::format("the edit file is damaged: {} should be {}, but is {}. Take an unchanged copy of it.",
                   name.empty() ? "the whole" : printable(name, 80), expected, printable(found)),
       {.file = std::string(file_),
        .key = name,
        .index = entry_ < 0 ? std::nullopt : std::optional(entry_),
        .expected = expected,
        .found = found});
}

bool EditFields::has(const char* key) const { return object_.contains(key); }

const json& EditFields::get(const char* key) const {
  const auto found = object_.find(key);
  if (found == object_.end()) refuse(key, "there", "missing");
  return *found;
}

std::string EditFields::text(const char* key) const {
  const json& value = get(key);
  if (!value.is_string()) refuse(key, "text", value.type_name());
  return value.get<std::string>();
}

std::int64_t EditFields::integer(const char* key, std::int64_t least, std::int64_t most) const {
  const json& value = get(key);
  const bool large =
      value.is_number_unsigned() && value.get<std::uint64_t>() > std::numeric_limits<std::int64_t>::max();
  const bool fits = value.is_number_integer() && !large;
  const std::int64_t number = fits ? value.get<std::int64_t>() : 0;
  if (!fits || number < least || number > most) {
    refuse(key, fmt::format("an integer in {}..{}", least, most), printable(value.dump()));
  }
  return number;
}

std::string EditFields::digest(const char* key) const {
  std::string value = text(key);
  const auto hex = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  if (value.size() != 71 || !value.starts_with("sha256:") ||
      !std::all_of(value.begin() + 7, value.end(), hex)) {
    refuse(key, "\"sha256:\" and 64 lower-case hex digits", value);
  }
  return value;
}

double EditFields::number(std::string_view key, const json& value) const {
  if (value == "nan") return std::numeric_limits<double>::quiet_NaN();
  if (value == "inf") return std::numeric_limits<double>::infinity();
  if (value == "-inf") return -std::numeric_limits<double>::infinity();
  if (!value.is_number())
    refuse(key, "a number", value.is_string() ? value.get<std::string>() : value.type_name());
  return value.get<double>();
}

std::vector<std::byte> EditFields::bytes(std::string_view key, const json& value) const {
  if (!value.is_string()) refuse(key, "base64", value.type_name());
  const std::string& text = value.get_ref<const std::string&>();
  auto decoded = base64_decode(text);
  if (!decoded) refuse(key, "base64", fmt::format("{} characters that are not", text.size()));
  return *std::move(decoded);
}

std::vector<std::int64_t> EditFields::channels(std::string_view key, const std::string& text,
                                               std::int64_t width) const {
  std::vector<std::int64_t> out;
  if (!text.starts_with("bits:")) {
    try {
      out = parse_channels(text, width);
    } catch (const Error& error) {
      refuse(key, fmt::format("channels below {}", width), error.message());
    }
  } else {
    const std::vector<std::byte> bits = bytes(key, json(text.substr(5)));
    for (std::size_t i = 0; i < bits.size() * 8; ++i) {
      if ((bits[i / 8] >> i % 8 & std::byte{1}) != std::byte{0}) out.push_back(static_cast<std::int64_t>(i));
    }
  }
  if (out.empty() || out.back() >= width || channels_field(out, width) != text) {
    refuse(key, fmt::format("channels below {}, ascending and in their shortest form", width), text);
  }
  return out;
}

void EditFields::only(std::initializer_list<std::string_view> known) const {
  for (const auto& [key, unused] : object_.items()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) refuse(key, "absent", "an unknown field");
  }
}

}  // namespace scalevec
