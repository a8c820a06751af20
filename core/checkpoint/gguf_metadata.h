#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <scalevec/core/checkpoint/name_order.h>

namespace scalevec {

/// Types of metadata values, by their number in the file.
enum class GgufType : std::uint32_t {
  u8,
  i8,
  u16,
  i16,
  u32,
  i32,
  f32,
  boolean,
  string,
  array,
  u64,
  i64,
  f64,
};

/// "u8", "string", ...
std::string_view gguf_type_name(GgufType type);

/// Bytes of a value of fixed size; 8 for a string (its length), 0 for an array.
std::size_t gguf_type_bytes(GgufType type);

/// The key-value part of a GGUF header: it keeps the bytes as they came and reads a value when asked.
///
/// Copies share the bytes. What is returned as a view lives as long as any copy. An accessor that meets no
/// key or another type throws E_SCHEMA with the key; an integer outside int64 is E_CONFIG.
class GgufMetadata {
 public:
  struct Entry {
    std::uint64_t key_begin = 0;  // of the key's length, a byte of the file
    std::uint32_t key_size = 0;
    GgufType type = GgufType::u8;
    GgufType element = GgufType::u8;  // of an array
    std::uint64_t count = 1;          // elements of an array
    std::uint64_t begin = 0;          // of the value, or of an array's first element
  };

  GgufMetadata() = default;
  /// header: the file's first bytes, which hold all entries; the reader has checked them. by_key: positions
  /// in `entries`, sorted by key. file: for messages.
  GgufMetadata(std::shared_ptr<const std::vector<char>> header, std::vector<Entry> entries, NameOrder by_key,
               std::string file);

  std::size_t size() const { return entries_.size(); }
  /// In the order of the file.
  std::string_view key(std::size_t position) const { return key_of(entries_[position]); }
  std::vector<std::string_view> keys() const;

  bool has(std::string_view key) const { return find(key) != nullptr; }
  GgufType type(std::string_view key) const { return require(key).type; }
  /// Of an array; E_SCHEMA for another value.
  GgufType element_type(std::string_view key) const { return require(key, GgufType::array).element; }
  std::uint64_t count(std::string_view key) const { return require(key, GgufType::array).count; }
  /// Byte of the file where the value begins: for messages.
  std::uint64_t offset(std::string_view key) const { return require(key).begin; }

  std::int64_t integer(std::string_view key) const;  // any integer type
  double number(std::string_view key) const;         // any integer or floating type
  bool boolean(std::string_view key) const;
  std::string_view bytes(std::string_view key) const;  // a string, as it stands
  std::string_view text(std::string_view key) const;   // the same; E_UTF8 with the offset of the bad byte

  /// With a fallback for a missing key; a value of the wrong type is an error all the same.
  std::int64_t integer(std::string_view key, std::int64_t fallback) const;
  double number(std::string_view key, double fallback) const;
  bool boolean(std::string_view key, bool fallback) const;
  std::string_view text(std::string_view key, std::string_view fallback) const;

  /// Arrays, in one pass. The strings are as they stand, valid UTF-8 or not: a vocabulary has single bytes.
  std::vector<std::string_view> strings(std::string_view key) const;
  std::vector<std::int64_t> integers(std::string_view key) const;
  std::vector<double> numbers(std::string_view key) const;
  std::vector<bool> booleans(std::string_view key) const;

 private:
  const Entry* find(std::string_view key) const;
  const Entry& require(std::string_view key) const;
  const Entry& require(std::string_view key, GgufType type) const;
  std::string_view key_of(const Entry& entry) const;
  std::string_view string_at(std::uint64_t begin) const;
  std::int64_t integer_at(std::string_view key, GgufType type, std::uint64_t begin) const;
  double number_at(std::string_view key, GgufType type, std::uint64_t begin) const;
  [[noreturn]] void refuse_type(std::string_view key, std::string_view expected, const Entry& entry) const;

  std::shared_ptr<const std::vector<char>> header_;
  std::vector<Entry> entries_;
  NameOrder by_key_;
  std::string file_;
};

/// Position of the first byte that begins no valid UTF-8 sequence, or npos.
std::size_t first_invalid_utf8(std::string_view text);

}  // namespace scalevec
