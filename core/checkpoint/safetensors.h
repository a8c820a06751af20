#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <scalevec/core/checkpoint/name_index.h>
#include <scalevec/core/checkpoint/tensor_file.h>

namespace scalevec {

/// What stands before the data of a safetensors file, checked in full.
struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;  // in the order of their data
  std::string metadata_json;     // the text of `__metadata__`, an object of strings; empty if there is none
  std::uint64_t data_begin = 0;  // byte of the file

  std::map<std::string, std::string> metadata() const;
};

/// Reads the header of a safetensors file of `file_size` bytes that begins with `start`, which must reach to
/// the end of the header. Stricter than the reference: names and keys once, names of 1 to 1,024 bytes without
/// control bytes, rank up to 8, no unknown field, no overflow that a zero dimension hides, and the data is
/// covered without hole, overlap or rest. name: the file's, for messages.
///
/// Refuses with E_TRUNC, E_LIMIT, E_JSON, E_UTF8, E_DUP, E_SCHEMA, E_NAME, E_DTYPE, E_SHAPE, E_OVERFLOW,
/// E_SIZE, E_OFFSET, E_TRAIL, and E_FORMAT for what is another kind of file.
SafetensorsHeader parse_safetensors_header(std::span<const std::byte> start, std::uint64_t file_size,
                                           std::string_view name);

/// The same, read from a file: nothing beyond the header.
SafetensorsHeader read_safetensors_header(const SourceFile& file);

/// One safetensors file. Opening reads the header; data is read when asked for, and never mapped.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);

  const SourceFile& source() const { return source_; }
  const std::filesystem::path& path() const { return source_.path(); }
  /// In the order of their data.
  const std::vector<TensorInfo>& tensors() const { return header_.tensors; }
  /// By the exact bytes of the name (two Unicode spellings of one text are two names); null if there is none.
  const TensorInfo* find(std::string_view name) const { return names_.find(header_.tensors, name); }
  std::map<std::string, std::string> metadata() const { return header_.metadata(); }
  std::uint64_t data_begin() const { return header_.data_begin; }

  /// Fills `out`, of exactly `tensor.bytes`, with the stored bytes: little-endian, C order.
  void read(const TensorInfo& tensor, std::span<std::byte> out) const { read_tensor(source_, tensor, out); }

  /// E_SIZE unless `out` has the size of the tensor.
  static void read_tensor(const SourceFile& file, const TensorInfo& tensor, std::span<std::byte> out);

 private:
  SourceFile source_;
  SafetensorsHeader header_;
  NameIndex names_;
};

/// Elements of a BOOL tensor from its bytes; E_DTYPE for another type, E_VALUE for a byte other than 0 and 1.
std::vector<bool> decode_booleans(const TensorInfo& tensor, std::span<const std::byte> bytes);

}  // namespace scalevec
