#include <scalevec/core/checkpoint/gguf_header.h>

#include <algorithm>
#include <bit>
#include <memory>
#include <utility>

#include <fmt/format.h>

#include <scalevec/core/checkpoint/gguf_tensors.h>
#include <scalevec/core/checkpoint/looks_like.h>
#include <scalevec/core/checkpoint/name_order.h>
#include <scalevec/core/checkpoint/quants.h>
#include <scalevec/core/error.h>

namespace scalevec {
namespace {

constexpr std::uint64_t most_entries = std::uint64_t{1} << 20;
constexpr std::uint64_t most_key = 65'535;
constexpr std::uint64_t most_alignment = 65'536;
constexpr std::uint64_t smallest_pair = 14;    // a key of one byte and a value of one byte
constexpr std::uint64_t smallest_tensor = 25;  // a name of one byte and no dimension
constexpr std::string_view alignment_key = "general.alignment";

bool is_plain(char c) { return c >= 0x20 && c < 0x7F; }

class HeaderParser {
 public:
  HeaderParser(std::uint64_t size, const ReadBytes& read, const std::string& file)
      : cursor_(size, read, file) {}

  GgufHeader parse() {
    GgufHeader header;
    header.version = read_start();
    const std::uint64_t tensors = read_count("tensors", smallest_tensor);
    const std::uint64_t pairs = read_count("key-value pairs", smallest_pair);
    header.metadata = read_metadata(pairs);
    if (header.metadata.has(alignment_key)) header.alignment = read_alignment(header.metadata);
    GgufTensors table = read_gguf_tensors(cursor_, tensors, header.alignment);
    header.tensors = std::move(table.tensors);
    header.data_begin = table.data_begin;
    return header;
  }

 private:
  std::uint32_t read_start() {
    const std::string_view start = cursor_.start(512);
    constexpr std::string_view magic = "GGUF";
    if (start.substr(0, 4) != magic.substr(0, start.size())) {
      const std::string_view other = looks_like(std::as_bytes(std::span(start)));
      const std::string found =
          other.empty() ? fmt::format("bytes '{}'", printable(start.substr(0, 4))) : std::string(other);
      cursor_.refuse(ErrorCode::format, fmt::format("this is no GGUF file but {}", found), 0,
                     "the bytes 'GGUF'", found);
    }
    if (start.size() < magic.size()) {
      cursor_.refuse(ErrorCode::trunc, "the file ends inside its first word", start.size(),
                     "at least 24 bytes", in_bytes(start.size()));
    }
    cursor_.take(magic.size());
    const auto version = cursor_.value<std::uint32_t>();
    if (version == 0x02000000 || version == 0x03000000) {
      cursor_.refuse(ErrorCode::format, "big-endian, unsupported; convert it with gguf-convert-endian", 4,
                     "a little-endian file", fmt::format("version 0x{:08x}", version));
    }
    if (version != 2 && version != 3) {
      cursor_.refuse(ErrorCode::format, "unknown version; convert the model with a current llama.cpp", 4,
                     "version 2 or 3", fmt::format("version {}", version));
    }
    return version;
  }

  std::uint64_t read_count(std::string_view what, std::uint64_t smallest) {
    const std::uint64_t begin = cursor_.at();
    const auto count = cursor_.value<std::uint64_t>();
    const std::uint64_t most = std::min(most_entries, cursor_.left() / smallest);
    if (count > most) {
      cursor_.refuse(
          ErrorCode::limit,
          fmt::format("more {} than {}", what, most == most_entries ? "are read" : "the file can hold"),
          begin, fmt::format("at most {}", most), std::to_string(count));
    }
    return count;
  }

  GgufMetadata read_metadata(std::uint64_t pairs) {
    std::vector<GgufMetadata::Entry> entries;
    entries.reserve(pairs);
    for (std::uint64_t i = 0; i < pairs; ++i) {
      entries.push_back(read_pair());
      cursor_.subject = {};
    }
    const auto key = [&](std::uint32_t i) {
      return cursor_.taken(entries[i].key_begin + 8, entries[i].key_size);
    };
    NameOrder by_key = order_by_name(entries.size(), key);
    if (const auto twice = first_duplicate(by_key, key)) {
      const auto [first, second] = *twice;
      cursor_.subject.key = key(second);
      cursor_.refuse_duplicate(key(second), entries[first].key_begin, entries[second].key_begin);
    }
    const std::string_view all = cursor_.taken(0, cursor_.at());
    auto kept = std::make_shared<const std::vector<char>>(all.begin(), all.end());
    return GgufMetadata(std::move(kept), std::move(entries), std::move(by_key), cursor_.file());
  }

  GgufMetadata::Entry read_pair() {
    GgufMetadata::Entry entry{.key_begin = cursor_.at()};
    const auto size = cursor_.value<std::uint64_t>();
    if (size == 0)
      cursor_.refuse(ErrorCode::name, "a key is empty", entry.key_begin, "1 to 65535 bytes", "an empty key");
    if (size > cursor_.left()) {
      cursor_.refuse(ErrorCode::trunc, "the file ends inside a key", entry.key_begin, in_bytes(size),
                     in_bytes(cursor_.left()));
    }
    if (size > most_key) {
      cursor_.refuse(ErrorCode::limit, "a key is longer than the format allows", entry.key_begin,
                     in_bytes(most_key), in_bytes(size));
    }
    entry.key_size = static_cast<std::uint32_t>(size);
    const std::string_view key(cursor_.take(size), size);
    const auto bad = std::ranges::find_if_not(key, is_plain);
    if (bad != key.end()) {
      const auto place = static_cast<std::uint64_t>(bad - key.begin());
      cursor_.refuse(ErrorCode::name, fmt::format("the key '{}' is not plain ASCII", printable(key)),
                     entry.key_begin + 8 + place, "printable ASCII",
                     fmt::format("byte 0x{:02x}", static_cast<unsigned char>(*bad)));
    }
    cursor_.subject.key = key;
    entry.type = read_type();
    entry.begin = cursor_.at();
    if (entry.type == GgufType::array) {
      read_array(entry);
    } else {
      skip_values(entry.type, 1);
    }
    return entry;
  }

  GgufType read_type() {
    const std::uint64_t begin = cursor_.at();
    const auto type = cursor_.value<std::uint32_t>();
    if (type > static_cast<std::uint32_t>(GgufType::f64)) {
      cursor_.refuse(ErrorCode::format, "unknown type of a metadata value", begin, "0 to 12",
                     std::to_string(type));
    }
    return static_cast<GgufType>(type);
  }

  void read_array(GgufMetadata::Entry& entry) {
    const std::uint64_t begin = cursor_.at();
    entry.element = read_type();
    if (entry.element == GgufType::array) {
      cursor_.refuse(ErrorCode::format, "nested arrays are unsupported", begin,
                     "an array of plain values or strings", "an array of arrays");
    }
    const std::uint64_t count_begin = cursor_.at();
    entry.count = cursor_.value<std::uint64_t>();
    const std::size_t smallest = gguf_type_bytes(entry.element);
    if (entry.count > cursor_.left() / smallest) {
      cursor_.refuse(ErrorCode::trunc, "the file ends inside an array", count_begin,
                     fmt::format("{} elements of at least {} bytes", entry.count, smallest),
                     in_bytes(cursor_.left()));
    }
    entry.begin = cursor_.at();
    skip_values(entry.element, entry.count);
  }

  // `count` values of a type other than array.
  void skip_values(GgufType type, std::uint64_t count) {
    const std::uint64_t begin = cursor_.at();
    if (type == GgufType::string) {
      for (std::uint64_t i = 0; i < count; ++i) {
        const std::uint64_t length_begin = cursor_.at();
        const auto length = cursor_.value<std::uint64_t>();
        if (length > cursor_.left()) {
          cursor_.refuse(ErrorCode::trunc, "the file ends inside a string", length_begin, in_bytes(length),
                         in_bytes(cursor_.left()));
        }
        cursor_.take(length);
      }
      return;
    }
    const char* values = cursor_.take(count * gguf_type_bytes(type));
    if (type != GgufType::boolean) return;
    const char* bad = std::find_if(values, values + count, [](char b) { return b != 0 && b != 1; });
    if (bad != values + count) {
      cursor_.refuse(ErrorCode::value, "a bool is neither 0 nor 1",
                     begin + static_cast<std::uint64_t>(bad - values), "0 or 1",
                     std::to_string(static_cast<unsigned char>(*bad)));
    }
  }

  std::uint64_t read_alignment(const GgufMetadata& metadata) {
    cursor_.subject.key = alignment_key;
    const std::uint64_t begin = metadata.offset(alignment_key);
    const GgufType type = metadata.type(alignment_key);
    if (type != GgufType::u32) {
      cursor_.refuse(ErrorCode::schema, "general.alignment must be a u32", begin, "u32",
                     std::string(gguf_type_name(type)));
    }
    const auto alignment = static_cast<std::uint64_t>(metadata.integer(alignment_key));
    if (alignment > most_alignment) {
      cursor_.refuse(ErrorCode::limit, "general.alignment is larger than is read", begin,
                     fmt::format("at most {}", most_alignment), std::to_string(alignment));
    }
    if (alignment % 8 != 0 || !std::has_single_bit(alignment)) {
      cursor_.refuse(ErrorCode::value, "general.alignment must be a power of two from 8 on", begin,
                     "8, 16, 32, ...", std::to_string(alignment));
    }
    cursor_.subject = {};
    return alignment;
  }

  GgufCursor cursor_;
};

}  // namespace

GgufHeader parse_gguf_header(std::uint64_t file_size, const ReadBytes& read, const std::string& name) {
  return HeaderParser(file_size, read, name).parse();
}

}  // namespace scalevec
