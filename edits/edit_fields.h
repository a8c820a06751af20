#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

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

/// One object of an edit file, read field by field; what is missing, of the wrong type or unknown is E_BUNDLE
/// with the file, the field in `key` and the entry in `index`.
class EditFields {
 public:
  /// object and file must outlive it. where: "vectors[3]", or empty at the top; entry: 3, or -1.
  EditFields(const nlohmann::json& object, std::string_view file, std::string where, std::int64_t entry = -1);

  [[noreturn]] void refuse(std::string_view key, const std::string& expected, const std::string& found) const;

  const nlohmann::json& object() const { return object_; }
  bool has(const char* key) const;
  const nlohmann::json& get(const char* key) const;
  std::string text(const char* key) const;
  std::int64_t integer(const char* key, std::int64_t least, std::int64_t most) const;
  std::string digest(const char* key) const;

  /// The same of a value that was found under `key`.
  double number(std::string_view key, const nlohmann::json& value) const;
  std::vector<std::byte> bytes(std::string_view key, const nlohmann::json& value) const;
  std::vector<std::int64_t> channels(std::string_view key, const std::string& text, std::int64_t width) const;

  /// Refuses every field that is not among these.
  void only(std::initializer_list<std::string_view> known) const;

 private:
  const nlohmann::json& object_;
  std::string_view file_;
  std::string where_;
  std::int64_t entry_;
};

}  // namespace scalevec
