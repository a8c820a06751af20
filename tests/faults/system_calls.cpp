// A program's own definitions come before those of the C library, also for the calls of shared libraries: so
// these stand between everything in the test program and the system.
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "faults/system_calls.h"

namespace scalevec::testing {

Fault fault;
std::uint64_t calls = 0;
bool recording = false;
std::vector<Call> recorded;

namespace {

std::map<int, std::string>& names() {
  static std::map<int, std::string> open_files;
  return open_files;
}

template <class Function>
Function* real(const char* name) {
  return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}

bool fails(Fault::Kind kind) { return kind == Fault::Kind::fail || kind == Fault::Kind::half_fail; }

// What to do now: none, fail or half; does not return where the process is to end.
Fault::Kind next_call(const char* name) {
  static std::string failed;
  if (!fault.enabled) return Fault::Kind::none;
  const std::uint64_t number = ++calls;
  if (number == fault.at) {
    if (fault.kind == Fault::Kind::kill) ::_exit(killed_status);
    if (fails(fault.kind)) failed = name;
    return fault.kind;
  }
  if (!fault.lasting || number < fault.at || number > fault.until) return Fault::Kind::none;
  if (fails(fault.kind) && failed == name) return Fault::Kind::fail;
  if (fault.kind == Fault::Kind::brief) return fault.kind;
  return Fault::Kind::none;
}

size_t part_of(size_t size, Fault::Kind kind) {
  if (kind == Fault::Kind::none) return size;
  return kind == Fault::Kind::brief ? (size + 1) / 2
                                    : size / 2;  // a call that says 0 would be the disk's end
}

void record(Call call) {
  if (recording) recorded.push_back(std::move(call));
}

// What is open keeps its file, under the new name.
void record_rename(const std::string& from, const std::string& to) {
  for (auto& [descriptor, name] : names()) {
    if (name == from || name.starts_with(from + "/")) name.replace(0, from.size(), to);
  }
  record({Call::Kind::rename, from, to, 0, {}});
}

std::string name_of(int descriptor) {
  const auto found = names().find(descriptor);
  return found == names().end() ? std::string() : found->second;
}

// Of a folder that was opened below another.
std::string path_of(int descriptor) {
  std::string path(4096, '\0');
  const ssize_t length =
      ::readlink(("/proc/self/fd/" + std::to_string(descriptor)).c_str(), path.data(), path.size());
  path.resize(length > 0 ? static_cast<size_t>(length) : 0);
  return path;
}

// -1 and errno, or nothing to be done instead of the call.
bool refuse(const char* name) {
  const Fault::Kind kind = next_call(name);
  if (kind == Fault::Kind::half) ::_exit(killed_status);
  if (!fails(kind)) return false;
  errno = fault.error;
  return true;
}

int open_counted(const char* path, int flags, mode_t mode) {
  static auto* const call = real<int(const char*, int, ...)>("open");
  const bool writes = (flags & (O_WRONLY | O_RDWR | O_CREAT)) != 0;
  if (writes && refuse("open")) return -1;
  const int descriptor = call(path, flags, mode);
  if (descriptor >= 0 && recording) {
    names()[descriptor] = path;
    if ((flags & O_CREAT) != 0) record({Call::Kind::create, path, {}, 0, {}});
    if ((flags & O_TRUNC) != 0) record({Call::Kind::size, path, {}, 0, {}});
  }
  return descriptor;
}

}  // namespace
}  // namespace scalevec::testing

using namespace scalevec::testing;

extern "C" {

int open(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = (flags & O_CREAT) != 0 ? static_cast<mode_t>(va_arg(arguments, int)) : 0;
  va_end(arguments);
  return open_counted(path, flags, mode);
}

int open64(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = (flags & O_CREAT) != 0 ? static_cast<mode_t>(va_arg(arguments, int)) : 0;
  va_end(arguments);
  return open_counted(path, flags, mode);
}

ssize_t pwrite(int descriptor, const void* bytes, size_t size, off_t begin) {
  static auto* const call = real<ssize_t(int, const void*, size_t, off_t)>("pwrite");
  const Fault::Kind kind = next_call("write");
  if (kind == Fault::Kind::fail) {
    errno = fault.error;
    return -1;
  }
  const ssize_t done = call(descriptor, bytes, part_of(size, kind), begin);
  if (kind == Fault::Kind::half) ::_exit(killed_status);
  if (kind == Fault::Kind::half_fail) {
    errno = fault.error;
    return -1;
  }
  if (done > 0) {
    record({Call::Kind::write,
            name_of(descriptor),
            {},
            static_cast<std::uint64_t>(begin),
            std::string(static_cast<const char*>(bytes), static_cast<size_t>(done))});
  }
  return done;
}

ssize_t copy_file_range(int from, off_t* from_at, int to, off_t* to_at, size_t size, unsigned flags) {
  static auto* const call = real<ssize_t(int, off_t*, int, off_t*, size_t, unsigned)>("copy_file_range");
  const Fault::Kind kind = next_call("copy_file_range");
  if (kind == Fault::Kind::fail) {
    errno = fault.error;
    return -1;
  }
  const off_t begin = *to_at;
  const ssize_t done = call(from, from_at, to, to_at, part_of(size, kind), flags);
  if (kind == Fault::Kind::half) ::_exit(killed_status);
  if (kind == Fault::Kind::half_fail) {
    errno = fault.error;
    return -1;
  }
  if (done > 0 && recording) {
    std::string bytes(static_cast<size_t>(done), '\0');
    if (::pread(from, bytes.data(), bytes.size(), *from_at - done) != done) ::abort();
    record({Call::Kind::write, name_of(to), {}, static_cast<std::uint64_t>(begin), bytes});
  }
  return done;
}

int ftruncate(int descriptor, off_t size) noexcept {
  static auto* const call = real<int(int, off_t)>("ftruncate");
  if (refuse("ftruncate")) return -1;
  const int status = call(descriptor, size);
  if (status == 0) record({Call::Kind::size, name_of(descriptor), {}, static_cast<std::uint64_t>(size), {}});
  return status;
}

int fdatasync(int descriptor) {
  static auto* const call = real<int(int)>("fdatasync");
  if (refuse("fsync")) return -1;
  const int status = call(descriptor);
  if (status == 0) record({Call::Kind::sync, name_of(descriptor), {}, 0, {}});
  return status;
}

int fsync(int descriptor) {
  static auto* const call = real<int(int)>("fsync");
  if (refuse("fsync")) return -1;
  const int status = call(descriptor);
  if (status == 0) record({Call::Kind::sync, name_of(descriptor), {}, 0, {}});
  return status;
}

int close(int descriptor) {
  static auto* const call = real<int(int)>("close");
  const bool fail = refuse("close");
  const int error = errno;
  names().erase(descriptor);
  const int status = call(descriptor);  // a close that fails has closed all the same
  if (!fail) return status;
  errno = error;
  return -1;
}

int rename(const char* from, const char* to) noexcept {
  static auto* const call = real<int(const char*, const char*)>("rename");
  if (refuse("rename")) return -1;
  const int status = call(from, to);
  if (status == 0) record_rename(from, to);
  return status;
}

int renameat2(int from_folder, const char* from, int to_folder, const char* to, unsigned flags) noexcept {
  static auto* const call = real<int(int, const char*, int, const char*, unsigned)>("renameat2");
  if (refuse("rename")) return -1;
  const int status = call(from_folder, from, to_folder, to, flags);
  if (status == 0) record_rename(from, to);
  return status;
}

int mkdir(const char* path, mode_t mode) noexcept {
  static auto* const call = real<int(const char*, mode_t)>("mkdir");
  if (refuse("mkdir")) return -1;
  const int status = call(path, mode);
  if (status == 0) record({Call::Kind::make_folder, path, {}, 0, {}});
  return status;
}

int unlink(const char* path) noexcept { return unlinkat(AT_FDCWD, path, 0); }

int remove(const char* path) noexcept {
  struct stat there {};
  const bool folder = ::lstat(path, &there) == 0 && S_ISDIR(there.st_mode);
  return unlinkat(AT_FDCWD, path, folder ? AT_REMOVEDIR : 0);
}

int unlinkat(int folder, const char* path, int flags) noexcept {
  static auto* const call = real<int(int, const char*, int)>("unlinkat");
  if (refuse("unlink")) return -1;
  const std::string whole = recording && folder != AT_FDCWD ? path_of(folder) + "/" + path : path;
  const int status = call(folder, path, flags);
  if (status == 0) record({Call::Kind::remove, whole, {}, 0, {}});
  return status;
}

}  // extern "C"
