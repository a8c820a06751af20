#pragma once

#include <cstdint>
#include <functional>
#include <string_view>

namespace scalevec {

/// Called now and then by long work, from the thread that called it: what is being done, how much of how
/// much. Throw from it to stop the work; nothing is left half-written. May be empty.
using Progress = std::function<void(std::string_view what, std::uint64_t done, std::uint64_t total)>;

inline void report(const Progress& progress, std::string_view what, std::uint64_t done, std::uint64_t total) {
  if (progress) progress(what, done, total);
}

}  // namespace scalevec
