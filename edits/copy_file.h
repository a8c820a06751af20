#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>

namespace scalevec {

/// A regular file, open to be copied. E_PATH for anything else, without blocking on it.
class CopySource {
 public:
  /// Wherever the path leads, links included.
  explicit CopySource(const std::filesystem::path& path);
  /// `name` below `folder`. A link in it is refused, so that whoever swaps a part of it for one meanwhile has
  /// no file from elsewhere copied.
  CopySource(const std::filesystem::path& folder, const std::filesystem::path& name);
  ~CopySource();
  CopySource(const CopySource&) = delete;
  CopySource& operator=(const CopySource&) = delete;

  std::uint64_t size() const { return size_; }

  /// Writes the whole file to an empty one: by the file system where it can share or move the blocks itself,
  /// else through memory; holes stay holes. `copied` hears of every piece. E_STATE if the source changes
  /// meanwhile; E_IO if the system refuses, naming `target` where that is at fault.
  void copy_to(int descriptor, const std::filesystem::path& target,
               const std::function<void(std::uint64_t bytes)>& copied) const;

 private:
  void adopt(int descriptor);
  void check_unchanged() const;
  void copy_range(int descriptor, const std::filesystem::path& target, std::uint64_t begin, std::uint64_t end,
                  const std::function<void(std::uint64_t bytes)>& copied) const;

  std::filesystem::path path_;
  int descriptor_ = -1;
  std::uint64_t size_ = 0;
  std::int64_t modified_ns_ = 0;
};

}  // namespace scalevec
