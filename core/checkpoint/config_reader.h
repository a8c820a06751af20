#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace scalevec {

/// Fields of one JSON object of a config.json, with what stands for those that are left out. Whatever does
/// not fit is E_CONFIG with the file, the key and what was found; a field that is null counts as absent.
class ConfigReader {
 public:
  /// file: for messages. where: the object's place in the file, "" or "text_config.".
  ConfigReader(nlohmann::json values, nlohmann::json defaults, std::string file, std::string where = "");

  /// Null if the field is missing or null, in the file or else in the defaults.
  const nlohmann::json& value(std::string_view key) const;
  bool has(std::string_view key) const { return !value(key).is_null(); }
  /// In the file, whatever the defaults say.
  bool stands(std::string_view key) const;

  std::int64_t integer(std::string_view key, std::int64_t least, std::int64_t most) const;
  double number(std::string_view key, double least, double most) const;
  bool boolean(std::string_view key) const;
  std::string text(std::string_view key) const;
  std::optional<std::int64_t> optional_integer(std::string_view key, std::int64_t least,
                                               std::int64_t most) const;
  std::optional<double> optional_number(std::string_view key, double least, double most) const;

  /// The object under `key`, to be read by the same rules, without defaults.
  ConfigReader object(std::string_view key) const;
  const nlohmann::json& values() const { return values_; }
  const std::string& file() const { return file_; }

  [[noreturn]] void refuse(std::string_view key, std::string_view reason, std::string expected) const;

 private:
  nlohmann::json values_, defaults_;
  std::string file_, where_;
};

}  // namespace scalevec
