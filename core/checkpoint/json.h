#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

namespace scalevec {

/// How large a JSON text may be; beyond it E_LIMIT.
struct JsonLimits {
  std::uint64_t bytes = std::uint64_t{16} << 20;
  std::size_t depth = 100;  // of objects and arrays inside each other
};

enum class JsonToken : std::uint8_t {
  begin_object,
  end_object,
  begin_array,
  end_array,
  key,
  string,
  number,
  boolean,
  null,
  end,
};

/// Reads JSON text token by token: RFC 8259 and nothing beyond it, without recursion.
///
/// E_JSON for a byte that the grammar refuses, E_UTF8 for invalid UTF-8 and lone surrogates, E_LIMIT for
/// depth and size, each with the offset of the byte. Keys that stand twice are not its concern: see
/// check_json. `text` and `source` must outlive the reader.
class JsonReader {
 public:
  /// source: the file's name, for messages. first_byte: where `text` begins in it, added to every offset.
  JsonReader(std::string_view text, std::string_view source, JsonLimits limits = {},
             std::uint64_t first_byte = 0);

  /// The next token; `end` once, after the one value of the text.
  JsonToken next();

  JsonToken token() const { return token_; }
  /// Of the token's first byte, in the source.
  std::uint64_t offset() const { return first_byte_ + begin_; }
  /// Of the byte after the token.
  std::uint64_t end_offset() const { return first_byte_ + at_; }
  /// A key or string with escapes resolved, a number as written, "true" or "false". Valid until next().
  std::string_view text() const { return token_text_; }
  /// Of open objects and arrays, with the one that this token opens.
  std::size_t depth() const { return open_.size(); }

  /// Reads to the end of the value whose first token is current.
  void skip_value();

 private:
  enum class Expect : std::uint8_t { value, value_or_end, key, key_or_end, comma_or_end, nothing };

  void skip_space();
  JsonToken read_value(char c);
  JsonToken open(char c);
  JsonToken close(char c);
  void read_string();
  void read_escape();
  std::uint32_t read_hex4();
  void read_number();
  JsonToken read_word(std::string_view word, JsonToken token);
  [[noreturn]] void refuse(std::string_view expected) const;
  [[noreturn]] void refuse_utf8(std::size_t at, std::string_view found) const;

  std::string_view text_, source_;
  JsonLimits limits_;
  std::uint64_t first_byte_;
  std::size_t begin_ = 0, at_ = 0;
  JsonToken token_ = JsonToken::null;
  Expect expect_ = Expect::value;
  std::string_view token_text_;
  std::string decoded_;
  std::vector<bool> open_;  // true for an object
};

/// `text` in quotes, escaped; E_UTF8 for what no reader would take.
std::string json_quoted(std::string_view text);
/// The shortest decimal that reads as the same float64, and as a float; null for what JSON has no number for.
std::string json_number(double value);
/// On one line; invalid UTF-8 is replaced.
std::string json_text(const nlohmann::json& value);

/// A key that stands twice in one object: offsets of both, and where the object is.
struct JsonDuplicate {
  std::uint64_t first = 0, second = 0;
  std::string key;
  std::string parent;     // the key under which the object stands, empty at the top
  std::size_t depth = 0;  // 1 for the top-level object
};

struct JsonSummary {
  std::uint64_t members = 0;  // keys of the top-level object
  std::optional<JsonDuplicate> duplicate;
};

/// Reads all of `text` and throws what JsonReader throws; reports the first key that stands twice, however it
/// is escaped, in any object. Time n log n and memory 8 bytes per key, also for keys made to collide.
JsonSummary check_json(std::string_view text, std::string_view source, JsonLimits limits = {},
                       std::uint64_t first_byte = 0);

/// Throws E_DUP with the key and both offsets.
[[noreturn]] void refuse_duplicate_key(const JsonDuplicate& twice, std::string_view source);

/// The value of `text`, checked as by check_json; E_DUP for a key that stands twice.
///
/// "2" is an integer and "2.0" a float, as in nlohmann::json. "-0" and integers beyond 64 bits are floats, so
/// that who asks for an integer refuses them; numbers beyond float64 are infinite.
nlohmann::json parse_json(std::string_view text, std::string_view source, JsonLimits limits = {});

}  // namespace scalevec
