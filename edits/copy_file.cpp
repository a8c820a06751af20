#include <scalevec/edits/copy_file.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <iterator>
#include <system_error>
#include <vector>

#include <fmt/format.h>

#include <scalevec/core/atomic_file.h>
#include <scalevec/core/error.h>

namespace scalevec {
namespace {

constexpr std::uint64_t piece = std::uint64_t{64} << 20;
constexpr int open_flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
constexpr std::size_t buffer_bytes = std::size_t{4} << 20;

[[noreturn]] void refuse(ErrorCode code, std::string_view what, const std::filesystem::path& path,
                         int error) {
  const std::string reason = std::generic_category().message(error);
  fail(code, fmt::format("{} '{}': {}", what, printable(path.string()), reason),
       {.file = path.string(), .found = reason});
}

std::int64_t nanoseconds(const struct timespec& time) {
  return static_cast<std::int64_t>(time.tv_sec) * 1'000'000'000 + time.tv_nsec;
}

// What says that the system cannot copy between these two files, not that copying failed.
bool must_copy_by_hand(int error) {
  return error == EXDEV || error == EINVAL || error == ENOSYS || error == EOPNOTSUPP || error == EPERM ||
         error == ETXTBSY;
}

}  // namespace

CopySource::CopySource(const std::filesystem::path& path) : path_(path) {
  adopt(::open(path.c_str(), open_flags));
}

CopySource::CopySource(const std::filesystem::path& folder, const std::filesystem::path& name)
    : path_(folder / name) {
  int at = ::open(folder.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECTORY);
  for (auto part = name.begin(); at >= 0 && part != name.end(); ++part) {
    const bool last = std::next(part) == name.end();
    const int inner =
        ::openat(at, part->c_str(), O_NOFOLLOW | (last ? open_flags : O_RDONLY | O_CLOEXEC | O_DIRECTORY));
    const int error = errno;
    ::close(at);
    at = inner;
    errno = error;
  }
  adopt(at);
}

void CopySource::adopt(int descriptor) {
  if (descriptor < 0) refuse(errno == EIO ? ErrorCode::io : ErrorCode::path, "opening to copy", path_, errno);
  descriptor_ = descriptor;
  struct stat status {};
  if (::fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(descriptor_);
    fail(ErrorCode::path,
         fmt::format("'{}' is no regular file and cannot be copied; take it out of the folder first",
                     printable(path_.string())),
         {.file = path_.string(), .expected = "a regular file"});
  }
  size_ = static_cast<std::uint64_t>(status.st_size);
  modified_ns_ = nanoseconds(status.st_mtim);
}

CopySource::~CopySource() { ::close(descriptor_); }

void CopySource::check_unchanged() const {
  struct stat status {};
  if (::fstat(descriptor_, &status) != 0) refuse(ErrorCode::io, "looking at", path_, errno);
  if (static_cast<std::uint64_t>(status.st_size) == size_ && nanoseconds(status.st_mtim) == modified_ns_)
    return;
  fail(ErrorCode::state,
       fmt::format("'{}' changed while it was copied; wait until its writer is done, then export again",
                   printable(path_.string())),
       {.file = path_.string(), .expected = "an unchanged file"});
}

void CopySource::copy_range(int descriptor, const std::filesystem::path& target, std::uint64_t begin,
                            std::uint64_t end, const std::function<void(std::uint64_t)>& copied) const {
  bool by_hand = false;
  std::vector<std::byte> buffer;
  while (begin < end) {
    const auto most = static_cast<std::size_t>(std::min(end - begin, piece));
    std::uint64_t done = 0;
#ifdef __linux__
    if (!by_hand) {
      auto from = static_cast<off_t>(begin), to = static_cast<off_t>(begin);
      const ssize_t moved = ::copy_file_range(descriptor_, &from, descriptor, &to, most, 0);
      if (moved < 0 && errno == EINTR) continue;
      if (moved < 0 && !must_copy_by_hand(errno)) refuse(ErrorCode::io, "copying to", target, errno);
      by_hand = moved <= 0;  // 0: some file systems that make up their content
      done = moved > 0 ? static_cast<std::uint64_t>(moved) : 0;
    }
#else
    by_hand = true;
#endif
    if (by_hand) {
      buffer.resize(buffer_bytes);
      const ssize_t got =
          ::pread(descriptor_, buffer.data(), std::min(most, buffer.size()), static_cast<off_t>(begin));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) refuse(ErrorCode::io, "reading", path_, errno);
      if (got == 0) {
        check_unchanged();
        refuse(ErrorCode::io, "reading", path_, EIO);
      }
      done = static_cast<std::uint64_t>(got);
      write_all(descriptor, begin, std::span(buffer.data(), static_cast<std::size_t>(got)), target);
    }
    begin += done;
    copied(done);
  }
}

void CopySource::copy_to(int descriptor, const std::filesystem::path& target,
                         const std::function<void(std::uint64_t)>& copied) const {
  for (std::uint64_t at = 0; at < size_;) {
    std::uint64_t data = at, hole = size_;
#ifdef SEEK_DATA
    const off_t found = ::lseek(descriptor_, static_cast<off_t>(at), SEEK_DATA);
    if (found >= 0) {
      data = static_cast<std::uint64_t>(found);
      const off_t after = ::lseek(descriptor_, found, SEEK_HOLE);
      if (after >= 0) hole = std::min(static_cast<std::uint64_t>(after), size_);
    } else if (errno == ENXIO) {  // nothing but a hole from here on
      data = size_;
    }
#endif
    if (data > at) copied(std::min(data, size_) - at);
    if (data < hole) copy_range(descriptor, target, data, hole, copied);
    at = std::max(hole, data);
  }
  if (::ftruncate(descriptor, static_cast<off_t>(size_)) != 0) refuse(ErrorCode::io, "sizing", target, errno);
  check_unchanged();
}

}  // namespace scalevec
