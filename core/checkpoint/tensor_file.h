#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <scalevec/core/dtype.h>

namespace scalevec {

/// One tensor of a checkpoint, as its header describes it.
struct TensorInfo {
  std::string name;  // native
  DType dtype = DType::f32;
  std::string dtype_text;            // as the container writes it: "F32", "Q4_K", "IQ2_XXS"
  std::vector<std::uint64_t> shape;  // outermost first, as in PyTorch (GGUF's order reversed)
  std::uint64_t begin = 0;           // first byte, counted from the start of its file
  std::uint64_t bytes = 0;
  std::size_t file = 0;  // which of the checkpoint's files (a shard)

  std::uint64_t elements() const {
    std::uint64_t count = 1;
    for (const std::uint64_t n : shape) count *= n;  // readers have checked that this fits
    return count;
  }
};

/// A model file, open for reading with pread. Never mapped: a mapped file that shrinks kills the process.
///
/// Opening refuses what is not a regular file (E_PATH, without blocking on a FIFO). Every read checks that
/// the file is still the one that was opened: E_STATE if it was replaced or rewritten, E_IO if it shrank.
class SourceFile {
 public:
  explicit SourceFile(const std::filesystem::path& path);
  /// The file `name` of `folder`, a plain file name. A symbolic link is followed only to another file of the
  /// same folder (E_PATH, and nothing outside is opened), or anywhere with allow_links. key: for messages.
  static SourceFile inside(const std::filesystem::path& folder, std::string_view name, bool allow_links,
                           std::string_view key = {});
  ~SourceFile();
  SourceFile(SourceFile&&) noexcept;
  SourceFile& operator=(SourceFile&&) noexcept;

  const std::filesystem::path& path() const { return path_; }
  std::uint64_t size() const { return size_; }

  /// Fills `out` from byte `begin`; E_TRUNC if the file is shorter, E_IO if the system refuses. tensor: for
  /// messages.
  void read(std::uint64_t begin, std::span<std::byte> out, std::string_view tensor = {}) const;

 private:
  SourceFile() = default;
  void adopt(int descriptor, std::string_view key);
  void check_unchanged(std::string_view tensor, std::uint64_t begin) const;

  std::filesystem::path path_;      // as given
  std::filesystem::path absolute_;  // the same, whatever the working folder becomes
  int descriptor_ = -1;
  std::uint64_t size_ = 0;
  std::uint64_t device_ = 0, inode_ = 0;
  std::int64_t modified_ns_ = 0;
};

}  // namespace scalevec
