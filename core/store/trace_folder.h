#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace scalevec {

std::filesystem::path live_folder(const std::filesystem::path& path);  // "run.h5" -> "run.h5.live"
std::filesystem::path trace_path(const std::filesystem::path& given);  // and back
std::filesystem::path manifest_path(const std::filesystem::path& folder);
std::filesystem::path journal_path(const std::filesystem::path& folder, std::int64_t number);
std::string segment_name(std::int64_t number, std::uint32_t rows_crc);

/// The right to write in a live folder: one process, and one writer in it. It ends with its process, and is
/// not its children's.
class TraceLock {
 public:
  /// E_STATE names the process that has it; E_IO where the file system knows no locks.
  explicit TraceLock(const std::filesystem::path& folder);
  ~TraceLock();
  TraceLock(const TraceLock&) = delete;
  TraceLock& operator=(const TraceLock&) = delete;

 private:
  std::string key_;
  int descriptor_ = -1;
};

}  // namespace scalevec
