#pragma once

#include <atomic>
#include <cstdint>
#include <ctime>

namespace scalevec::testing {

/// Bytes from operator new: held now, and at most since a Cost began. Counted in programs that are built with
/// support/allocations.cpp; zero in others.
inline std::atomic<std::int64_t> bytes_held = 0, most_bytes_held = 0;

#ifdef __SANITIZE_ADDRESS__
inline constexpr double slowness = 10.0;
inline constexpr bool counts_bytes = false;  // see allocations.cpp
#else
inline constexpr bool counts_bytes = true;
inline constexpr double slowness = 1.0;
#endif

/// What was done since its construction: processor time of this thread, which other work on the machine does
/// not lengthen, and memory. One at a time.
class Cost {
 public:
  Cost() : begin_(now()), held_(bytes_held) { most_bytes_held = held_; }
  double seconds() const { return now() - begin_; }
  std::int64_t bytes() const { return most_bytes_held - held_; }

 private:
  static double now() {
    timespec time{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  }

  double begin_;
  std::int64_t held_;
};

}  // namespace scalevec::testing
