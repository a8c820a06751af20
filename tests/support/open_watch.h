#pragma once

#include <sys/inotify.h>
#include <unistd.h>

#include <filesystem>
#include <stdexcept>

namespace scalevec::testing {

/// Whether anybody has opened a file since this was made, as the system tells it.
class OpenWatch {
 public:
  explicit OpenWatch(const std::filesystem::path& path) : events_(::inotify_init1(IN_NONBLOCK | IN_CLOEXEC)) {
    if (::inotify_add_watch(events_, path.c_str(), IN_OPEN) < 0)
      throw std::runtime_error("cannot watch " + path.string());
  }
  ~OpenWatch() { ::close(events_); }
  OpenWatch(const OpenWatch&) = delete;
  OpenWatch& operator=(const OpenWatch&) = delete;

  bool opened() const {
    alignas(inotify_event) char event[sizeof(inotify_event) + 256];
    return ::read(events_, event, sizeof event) > 0;
  }

 private:
  int events_;
};

}  // namespace scalevec::testing
