#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>

namespace scalevec {

/// A regular file, open to be copied. E_PATH for anything else, without blocking on it.
class CopySource {
 public:
  /// follow: whether the last part of the path may be a link.
  CopySource(const std::filesystem::path& path, bool follow);
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
  void check_unchanged() const;
  void copy_range(int descriptor, const std::filesystem::path& target, std::uint64_t begin, std::uint64_t end,
                  const std::function<void(std::uint64_t bytes)>& copied) const;

  std::filesystem::path path_;
  int descriptor_ = -1;
  std::uint64_t size_ = 0;
  std::int64_t modified_ns_ = 0;
};

}  // namespace scalevec
