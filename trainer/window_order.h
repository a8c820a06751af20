#pragma once

#include <cstdint>

namespace scalevec {

/// The order in which training reads windows: every epoch is a permutation of all of them, a function of
/// (seed, epoch) alone. Nothing is stored: a run goes on from its position.
class WindowOrder {
 public:
  /// E_VALUE unless 1 <= windows <= 2^60.
  WindowOrder(std::int64_t windows, std::uint64_t seed);

  std::int64_t windows() const { return windows_; }
  /// The window that stands at `position` = epoch * windows + place in the epoch. E_VALUE if negative.
  std::int64_t at(std::int64_t position) const;

 private:
  std::int64_t windows_;
  std::uint64_t seed_;
  int half_bits_;
};

}  // namespace scalevec
