#include <scalevec/core/checkpoint/gguf_metadata.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include <scalevec/core/error.h>

namespace scalevec {
namespace {

struct TypeFacts {
  std::string_view name;
  std::size_t bytes;
};

constexpr std::array<TypeFacts, 13> type_facts{{{"u8", 1},
                                                {"i8", 1},
                                                {"u16", 2},
                                                {"i16", 2},
                                                {"u32", 4},
                                                {"i32", 4},
                                                {"f32", 4},
                                                {"bool", 1},
                                                {"string", 8},
                                                {"array", 0},
                                                {"u64", 8},
                                                {"i64", 8},
                                                {"f64", 8}}};

template <class T>
T load(const std::vector<char>& bytes, std::uint64_t begin) {
  T value;
  std::memcpy(&value, bytes.data() + begin, sizeof value);
  return value;
}

bool is_integer(GgufType type) {
  return type != GgufType::f32 && type != GgufType::f64 && type != GgufType::boolean &&
         type != GgufType::string && type != GgufType::array;
}

bool is_number(GgufType type) { return is_integer(type) || type == GgufType::f32 || type == GgufType::f64; }

}  // namespace

std::string_view gguf_type_name(GgufType type) { return type_facts.at(static_cast<std::size_t>(type)).name; }

std::size_t gguf_type_bytes(GgufType type) { return type_facts.at(static_cast<std::size_t>(type)).bytes; }

GgufMetadata::GgufMetadata(std::shared_ptr<const std::vector<char>> header, std::vector<Entry> entries,
                           NameOrder by_key, std::string file)
    : header_(std::move(header)),
      entries_(std::move(entries)),
      by_key_(std::move(by_key)),
      file_(std::move(file)) {}

std::vector<std::string_view> GgufMetadata::keys() const {
  std::vector<std::string_view> all;
  all.reserve(entries_.size());
  for (const Entry& entry : entries_) all.push_back(key_of(entry));
  return all;
}

std::string_view GgufMetadata::key_of(const Entry& entry) const {
  return {header_->data() + entry.key_begin + sizeof(std::uint64_t), entry.key_size};
}

std::string_view GgufMetadata::string_at(std::uint64_t begin) const {
  return {header_->data() + begin + sizeof(std::uint64_t), load<std::uint64_t>(*header_, begin)};
}

const GgufMetadata::Entry* GgufMetadata::find(std::string_view key) const {
  const auto at =
      find_name(by_key_, key, [this](std::uint32_t position) { return key_of(entries_[position]); });
  return at ? &entries_[*at] : nullptr;
}

const GgufMetadata::Entry& GgufMetadata::require(std::string_view key) const {
  const Entry* entry = find(key);
  if (entry == nullptr) {
    fail(ErrorCode::schema,
         fmt::format("reading GGUF metadata: no key '{}'; the file is incomplete", printable(key)),
         {.file = file_, .key = std::string(key), .expected = "the key", .found = "no such key"});
  }
  return *entry;
}

const GgufMetadata::Entry& GgufMetadata::require(std::string_view key, GgufType type) const {
  const Entry& entry = require(key);
  if (entry.type != type) refuse_type(key, gguf_type_name(type), entry);
  return entry;
}

void GgufMetadata::refuse_type(std::string_view key, std::string_view expected, const Entry& entry) const {
  const std::string found = entry.type == GgufType::array
                                ? fmt::format("array of {} {}", entry.count, gguf_type_name(entry.element))
                                : std::string(gguf_type_name(entry.type));
  fail(ErrorCode::schema,
       fmt::format("reading GGUF metadata: '{}' is {}, but {} was expected", printable(key), found, expected),
       {.file = file_,
        .key = std::string(key),
        .offset = entry.begin,
        .expected = std::string(expected),
        .found = found});
}

std::int64_t GgufMetadata::integer_at(std::string_view key, GgufType type, std::uint64_t begin) const {
  switch (type) {
    case GgufType::u8:
      return load<std::uint8_t>(*header_, begin);
    case GgufType::i8:
      return load<std::int8_t>(*header_, begin);
    case GgufType::u16:
      return load<std::uint16_t>(*header_, begin);
    case GgufType::i16:
      return load<std::int16_t>(*header_, begin);
    case GgufType::u32:
      return load<std::uint32_t>(*header_, begin);
    case GgufType::i32:
      return load<std::int32_t>(*header_, begin);
    case GgufType::i64:
      return load<std::int64_t>(*header_, begin);
    default:
      break;
  }
  const auto value = load<std::uint64_t>(*header_, begin);
  if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
    fail(ErrorCode::config,
         fmt::format("reading GGUF metadata: '{}' is {}, beyond any use", printable(key), value),
         {.file = file_,
          .key = std::string(key),
          .offset = begin,
          .expected = "an integer below 2^63",
          .found = std::to_string(value)});
  }
  return static_cast<std::int64_t>(value);
}

double GgufMetadata::number_at(std::string_view key, GgufType type, std::uint64_t begin) const {
  switch (type) {
    case GgufType::f32:
      return load<float>(*header_, begin);
    case GgufType::f64:
      return load<double>(*header_, begin);
    case GgufType::u64:
      return static_cast<double>(load<std::uint64_t>(*header_, begin));
    default:
      return static_cast<double>(integer_at(key, type, begin));
  }
}

std::int64_t GgufMetadata::integer(std::string_view key) const {
  const Entry& entry = require(key);
  if (!is_integer(entry.type)) refuse_type(key, "an integer", entry);
  return integer_at(key, entry.type, entry.begin);
}

double GgufMetadata::number(std::string_view key) const {
  const Entry& entry = require(key);
  if (!is_number(entry.type)) refuse_type(key, "a number", entry);
  return number_at(key, entry.type, entry.begin);
}

bool GgufMetadata::boolean(std::string_view key) const {
  return (*header_)[require(key, GgufType::boolean).begin] != 0;
}

std::string_view GgufMetadata::bytes(std::string_view key) const {
  return string_at(require(key, GgufType::string).begin);
}

std::string_view GgufMetadata::text(std::string_view key) const {
  const Entry& entry = require(key, GgufType::string);
  const std::string_view value = string_at(entry.begin);
  const std::size_t bad = first_invalid_utf8(value);
  if (bad != std::string_view::npos) {
    fail(ErrorCode::utf8,
         fmt::format("reading GGUF metadata: the text of '{}' is not UTF-8; ask for its bytes instead",
                     printable(key)),
         {.file = file_,
          .key = std::string(key),
          .offset = entry.begin + sizeof(std::uint64_t) + bad,
          .expected = "UTF-8",
          .found = fmt::format("byte 0x{:02x}", static_cast<unsigned char>(value[bad]))});
  }
  return value;
}

std::int64_t GgufMetadata::integer(std::string_view key, std::int64_t fallback) const {
  return has(key) ? integer(key) : fallback;
}

double GgufMetadata::number(std::string_view key, double fallback) const {
  return has(key) ? number(key) : fallback;
}

bool GgufMetadata::boolean(std::string_view key, bool fallback) const {
  return has(key) ? boolean(key) : fallback;
}

std::string_view GgufMetadata::text(std::string_view key, std::string_view fallback) const {
  return has(key) ? text(key) : fallback;
}

std::vector<std::string_view> GgufMetadata::strings(std::string_view key) const {
  const Entry& entry = require(key, GgufType::array);
  if (entry.element != GgufType::string) refuse_type(key, "array of string", entry);
  std::vector<std::string_view> values;
  values.reserve(entry.count);
  std::uint64_t begin = entry.begin;
  for (std::uint64_t i = 0; i < entry.count; ++i) {
    values.push_back(string_at(begin));
    begin += sizeof(std::uint64_t) + values.back().size();
  }
  return values;
}

std::vector<std::int64_t> GgufMetadata::integers(std::string_view key) const {
  const Entry& entry = require(key, GgufType::array);
  if (!is_integer(entry.element)) refuse_type(key, "array of integers", entry);
  std::vector<std::int64_t> values(entry.count);
  const std::size_t bytes = gguf_type_bytes(entry.element);
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = integer_at(key, entry.element, entry.begin + i * bytes);
  return values;
}

std::vector<double> GgufMetadata::numbers(std::string_view key) const {
  const Entry& entry = require(key, GgufType::array);
  if (!is_number(entry.element)) refuse_type(key, "array of numbers", entry);
  std::vector<double> values(entry.count);
  const std::size_t bytes = gguf_type_bytes(entry.element);
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = number_at(key, entry.element, entry.begin + i * bytes);
  return values;
}

std::vector<bool> GgufMetadata::booleans(std::string_view key) const {
  const Entry& entry = require(key, GgufType::array);
  if (entry.element != GgufType::boolean) refuse_type(key, "array of bool", entry);
  std::vector<bool> values(entry.count);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = (*header_)[entry.begin + i] != 0;
  return values;
}

std::size_t first_invalid_utf8(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[at + i]); };
    const unsigned char lead = byte(0);
    const std::size_t length = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    if (length > 1) {
      if (lead < 0xC2 || lead > 0xF4 || text.size() - at < length) return at;
      for (std::size_t i = 1; i < length; ++i) {
        if ((byte(i) & 0xC0) != 0x80) return at;
      }
      // Overlong forms, surrogates, and what lies beyond U+10FFFF.
      if ((lead == 0xE0 && byte(1) < 0xA0) || (lead == 0xED && byte(1) > 0x9F) ||
          (lead == 0xF0 && byte(1) < 0x90) || (lead == 0xF4 && byte(1) > 0x8F)) {
        return at;
      }
    }
    at += length;
  }
  return std::string_view::npos;
}

}  // namespace scalevec
