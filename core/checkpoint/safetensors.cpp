#include <scalevec/core/checkpoint/safetensors.h>

#include <algorithm>
#include <numeric>

#include <fmt/format.h>

#include <scalevec/core/checkpoint/json.h>
#include <scalevec/core/checkpoint/looks_like.h>
#include <scalevec/core/checkpoint/safetensors_json.h>
#include <scalevec/core/error.h>

namespace scalevec {
namespace {

constexpr std::uint64_t most_header = 100'000'000;  // the format's own limit
constexpr std::size_t start_bytes = 512;            // enough to see what a file is

std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// The length of the header, which lies in the file and begins with '{'.
std::uint64_t header_length(std::span<const std::byte> start, std::uint64_t file_size,
                            std::string_view file) {
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < 8 && i < start.size(); ++i)
    length |= std::to_integer<std::uint64_t>(start[i]) << (8 * i);
  const bool brace = start.size() > 8 && start[8] == std::byte{'{'};
  if (file_size < 8 || length > most_header || (start.size() > 8 && !brace)) {
    // Something else, perhaps. A file that is as it should be up to here is never judged by its first bytes.
    const std::string_view other = looks_like(start.first(std::min(start.size(), start_bytes)));
    if (!other.empty() && other != "a safetensors file") {
      fail(ErrorCode::format, fmt::format("reading safetensors: this is {}", other),
           {.file = std::string(file), .expected = "a safetensors file", .found = std::string(other)});
    }
  }
  if (file_size < 8) {
    fail(ErrorCode::trunc, "reading safetensors: the file ends inside the length of its header",
         {.file = std::string(file),
          .offset = 0,
          .expected = "at least 8 bytes",
          .found = fmt::format("{} bytes", file_size)});
  }
  if (length > most_header) {
    fail(ErrorCode::limit,
         "reading safetensors: the header is longer than the format allows; this is no safetensors file",
         {.file = std::string(file),
          .offset = 0,
          .expected = fmt::format("at most {} bytes", most_header),
          .found = fmt::format("{} bytes", length)});
  }
  if (length > file_size - 8) {
    fail(ErrorCode::trunc,
         "reading safetensors: the file ends inside its header; it was not written or fetched in full",
         {.file = std::string(file),
          .offset = 8,
          .expected = fmt::format("{} bytes of header", length),
          .found = fmt::format("{} bytes", file_size - 8)});
  }
  if (length == 0 || !brace) {
    const JsonLimits limits{.bytes = most_header};
    // An ill-encoded byte is told as such; everything else is simply no brace.
    if (length > 0 && start.size() > 8 && (start[8] & std::byte{0x80}) != std::byte{0})
      JsonReader(as_text(start.subspan(8, std::min<std::size_t>(length, start.size() - 8))), file, limits, 8)
          .next();
    fail(ErrorCode::json, "reading safetensors: the header must begin with '{'",
         {.file = std::string(file),
          .offset = 8,
          .expected = "'{'",
          .found = length == 0 ? "an empty header" : printable(as_text(start.subspan(8, 1)))});
  }
  return length;
}

// By place in the file; empty tensors before the one that begins where they lie, else in the order of the
// header.
void sort_by_place(std::vector<TensorInfo>& tensors) {
  const auto before = [](const TensorInfo& a, const TensorInfo& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.bytes < b.bytes;
  };
  if (std::is_sorted(tensors.begin(), tensors.end(), before)) return;
  // A sorted list of numbers, then each tensor moved once: std::stable_sort would take half the list's memory
  // again.
  std::vector<std::uint32_t> order(tensors.size());  // a header holds fewer than 2^32 entries
  std::iota(order.begin(), order.end(), 0U);
  std::sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
    if (before(tensors[a], tensors[b])) return true;
    return !before(tensors[b], tensors[a]) && a < b;
  });
  for (std::uint32_t start = 0; start < order.size(); ++start) {
    if (order[start] == start) continue;
    TensorInfo first = std::move(tensors[start]);
    std::uint32_t hole = start;
    while (order[hole] != start) {
      const std::uint32_t from = order[hole];
      tensors[hole] = std::move(tensors[from]);
      order[hole] = hole;
      hole = from;
    }
    tensors[hole] = std::move(first);
    order[hole] = hole;
  }
}

// Checks that the data is covered once, from its first byte to its last.
void check_cover(SafetensorsHeader& header, std::uint64_t file_size, std::string_view file) {
  sort_by_place(header.tensors);
  std::uint64_t end = header.data_begin;
  const TensorInfo* previous = nullptr;
  for (const TensorInfo& tensor : header.tensors) {
    if (tensor.begin != end) {
      const std::string whose =
          previous != nullptr ? fmt::format(", the end of '{}'", printable(previous->name)) : "";
      fail(ErrorCode::offset,
           fmt::format("reading safetensors: {}",
                       tensor.begin < end ? "two tensors overlap" : "bytes before a tensor belong to none"),
           {.file = std::string(file),
            .tensor = tensor.name,
            .offset = tensor.begin,
            .expected = fmt::format("data_offsets from {}{}", end - header.data_begin, whose),
            .found = fmt::format("data_offsets from {}", tensor.begin - header.data_begin)});
    }
    end += tensor.bytes;
    previous = &tensor;
  }
  if (end > file_size) {
    fail(ErrorCode::trunc,
         "reading safetensors: the file ends inside a tensor; it was not written or fetched in full",
         {.file = std::string(file),
          .tensor = previous != nullptr ? previous->name : "",
          .offset = file_size,
          .expected = fmt::format("{} bytes", end),
          .found = fmt::format("{} bytes", file_size)});
  }
  if (end < file_size) {
    fail(ErrorCode::trail, "reading safetensors: bytes after the last tensor belong to none",
         {.file = std::string(file),
          .offset = end,
          .expected = fmt::format("a file of {} bytes", end),
          .found = fmt::format("{} bytes after it", file_size - end)});
  }
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::span<const std::byte> start, std::uint64_t file_size,
                                           std::string_view name) {
  const std::uint64_t length = header_length(start, file_size, name);
  if (start.size() < 8 + length) {
    fail(ErrorCode::trunc, "reading safetensors: fewer bytes were given than the header has",
         {.file = std::string(name),
          .offset = 8,
          .expected = fmt::format("{} bytes", 8 + length),
          .found = fmt::format("{} bytes", start.size())});
  }
  SafetensorsHeader header = read_safetensors_json(as_text(start.subspan(8, length)), name);
  check_cover(header, file_size, name);
  return header;
}

SafetensorsHeader read_safetensors_header(const SourceFile& file) {
  const std::string name = file.path().string();
  std::vector<std::byte> start(std::min<std::uint64_t>(file.size(), start_bytes));
  file.read(0, start);
  // Nothing is allocated for a header before its length has been checked against the file.
  const std::uint64_t length = header_length(start, file.size(), name);
  if (8 + length > start.size()) {
    start.resize(8 + length);
    file.read(0, start);
  }
  return parse_safetensors_header(start, file.size(), name);
}

std::map<std::string, std::string> SafetensorsHeader::metadata() const {
  std::map<std::string, std::string> all;
  if (metadata_json.empty()) return all;
  JsonReader reader(metadata_json, {}, {.bytes = metadata_json.size()});
  reader.next();
  while (reader.next() == JsonToken::key) {
    std::string& value = all[std::string(reader.text())];
    reader.next();
    value = reader.text();
  }
  return all;
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : source_(path), header_(read_safetensors_header(source_)), names_(header_.tensors) {}

void SafetensorsFile::read_tensor(const SourceFile& file, const TensorInfo& tensor,
                                  std::span<std::byte> out) {
  if (out.size() != tensor.bytes) {
    fail(ErrorCode::size, "reading a tensor: the buffer has another size",
         {.file = file.path().string(),
          .tensor = tensor.name,
          .expected = fmt::format("{} bytes", tensor.bytes),
          .found = fmt::format("{} bytes", out.size())});
  }
  file.read(tensor.begin, out, tensor.name);
}

std::vector<bool> decode_booleans(const TensorInfo& tensor, std::span<const std::byte> bytes) {
  if (tensor.dtype != DType::boolean) {
    fail(ErrorCode::dtype, "reading booleans from a tensor of another type",
         {.tensor = tensor.name, .expected = "BOOL", .found = tensor.dtype_text});
  }
  std::vector<bool> values(bytes.size());
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    const auto byte = std::to_integer<unsigned>(bytes[i]);
    if (byte > 1) {
      fail(ErrorCode::value, "reading booleans: a byte is neither 0 nor 1",
           {.tensor = tensor.name,
            .index = static_cast<std::int64_t>(i),
            .expected = "0 or 1",
            .found = fmt::format("{}", byte)});
    }
    values[i] = byte == 1;
  }
  return values;
}

}  // namespace scalevec
