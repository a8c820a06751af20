#include <scalevec/core/store/trace_folder.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <map>
#include <mutex>
#include <system_error>

#include <fmt/format.h>

#include <scalevec/core/error.h>

namespace scalevec {
namespace {

namespace fs = std::filesystem;

// Two writers of one process share its locks on files.
std::mutex& taken_mutex() {
  static std::mutex mutex;
  return mutex;
}
std::map<std::string, pid_t>& taken() {  // by whom: a forked child has a copy, and no locks
  static std::map<std::string, pid_t> folders;
  return folders;
}

[[noreturn]] void refuse_second(const fs::path& folder, long owner) {
  fail(ErrorCode::state,
       fmt::format(
           "the trace in '{}' is being written by process {}; end that one first, or choose another path",
           printable(folder.string()), owner),
       {.file = folder.string(), .expected = "no other writer", .found = fmt::format("process {}", owner)});
}

}  // namespace

fs::path live_folder(const fs::path& path) { return fs::path(path) += ".live"; }
fs::path trace_path(const fs::path& given) {
  const fs::path path = given.has_filename() ? given : given.parent_path();
  return path.extension() == ".live" ? fs::path(path).replace_extension() : path;
}
fs::path manifest_path(const fs::path& folder) { return folder / "trace.json"; }
fs::path journal_path(const fs::path& folder, std::int64_t number) {
  return folder / fmt::format("journal-{:06}", number);
}
std::string segment_name(std::int64_t number, std::uint32_t rows_crc) {
  return fmt::format("segment-{:06}-{:08x}.h5", number, rows_crc);
}

TraceLock::TraceLock(const fs::path& folder) {
  const fs::path file = folder / "lock";
  const auto refuse = [&](std::string_view what, int error) {
    fail(ErrorCode::io,
         fmt::format("{} '{}': {}. A trace needs a file system with locks: choose a path on a local disk.",
                     what, printable(file.string()), std::generic_category().message(error)),
         {.file = file.string()});
  };
  const auto key_of = [](const struct stat& there) {
    return fmt::format("{}:{}", there.st_dev, there.st_ino);
  };
  const std::lock_guard guard(taken_mutex());
  struct stat there {};
  // Before it is opened: closing it again would give up the lock of the writer that has it.
  if (::stat(file.c_str(), &there) == 0) {
    const auto found = taken().find(key_of(there));
    if (found != taken().end() && found->second == ::getpid()) refuse_second(folder, found->second);
  }
  descriptor_ = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (descriptor_ < 0) refuse("opening", errno);
  struct flock region {};
  region.l_type = F_WRLCK;
  region.l_whence = SEEK_SET;
  if (::fcntl(descriptor_, F_SETLK, &region) != 0 || ::fstat(descriptor_, &there) != 0) {
    const int error = errno;
    const bool other = (error == EAGAIN || error == EACCES) && ::fcntl(descriptor_, F_GETLK, &region) == 0;
    ::close(descriptor_);
    if (other) refuse_second(folder, region.l_pid);
    refuse("locking", error);
  }
  key_ = key_of(there);
  taken()[key_] = ::getpid();
}

TraceLock::~TraceLock() {
  const std::lock_guard guard(taken_mutex());
  taken().erase(key_);
  ::close(descriptor_);
}

}  // namespace scalevec
