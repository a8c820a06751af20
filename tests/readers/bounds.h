#pragma once

#include <algorithm>
#include <cstdint>

#include <doctest/doctest.h>
#include <support/cost.h>

/// What the largest header that is read may cost, where `open` opens a file with one of that many bytes.
/// Other work on the machine may slow down an attempt.
template <class Open>
void check_largest_header(std::uint64_t header, Open&& open) {
  const double most_seconds = 3.0 * scalevec::testing::slowness;
  double seconds = 1e9;
  std::uint64_t bytes = 0;
  for (int attempt = 0; attempt < 3 && seconds > most_seconds; ++attempt) {
    const scalevec::testing::Cost cost;
    open();
    seconds = cost.seconds();
    bytes = static_cast<std::uint64_t>(cost.bytes());
  }
  MESSAGE("header of ", header, " bytes: ", seconds, " s, ", bytes, " bytes at the most");
  CHECK(seconds <= most_seconds);
  CHECK(bytes <= 4 * header + (std::uint64_t{64} << 20));
  if (scalevec::testing::counts_bytes) CHECK(bytes >= header);
}

/// `many` has five times the work of `few`: 100,000 keys or tensors, in a second. Five times the time were
/// linear; n log n gives 5.8, and a square 25 on every attempt, where other work disturbs only some. What
/// outgrows a cache costs the more; a square of 100,000 costs far beyond that allowance.
template <class Few, class Many>
void check_linear(Few&& few, Many&& many) {
  double few_seconds = 1e9, many_seconds = 1e9;
  for (int attempt = 0; attempt < 20 && (attempt < 3 || many_seconds > 7 * few_seconds + 0.05); ++attempt) {
    const scalevec::testing::Cost few_cost;
    few();
    few_seconds = std::min(few_seconds, few_cost.seconds());
    const scalevec::testing::Cost many_cost;
    many();
    many_seconds = std::min(many_seconds, many_cost.seconds());
  }
  CHECK(many_seconds <= 7 * few_seconds + 0.05);
  CHECK(many_seconds <= 1.0 * scalevec::testing::slowness);
}
