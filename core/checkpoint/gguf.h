#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <scalevec/core/checkpoint/gguf_metadata.h>
#include <scalevec/core/checkpoint/name_index.h>
#include <scalevec/core/checkpoint/tensor_file.h>

namespace scalevec {

/// What stands before the data of a GGUF file, checked in full.
struct GgufHeader {
  std::uint32_t version = 0;
  std::uint64_t alignment = 32;
  std::uint64_t data_begin = 0;  // byte of the file
  GgufMetadata metadata;
  std::vector<TensorInfo> tensors;  // in the order of the header, which may differ from that of the data
};

/// A GGUF file, version 2 or 3, little-endian. Opening reads the header; data is read when asked for, never
/// mapped.
///
/// Stricter than the reference: no duplicate, no key that is not plain ASCII, no bool but 0 and 1, no hole,
/// overlap or rest in the data, no size that overflows; a file that is too short for its tensors is refused
/// at once. Header up to 256 MiB, 2^20 keys and tensors. Non-zero padding is left alone. Refuses with
/// E_TRUNC, E_FORMAT, E_LIMIT, E_NAME, E_DUP, E_VALUE, E_SCHEMA, E_SHAPE, E_OVERFLOW, E_DTYPE, E_QUANT,
/// E_OFFSET, E_TRAIL, E_UTF8; E_PATH and E_IO come from SourceFile.
class GgufFile {
 public:
  explicit GgufFile(const std::filesystem::path& path);

  /// A file that is in memory already; the bytes are copied. name: for messages.
  static GgufFile from_memory(std::span<const std::byte> bytes, std::string name = "memory");

  const GgufHeader& header() const { return header_; }
  const GgufMetadata& metadata() const { return header_.metadata; }
  const std::vector<TensorInfo>& tensors() const { return header_.tensors; }
  const TensorInfo* find(std::string_view name) const { return names_.find(header_.tensors, name); }
  /// As given, or the name of the memory.
  std::filesystem::path path() const { return source_ ? source_->path() : std::filesystem::path(name_); }
  std::uint64_t size() const { return source_ ? source_->size() : memory_.size(); }

  /// `general.architecture`; E_SCHEMA where it is missing, no string, or empty.
  std::string_view architecture() const;
  /// "<architecture>.<key>", as the metadata keys of a model are formed.
  std::string model_key(std::string_view key) const;
  /// `<architecture>.block_count`. E_CONFIG unless blk.0 to blk.(count - 1), and no others, have tensors.
  std::int64_t block_count() const;

  /// Fills `out`, of exactly `tensor.bytes`, with the stored bytes. Safe from several threads.
  void read(const TensorInfo& tensor, std::span<std::byte> out) const;
  /// Part of them, from byte `first` of the tensor. E_SIZE if that ends after it.
  void read(const TensorInfo& tensor, std::uint64_t first, std::span<std::byte> out) const;

 private:
  GgufFile() = default;
  std::optional<SourceFile> source_;
  std::vector<std::byte> memory_;
  std::string name_;
  GgufHeader header_;
  NameIndex names_;
};

}  // namespace scalevec
