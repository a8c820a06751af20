#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace scalevec::testing {

/// What is done at one of the writing calls of this program: open for writing, write, pwrite,
/// copy_file_range, ftruncate, fsync, fdatasync, close, rename, mkdir, unlink, rmdir. They are counted from 1
/// while `enabled`; reading is not counted.
struct Fault {
  enum class Kind {
    none,
    fail,       // return -1 with `error`
    kill,       // end the process before the call
    half,       // half of what was to be written lands, then the process ends
    half_fail,  // half lands, then -1 with `error`
    brief,      // half lands, and the call says so
  };
  bool enabled = false;
  Kind kind = Kind::none;
  int error = 0;
  bool lasting = false;  // every later call of the same kind fails too, as on a full disk
  std::uint64_t at = 0;
  std::uint64_t until = UINT64_MAX;  // the last call that a lasting fault reaches
};
inline constexpr int killed_status = 99;

extern Fault fault;
extern std::uint64_t calls;  // counted so far

/// One call that changed the disk, in the order in which they were made; for what a power cut may leave.
struct Call {
  enum class Kind { create, make_folder, write, size, sync, rename, remove };
  Kind kind;
  std::string path, other;  // as given; `other`: the new name
  std::uint64_t begin = 0;
  std::string bytes;
};
extern bool recording;
extern std::vector<Call> recorded;

}  // namespace scalevec::testing
