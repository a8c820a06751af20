#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include <doctest/doctest.h>
#include <support/errors.h>

#include <scalevec/trainer/window_order.h>

using namespace scalevec;
using scalevec::testing::error_of;

namespace {

std::vector<std::int64_t> epoch(const WindowOrder& order, std::int64_t number) {
  std::vector<std::int64_t> windows(static_cast<std::size_t>(order.windows()));
  for (std::size_t i = 0; i < windows.size(); ++i)
    windows[i] = order.at(number * order.windows() + static_cast<std::int64_t>(i));
  return windows;
}

}  // namespace

TEST_CASE("WindowOrder: every epoch has every window once") {
  std::vector<std::int64_t> sizes{255, 256, 257, 1'000, 1'023, 1'025, 4'096, 4'097, 65'535, 65'537, 100'003};
  for (std::int64_t size = 1; size <= 130; ++size) sizes.push_back(size);
  for (const std::int64_t size : sizes) {
    CAPTURE(size);
    const WindowOrder order(size, 7);
    std::vector<std::int64_t> every(static_cast<std::size_t>(size));
    std::iota(every.begin(), every.end(), 0);
    for (const std::int64_t number : {0, 1, 1'000'000}) {
      std::vector<std::int64_t> windows = epoch(order, number);
      std::sort(windows.begin(), windows.end());
      CHECK(windows == every);
    }
  }
}

TEST_CASE("WindowOrder: epochs and seeds differ; the same seed does not") {
  const WindowOrder one(1'000, 1), again(1'000, 1), two(1'000, 2);
  CHECK(epoch(one, 0) == epoch(again, 0));
  CHECK(epoch(one, 5) == epoch(again, 5));
  // Two random orders of n agree in one place on average; more than 10 have a probability below 1e-8.
  const auto agreements = [](const std::vector<std::int64_t>& a, const std::vector<std::int64_t>& b) {
    int same = 0;
    for (std::size_t i = 0; i < a.size(); ++i) same += a[i] == b[i];
    return same;
  };
  std::vector<std::int64_t> ascending(1'000);
  std::iota(ascending.begin(), ascending.end(), 0);
  CHECK(agreements(epoch(one, 0), ascending) <= 10);
  CHECK(agreements(epoch(one, 0), epoch(one, 1)) <= 10);
  CHECK(agreements(epoch(one, 0), epoch(two, 0)) <= 10);
  CHECK(agreements(epoch(one, 1), epoch(two, 0)) <= 10);
}

TEST_CASE("WindowOrder: over many epochs each window stands everywhere alike, and after each other one") {
  for (const std::int64_t size : {2, 3, 7, 16, 20}) {
    CAPTURE(size);
    const auto n = static_cast<std::size_t>(size);
    constexpr int epochs = 20'000;
    const WindowOrder order(size, 3);
    std::vector<int> at(n * n), after(n * n);
    for (int e = 0; e < epochs; ++e) {
      const std::vector<std::int64_t> windows = epoch(order, e);
      for (std::size_t i = 0; i < n; ++i) {
        ++at[i * n + static_cast<std::size_t>(windows[i])];
        if (i > 0) ++after[static_cast<std::size_t>(windows[i - 1] * size + windows[i])];
      }
    }
    // Counts of independent draws lie within 5.5 standard deviations of what is expected.
    const double p = 1.0 / static_cast<double>(size), expected = epochs * p;
    const double off = 5.5 * std::sqrt(expected * (1.0 - p));
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t j = 0; j < n; ++j) {
        CHECK(std::abs(at[i * n + j] - expected) <= off);
        if (i != j) CHECK(std::abs(after[i * n + j] - expected) <= off);
      }
    }
  }
}

TEST_CASE("WindowOrder: a position far away costs what the first does") {
  const std::int64_t most = std::int64_t{1} << 60;
  const WindowOrder order(most, 9);
  CHECK(order.at(most - 1) < most);
  CHECK(order.at(0) != order.at(1));
  const WindowOrder small(3, 9);
  CHECK(small.at(std::int64_t{1} << 62) < 3);
}

TEST_CASE("WindowOrder: refusals") {
  for (const std::int64_t windows : {std::int64_t{0}, std::int64_t{-1}, (std::int64_t{1} << 60) + 1}) {
    const auto caught = error_of([&] { WindowOrder(windows, 0); });
    CHECK(caught.code == ErrorCode::value);
    CHECK(caught.fields.found == std::to_string(windows));
  }
  CHECK(error_of([] { WindowOrder(3, 0).at(-1); }).code == ErrorCode::value);
}
