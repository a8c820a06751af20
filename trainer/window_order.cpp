#include <scalevec/trainer/window_order.h>

#include <bit>
#include <utility>

#include <fmt/format.h>

#include <scalevec/core/error.h>
#include <scalevec/core/random.h>

namespace scalevec {
namespace {

constexpr int rounds = 8;

}  // namespace

WindowOrder::WindowOrder(std::int64_t windows, std::uint64_t seed) : windows_(windows), seed_(seed) {
  constexpr std::int64_t most = std::int64_t{1} << 60;
  if (windows < 1 || windows > most) {
    fail(ErrorCode::value, fmt::format("order of training windows: there are {} windows", windows),
         {.expected = fmt::format("1 to {}", most), .found = fmt::format("{}", windows)});
  }
  // Two halves of 2 bits at least: a network over fewer values mixes too few orders.
  const auto bits = static_cast<int>(std::bit_width(static_cast<std::uint64_t>(windows - 1)));
  half_bits_ = bits < 4 ? 2 : (bits + 1) / 2;
}

std::int64_t WindowOrder::at(std::int64_t position) const {
  if (position < 0) {
    fail(ErrorCode::value, fmt::format("order of training windows: position {} is negative", position),
         {.expected = "0 or more", .found = fmt::format("{}", position)});
  }
  const Philox random(seed_, static_cast<std::uint64_t>(position / windows_));
  const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
  auto value = static_cast<std::uint64_t>(position % windows_);
  // A Feistel network permutes a power of four; walked until it comes back into the range, it permutes that.
  do {
    std::uint64_t left = value >> half_bits_, right = value & mask;
    for (std::uint64_t round = 0; round < rounds; ++round) {
      left ^= random.block(round << 32 | right)[0] & mask;
      std::swap(left, right);
    }
    value = left << half_bits_ | right;
  } while (value >= static_cast<std::uint64_t>(windows_));
  return static_cast<std::int64_t>(value);
}

}  // namespace scalevec
