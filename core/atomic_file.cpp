#include <scalevec/core/atomic_file.h>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <system_error>
#include <utility>

#include <fmt/format.h>

#include <scalevec/core/error.h>

namespace scalevec {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view leftover_suffix = ".scalevec-tmp";
constexpr int attempts = 100;

std::string reason(int error) { return std::generic_category().message(error); }

// What the user can mend by another path is E_PATH; what the system could not do is E_IO.
[[noreturn]] void refuse(std::string_view what, const fs::path& path, int error) {
  const bool place = error == EACCES || error == EPERM || error == EROFS || error == ENOENT ||
                     error == ENOTDIR || error == ENAMETOOLONG || error == ELOOP || error == EEXIST ||
                     error == ENOTEMPTY || error == EISDIR;
  fail(place ? ErrorCode::path : ErrorCode::io,
       fmt::format("{} '{}': {}{}", what, printable(path.string()), reason(error),
                   place ? ". Choose another place to write to." : ""),
       {.file = path.string(), .found = reason(error)});
}

fs::path parent_of(const fs::path& target) {
  const fs::path parent = target.parent_path();
  return parent.empty() ? fs::path(".") : parent;
}

// A trailing slash would make the name empty.
fs::path without_slash(fs::path path) {
  return path.has_filename() || !path.has_parent_path() ? path : path.parent_path();
}

fs::path temporary_name(const fs::path& target) {
  static std::atomic<unsigned> counter{0};
  std::string name = target.filename().string();
  if (name.empty() || name == "." || name == "..") {
    fail(ErrorCode::path,
         fmt::format("cannot write to '{}': it names no file or folder", printable(target.string())),
         {.file = target.string()});
  }
  name.resize(std::min<std::size_t>(name.size(), 128));  // the whole stays below the usual limit of 255
  return parent_of(target) / fmt::format(".{}.{}-{}{}", name, ::getpid(), counter++, leftover_suffix);
}

bool is_leftover_name(std::string_view name) {
  return name.size() > leftover_suffix.size() && name.front() == '.' && name.ends_with(leftover_suffix);
}

// Systems without locks (some network file systems) are `unknown`: they do not hinder a writer, and stop a
// cleaner.
enum class Lock { ours, taken, unknown };
Lock try_lock(int descriptor, bool folder) {
#ifdef F_OFD_SETLK
  // Not flock for files: HDF5 takes that one itself when it opens the same file.
  if (!folder) {
    struct flock region {};
    region.l_type = F_WRLCK;
    region.l_whence = SEEK_SET;
    if (::fcntl(descriptor, F_OFD_SETLK, &region) == 0) return Lock::ours;
    return errno == EAGAIN || errno == EACCES ? Lock::taken : Lock::unknown;
  }
#endif
  (void)folder;
  if (::flock(descriptor, LOCK_EX | LOCK_NB) == 0) return Lock::ours;
  return errno == EWOULDBLOCK ? Lock::taken : Lock::unknown;
}

// A cleaner may have taken the file between its making and its locking.
bool still_there(int descriptor, const fs::path& path) {
  struct stat mine {
  }, named{};
  return ::fstat(descriptor, &mine) == 0 && ::lstat(path.c_str(), &named) == 0 &&
         mine.st_dev == named.st_dev && mine.st_ino == named.st_ino;
}

void close_checked(int& descriptor, const fs::path& path) {
  const int closing = std::exchange(descriptor, -1);
  // Network file systems report a full disk here.
  if (::close(closing) != 0 && errno != EINTR) refuse("closing", path, errno);
}

// Rename that never takes the place of a file which came after require_free.
void rename_to(const fs::path& from, const fs::path& to, Replace replace) {
#ifdef RENAME_NOREPLACE
  struct stat there {};
  if (replace == Replace::no && ::lstat(to.c_str(), &there) != 0 && errno == ENOENT) {
    if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0) return;
    if (errno != EINVAL && errno != ENOSYS) refuse("renaming to", to, errno);
  }
#endif
  require_free(to, replace);
  if (::rename(from.c_str(), to.c_str()) != 0) refuse("renaming to", to, errno);
}

}  // namespace

void require_free(const fs::path& target, Replace replace) {
  struct stat there {};
  if (::lstat(target.c_str(), &there) != 0) {
    if (errno == ENOENT) return;
    refuse("looking at the destination", target, errno);
  }
  const auto taken = [&](std::string_view what) {
    fail(ErrorCode::path,
         fmt::format(
             "the destination '{}' is {}; nothing is overwritten. Choose another name or remove it first.",
             printable(target.string()), what),
         {.file = target.string(),
          .expected = "a new name, or an empty file or folder",
          .found = std::string(what)});
  };
  if (S_ISLNK(there.st_mode)) taken("a link");
  if (S_ISREG(there.st_mode)) {
    if (there.st_size != 0 && replace == Replace::no) taken("a file that is not empty");
  } else if (S_ISDIR(there.st_mode)) {
    std::error_code error;
    const bool empty = fs::is_empty(target, error);
    if (error) refuse("looking into the destination", target, error.value());
    if (!empty) taken("a folder that is not empty");
  } else {
    taken("no regular file");
  }
}

void write_all(int descriptor, std::uint64_t begin, std::span<const std::byte> bytes, const fs::path& path) {
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(descriptor, bytes.data(), bytes.size(), static_cast<off_t>(begin));
    if (written < 0) {
      if (errno == EINTR) continue;
      refuse("writing", path, errno);
    }
    if (written == 0) refuse("writing", path, ENOSPC);
    begin += static_cast<std::uint64_t>(written);
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

void sync_file(int descriptor, const fs::path& path) {
  if (::fsync(descriptor) != 0) refuse("syncing", path, errno);
}

void sync_folder(const fs::path& folder) {
  const int descriptor = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) refuse("opening to sync", folder, errno);
  const int status = ::fsync(descriptor);
  const int error = errno;
  ::close(descriptor);
  if (status != 0 && error != EINVAL && error != ENOTSUP) refuse("syncing the folder", folder, error);
}

AtomicFile::AtomicFile(fs::path target, Replace replace) : target_(std::move(target)), replace_(replace) {
  clean_leftovers(parent_of(target_));
  require_free(target_, replace_);
  struct stat there {};
  if (::lstat(target_.c_str(), &there) == 0 && S_ISDIR(there.st_mode)) {
    fail(ErrorCode::path,
         fmt::format("the destination '{}' is a folder; name a file", printable(target_.string())),
         {.file = target_.string(), .expected = "a file name", .found = "a folder"});
  }
  for (int i = 0; i < attempts && descriptor_ < 0; ++i) {
    temporary_ = temporary_name(target_);
    descriptor_ = ::open(temporary_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor_ < 0) {
      if (errno == EEXIST) continue;
      refuse("making a file beside", target_, errno);
    }
    if (try_lock(descriptor_, false) == Lock::taken || !still_there(descriptor_, temporary_)) {
      ::close(std::exchange(descriptor_, -1));
    }
  }
  if (descriptor_ < 0) refuse("making a file beside", target_, EEXIST);
}

AtomicFile::~AtomicFile() {
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
  if (descriptor_ >= 0) ::close(descriptor_);
}

void AtomicFile::append(std::span<const std::byte> bytes) {
  write_all(descriptor_, size_, bytes, target_);
  size_ += bytes.size();
}

void AtomicFile::write_at(std::uint64_t begin, std::span<const std::byte> bytes) {
  write_all(descriptor_, begin, bytes, target_);
  size_ = std::max(size_, begin + bytes.size());
}

void AtomicFile::sync() { sync_file(descriptor_, target_); }

void AtomicFile::commit() {
  sync();
  // The lock goes with the descriptor, so it stays open until the name is ours.
  rename_to(temporary_, target_, replace_);
  temporary_.clear();
  sync_folder(parent_of(target_));
  close_checked(descriptor_, target_);
}

AtomicFolder::AtomicFolder(fs::path target) : target_(without_slash(std::move(target))) {
  clean_leftovers(parent_of(target_));
  require_free(target_, Replace::no);
  struct stat there {};
  if (::lstat(target_.c_str(), &there) == 0 && !S_ISDIR(there.st_mode)) {
    fail(ErrorCode::path,
         fmt::format("the destination '{}' is a file; name a folder", printable(target_.string())),
         {.file = target_.string(), .expected = "a folder name", .found = "a file"});
  }
  for (int i = 0; i < attempts && descriptor_ < 0; ++i) {
    temporary_ = temporary_name(target_);
    if (::mkdir(temporary_.c_str(), 0777) != 0) {
      if (errno == EEXIST) continue;
      refuse("making a folder beside", target_, errno);
    }
    descriptor_ = ::open(temporary_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor_ < 0 && errno != ENOENT) {
      const int error = errno;
      ::rmdir(temporary_.c_str());
      refuse("opening a folder beside", target_, error);
    }
    if (descriptor_ >= 0 &&
        (try_lock(descriptor_, true) == Lock::taken || !still_there(descriptor_, temporary_))) {
      ::close(std::exchange(descriptor_, -1));
    }
  }
  if (descriptor_ < 0) refuse("making a folder beside", target_, EEXIST);
}

AtomicFolder::~AtomicFolder() {
  std::error_code ignored;
  if (!temporary_.empty()) fs::remove_all(temporary_, ignored);
  if (descriptor_ >= 0) ::close(descriptor_);
}

void AtomicFolder::commit() {
  std::error_code error;
  for (fs::recursive_directory_iterator entry(temporary_, error), end; !error && entry != end;
       entry.increment(error)) {
    if (fs::is_directory(entry->symlink_status(error))) sync_folder(entry->path());
  }
  if (error) refuse("looking through", temporary_, error.value());
  sync_file(descriptor_, temporary_);
  rename_to(temporary_, target_, Replace::no);
  temporary_.clear();
  sync_folder(parent_of(target_));
  close_checked(descriptor_, target_);
}

void write_atomically(const fs::path& target, std::span<const std::byte> bytes, Replace replace) {
  AtomicFile file(target, replace);
  file.append(bytes);
  file.commit();
}

void write_atomically(const fs::path& target, std::string_view text, Replace replace) {
  write_atomically(target, std::as_bytes(std::span(text.data(), text.size())), replace);
}

std::size_t clean_leftovers(const fs::path& folder) {
  std::size_t removed = 0;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    const fs::path path = entry->path();
    if (!is_leftover_name(path.filename().string())) continue;
    struct stat there {};
    if (::lstat(path.c_str(), &there) != 0) continue;
    const bool is_folder = S_ISDIR(there.st_mode);
    if (!is_folder && !S_ISREG(there.st_mode)) continue;
    const int flags = (is_folder ? O_RDONLY | O_DIRECTORY : O_RDWR) | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    const int descriptor = ::open(path.c_str(), flags);
    if (descriptor < 0) continue;
    if (try_lock(descriptor, is_folder) == Lock::ours && still_there(descriptor, path)) {
      std::error_code gone;
      fs::remove_all(path, gone);
      if (!gone) ++removed;
    }
    ::close(descriptor);
  }
  return removed;
}

}  // namespace scalevec
