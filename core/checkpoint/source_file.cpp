#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include <fmt/format.h>

#include <scalevec/core/checkpoint/tensor_file.h>
#include <scalevec/core/error.h>

namespace scalevec {
namespace {

constexpr int open_flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
constexpr int most_links = 16;

std::string system_text(int error) { return std::error_code(error, std::generic_category()).message(); }

std::string_view kind(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a FIFO";
  if (S_ISCHR(mode)) return "a character device";
  if (S_ISBLK(mode)) return "a block device";
  if (S_ISSOCK(mode)) return "a socket";
  if (S_ISLNK(mode)) return "a symbolic link";
  return S_ISREG(mode) ? "a regular file" : "something that is no file";
}

std::int64_t nanoseconds(const struct timespec& time) {
  return static_cast<std::int64_t>(time.tv_sec) * 1'000'000'000 + time.tv_nsec;
}

[[noreturn]] void refuse_path(const std::filesystem::path& path, std::string_view key, std::string_view why,
                              std::string_view found) {
  fail(ErrorCode::path, fmt::format("opening a model file: {}", why),
       {.file = path.string(),
        .key = std::string(key),
        .expected = "a regular file",
        .found = std::string(found)});
}

[[noreturn]] void refuse_open(const std::filesystem::path& path, std::string_view key, int error) {
  const bool no_such = error == ENOENT || error == ENOTDIR || error == ELOOP || error == ENAMETOOLONG;
  if (no_such) refuse_path(path, key, system_text(error), "no file");
  fail(ErrorCode::io, fmt::format("opening a model file: {}", system_text(error)),
       {.file = path.string(), .key = std::string(key)});
}

void require_regular(const std::filesystem::path& path, std::string_view key, const struct stat& status) {
  if (!S_ISREG(status.st_mode))
    refuse_path(path, key, fmt::format("this is {}, not a file", kind(status.st_mode)), kind(status.st_mode));
}

void require_no_nul(const std::filesystem::path& path, std::string_view key) {
  // The system would silently take the part before it.
  if (path.native().find('\0') != std::string::npos)
    refuse_path(path, key, "the path has a NUL byte", "a NUL byte");
}

std::filesystem::path absolute(const std::filesystem::path& path, std::string_view key) {
  std::error_code error;  // of a working folder that was removed
  auto result = std::filesystem::absolute(path, error);
  if (error) refuse_open(path, key, error.value());
  return result;
}

struct Descriptor {
  int value = -1;
  ~Descriptor() {
    if (value >= 0) ::close(value);
  }
};

}  // namespace

SourceFile::SourceFile(const std::filesystem::path& path) : SourceFile() {  // so that a throw below closes
  path_ = path;
  require_no_nul(path, {});
  absolute_ = absolute(path, {});
  // Asked before opening, because opening a device or a FIFO can have effects; asked again by adopt.
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) refuse_open(path, {}, errno);
  require_regular(path, {}, status);
  adopt(::open(path.c_str(), open_flags), {});
}

SourceFile SourceFile::inside(const std::filesystem::path& folder, std::string_view name, bool allow_links,
                              std::string_view key) {
  SourceFile file;
  file.path_ = folder / name;
  require_no_nul(file.path_, key);
  file.absolute_ = absolute(file.path_, key);
  if (name.empty() || name == "." || name == ".." || name.find_first_of("/\\") != std::string_view::npos)
    refuse_path(file.path_, key, "a plain file name is needed here, without folders", name);
  if (allow_links) {
    struct stat status {};
    if (::stat(file.path_.c_str(), &status) != 0) refuse_open(file.path_, key, errno);
    require_regular(file.path_, key, status);
    file.adopt(::open(file.path_.c_str(), open_flags), key);
    return file;
  }

  const Descriptor directory{::open(folder.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECTORY)};
  if (directory.value < 0) refuse_open(folder, key, errno);
  std::string step(name);
  for (int links = 0; links < most_links; ++links) {
    struct stat status {};
    if (::fstatat(directory.value, step.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0)
      refuse_open(file.path_, key, errno);
    if (!S_ISLNK(status.st_mode)) {
      require_regular(file.path_, key, status);
      // Whoever swaps the file for a link now gets ELOOP, not a file from elsewhere.
      const int descriptor = ::openat(directory.value, step.c_str(), open_flags | O_NOFOLLOW);
      if (descriptor < 0 && errno == ELOOP) continue;
      file.adopt(descriptor, key);
      return file;
    }
    std::error_code error;
    const auto target = std::filesystem::read_symlink(folder / step, error);
    const auto home = std::filesystem::canonical(folder, error);
    const auto resolved = std::filesystem::weakly_canonical(folder / target.parent_path(), error);
    if (error || resolved != home) {
      refuse_path(file.path_, key,
                  "a symbolic link leaves the model's folder; allow links if the folder is a hub cache that "
                  "you trust",
                  fmt::format("a link to {}", printable(target.string())));
    }
    step = target.filename().string();
  }
  refuse_path(file.path_, key, "too many symbolic links", fmt::format("{} links", most_links));
}

void SourceFile::adopt(int descriptor, std::string_view key) {
  if (descriptor < 0) refuse_open(path_, key, errno);
  descriptor_ = descriptor;
  struct stat status {};
  if (::fstat(descriptor_, &status) != 0) refuse_open(path_, key, errno);
  require_regular(path_, key, status);
  size_ = static_cast<std::uint64_t>(status.st_size);
  device_ = status.st_dev;
  inode_ = status.st_ino;
  modified_ns_ = nanoseconds(status.st_mtim);
}

SourceFile::~SourceFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

SourceFile::SourceFile(SourceFile&& other) noexcept { *this = std::move(other); }

SourceFile& SourceFile::operator=(SourceFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(absolute_, other.absolute_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(size_, other.size_);
  std::swap(device_, other.device_);
  std::swap(inode_, other.inode_);
  std::swap(modified_ns_, other.modified_ns_);
  return *this;
}

void SourceFile::check_unchanged(std::string_view tensor, std::uint64_t begin) const {
  const auto refuse = [&](ErrorCode code, std::string_view what, std::string found, std::string expected) {
    fail(code, fmt::format("reading a model file: it {} since it was opened; open it again", what),
         {.file = path_.string(),
          .tensor = std::string(tensor),
          .offset = begin,
          .expected = std::move(expected),
          .found = std::move(found)});
  };
  struct stat open_file {
  }, named{};
  if (::fstat(descriptor_, &open_file) != 0)
    refuse(ErrorCode::io, "cannot be asked for its size", system_text(errno), "");
  const auto size = static_cast<std::uint64_t>(open_file.st_size);
  if (size < size_)
    refuse(ErrorCode::io, "has shrunk", fmt::format("{} bytes", size), fmt::format("{} bytes", size_));
  if (size != size_)
    refuse(ErrorCode::state, "has grown", fmt::format("{} bytes", size), fmt::format("{} bytes", size_));
  if (nanoseconds(open_file.st_mtim) != modified_ns_)
    refuse(ErrorCode::state, "was written to", "another modification time", "an unchanged file");
  if (::stat(absolute_.c_str(), &named) != 0 || named.st_dev != device_ || named.st_ino != inode_)
    refuse(ErrorCode::state, "was replaced or removed", "another file under its name",
           "the file that was opened");
}

void SourceFile::read(std::uint64_t begin, std::span<std::byte> out, std::string_view tensor) const {
  if (begin > size_ || out.size() > size_ - begin) {
    fail(ErrorCode::trunc, "reading a model file: the range ends after the file",
         {.file = path_.string(),
          .tensor = std::string(tensor),
          .offset = begin,
          .expected = fmt::format("{} bytes from there", out.size()),
          .found = fmt::format("{} bytes", begin > size_ ? 0 : size_ - begin)});
  }
  check_unchanged(tensor, begin);
  for (std::size_t done = 0; done < out.size();) {
    constexpr std::size_t most = std::size_t{1} << 30;
    const ssize_t got = ::pread(descriptor_, out.data() + done, std::min(out.size() - done, most),
                                static_cast<off_t>(begin + done));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      fail(ErrorCode::io,
           fmt::format("reading a model file: {}",
                       got == 0 ? "it has shrunk since it was opened" : system_text(errno)),
           {.file = path_.string(),
            .tensor = std::string(tensor),
            .offset = begin + done,
            .expected = fmt::format("{} more bytes", out.size() - done),
            .found = got == 0 ? "the end of the file" : "an error of the system"});
    }
    done += static_cast<std::size_t>(got);
  }
  // A writer that came between the first check and the last byte would leave a mixture of both files.
  check_unchanged(tensor, begin);
}

}  // namespace scalevec
