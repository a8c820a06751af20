#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <scalevec/core/checkpoint/json_fields.h>

namespace scalevec {

/// What the writer and the reader of edit files agree on.
namespace edit_format {
inline constexpr std::string_view schema = "scalevec edit 1";
inline constexpr std::string_view digest_line = "  \"digest\": \"";
inline constexpr std::size_t most_operations = 50'000;
}  // namespace edit_format

/// Channels as an edit file writes them: a selector's text, or "bits:" and a base64 bitmap where that is
/// shorter.
std::string channels_field(std::span<const std::int64_t> channels, std::int64_t width);

/// One object of an edit file, read field by field, with the values that only edit files have.
class EditFields : public JsonFields {
 public:
  using JsonFields::JsonFields;

  /// Of what was found under `key`.
  double number(std::string_view key, const nlohmann::json& value) const;
  std::vector<std::byte> bytes(std::string_view key, const nlohmann::json& value) const;
  std::vector<std::int64_t> channels(std::string_view key, const std::string& text, std::int64_t width) const;
};

}  // namespace scalevec
