#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>

namespace scalevec {

/// Whether a commit may take the place of what has the name already.
enum class Replace {
  no,     // only an empty file, or an empty folder, may stand there
  files,  // any regular file; for folders the same as `no`
};

/// A file that appears whole or not at all, after a kill, a full disk or a power cut.
///
/// Written beside its name, then synced, renamed, and its folder synced. What a dead writer left is removed
/// by the next one in the same folder: a leftover is told from a living writer's file by the lock that dies
/// with its process.
class AtomicFile {
 public:
  /// Makes the temporary file. E_PATH if the target is what may not be replaced, or its folder cannot be
  /// written; E_IO if the system refuses otherwise.
  AtomicFile(std::filesystem::path target, Replace replace);
  ~AtomicFile();  // removes what was not committed
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  /// The temporary file, for writers that open it by name.
  const std::filesystem::path& path() const { return temporary_; }
  int descriptor() const { return descriptor_; }

  /// At the end of what was written so far; or over bytes already there.
  void append(std::span<const std::byte> bytes);
  void write_at(std::uint64_t begin, std::span<const std::byte> bytes);
  /// To the disk; called by commit.
  void sync();
  /// Once, last: E_IO leaves the target as it was, except after the rename itself (then the message says so).
  void commit();

 private:
  std::filesystem::path target_, temporary_;
  Replace replace_;
  int descriptor_ = -1;
  std::uint64_t size_ = 0;
};

/// The same for a folder with all that is in it.
class AtomicFolder {
 public:
  /// E_PATH if the target exists and is no empty folder.
  explicit AtomicFolder(std::filesystem::path target);
  ~AtomicFolder();
  AtomicFolder(const AtomicFolder&) = delete;
  AtomicFolder& operator=(const AtomicFolder&) = delete;

  /// The temporary folder; whoever makes files in it syncs them (see write_synced).
  const std::filesystem::path& path() const { return temporary_; }
  /// Syncs every folder inside, renames, syncs the parent.
  void commit();

 private:
  std::filesystem::path target_, temporary_;
  int descriptor_ = -1;
};

/// Makes or replaces `target` with `bytes`, as AtomicFile.
void write_atomically(const std::filesystem::path& target, std::span<const std::byte> bytes, Replace replace);
void write_atomically(const std::filesystem::path& target, std::string_view text, Replace replace);

/// Fills [begin, begin + bytes.size()) of an open file; short writes are continued. E_IO names `path`.
void write_all(int descriptor, std::uint64_t begin, std::span<const std::byte> bytes,
               const std::filesystem::path& path);
/// fsync. A failed sync is never tried again: the system may have dropped the pages and would then report
/// success.
void sync_file(int descriptor, const std::filesystem::path& path);

/// The same for the names in a folder (empty: the current one); nothing where the file system knows no such
/// sync.
void sync_folder(const std::filesystem::path& folder);

/// E_PATH unless nothing, an empty file or folder, or what `replace` allows has that name; a link is never
/// replaced.
void require_free(const std::filesystem::path& target, Replace replace);

/// Removes what writers that died left in `folder`; the number removed. Those still at work are let be.
std::size_t clean_leftovers(const std::filesystem::path& folder);

}  // namespace scalevec
