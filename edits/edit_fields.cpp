#include <scalevec/edits/edit_fields.h>

#include <limits>
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

}  // namespace scalevec
