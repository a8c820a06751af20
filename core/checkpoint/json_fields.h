#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

#include <scalevec/core/error.h>

namespace scalevec {

/// A JSON file that this library wrote: how what does not fit is refused, as in "the edit file is damaged:
/// ... . Take an unchanged copy of it."
struct OwnJsonFile {
  ErrorCode code;
  std::string_view name;    // "the edit file"
  std::string_view remedy;  // "Take an unchanged copy of it."
  std::string path;
};

/// One object of such a file, read field by field; what is missing, of the wrong type or unknown is refused
/// with the file, the field in `key` and the entry in `index`.
class JsonFields {
 public:
  /// object and file must outlive it. where: "vectors[3]", or empty at the top; entry: 3, or -1.
  JsonFields(const nlohmann::json& object, const OwnJsonFile& file, std::string where,
             std::int64_t entry = -1);

  [[noreturn]] void refuse(std::string_view key, const std::string& expected, const std::string& found) const;

  const nlohmann::json& object() const { return object_; }
  bool has(std::string_view key) const;
  const nlohmann::json& get(std::string_view key) const;
  std::string text(std::string_view key) const;
  std::int64_t integer(std::string_view key, std::int64_t least, std::int64_t most) const;
  /// "sha256:" and 64 lower-case hex digits.
  std::string digest(std::string_view key) const;
  /// The object under `key`.
  JsonFields fields(std::string_view key) const;

  /// Refuses every field that is not among these.
  const JsonFields& only(std::initializer_list<std::string_view> known) const;
  /// And each of these that is missing.
  const JsonFields& exactly(std::initializer_list<std::string_view> known) const;

 private:
  std::string place(std::string_view key) const;

  const nlohmann::json& object_;
  const OwnJsonFile& file_;
  std::string where_;
  std::int64_t entry_;
};

}  // namespace scalevec
