#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include <doctest/doctest.h>

#include <scalevec/core/kernels/logits.h>

using scalevec::kernels::compare_rows;
using scalevec::kernels::loss_gradient;
using scalevec::kernels::RowScratch;
using scalevec::kernels::RowStatistics;

namespace {

constexpr double inf = std::numeric_limits<double>::infinity();

struct Reference {
  long double loss_base = 0, loss_edited = 0, kl = 0, kl_reverse = 0, tv = 0;
};

// The textbook formulas in 80-bit floats: absolute errors below 1e-17 for vocabularies of a thousand.
template <class T>
Reference textbook(const std::vector<T>& base, const std::vector<T>& edited, std::size_t target) {
  const auto log_sum = [](const std::vector<T>& row) {
    long double top = row[0], sum = 0;
    for (const T v : row) top = std::max<long double>(top, v);
    for (const T v : row) sum += std::exp(static_cast<long double>(v) - top);
    return top + std::log(sum);
  };
  const long double a = log_sum(base), b = log_sum(edited);
  Reference out;
  out.loss_base = a - base[target];
  out.loss_edited = b - edited[target];
  for (std::size_t i = 0; i < base.size(); ++i) {
    const long double log_p = base[i] - a, log_q = edited[i] - b;
    const long double p = std::exp(log_p), q = std::exp(log_q);
    out.kl += p * (log_p - log_q);
    out.kl_reverse += q * (log_q - log_p);
    out.tv += std::fabs(p - q) / 2;
  }
  return out;
}

template <class T>
RowStatistics compared(const std::vector<T>& base, const std::vector<T>& edited, std::int64_t target) {
  RowScratch scratch;
  return compare_rows(base.data(), edited.data(), static_cast<std::int64_t>(base.size()), target, scratch);
}

template <class T>
void check_random(std::size_t size, double change, unsigned seed) {
  CAPTURE(size);
  CAPTURE(change);
  std::mt19937 random(seed);
  std::normal_distribution<double> normal(0.0, 3.0);
  std::vector<T> base(size), edited(size);
  for (std::size_t i = 0; i < size; ++i) {
    base[i] = static_cast<T>(normal(random));
    edited[i] = static_cast<T>(base[i] + change * normal(random));
  }
  const std::size_t target = size / 2;
  const Reference want = textbook(base, edited, target);
  const RowStatistics got = compared(base, edited, static_cast<std::int64_t>(target));
  REQUIRE(got.finite);
  // Sums of `size` float64 terms in eight lanes, each good to a few ulp.
  CHECK(std::fabs(static_cast<double>(got.loss_base - want.loss_base)) <= 1e-13);
  CHECK(std::fabs(static_cast<double>(got.loss_change - (want.loss_edited - want.loss_base))) <= 1e-13);
  CHECK(std::fabs(static_cast<double>(got.tv - want.tv)) <= 1e-15 + 1e-12 * static_cast<double>(want.tv));
  CHECK(std::fabs(static_cast<double>(got.kl - want.kl)) <= 1e-17 + 1e-9 * static_cast<double>(want.kl));
  CHECK(std::fabs(static_cast<double>(got.kl_reverse - want.kl_reverse)) <=
        1e-17 + 1e-9 * static_cast<double>(want.kl_reverse));
  CHECK(got.kl >= 0.0);
}

}  // namespace

TEST_CASE("compare_rows: the textbook's figures at every size of vocabulary and of change") {
  unsigned seed = 0;
  for (const std::size_t size : {1u, 2u, 7u, 8u, 9u, 16u, 1000u}) {
    for (const double change : {10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6}) {
      check_random<float>(size, change, ++seed);
      check_random<double>(size, change, ++seed);
    }
  }
}

TEST_CASE("compare_rows: KL keeps its digits where float64 subtraction has none left") {
  // Half the logits of a flat distribution go up by d, half down: KL is log cosh d, the reverse d tanh d -
  // log cosh d.
  for (const double d : {1e-2, 1e-4, 1e-6, 1e-8, 1e-10}) {
    CAPTURE(d);
    const std::vector<double> base(512, 0.0);
    std::vector<double> edited(512);
    for (std::size_t i = 0; i < edited.size(); ++i) edited[i] = i % 2 == 0 ? d : -d;
    const RowStatistics got = compared(base, edited, 0);
    const double kl = d * d / 2 - d * d * d * d / 12, reverse = d * d / 2 - d * d * d * d / 4;  // + O(d^6)
    CHECK(std::fabs(got.kl - kl) <= (1e-11 + d * d * d * d) * kl);
    CHECK(std::fabs(got.kl_reverse - reverse) <= (1e-11 + d * d * d * d) * reverse);
    CHECK(std::fabs(got.tv - std::tanh(d) / 2) <= 1e-15);
  }
}

TEST_CASE("compare_rows: equal rows give exact zeros, and the target's loss") {
  const std::vector<float> row{1.5f, -2.0f, 0.25f, 7.0f, 7.0f, -1e4f, 3.0f, 2.0f, 1.0f};
  const RowStatistics got = compared(row, row, 2);
  CHECK(got.kl == 0.0);
  CHECK(got.kl_reverse == 0.0);
  CHECK(got.tv == 0.0);
  CHECK(got.loss_change == 0.0);
  CHECK(got.largest_difference == 0.0);
  CHECK_FALSE(got.flip);
  CHECK(std::fabs(got.loss_base - static_cast<double>(textbook(row, row, 2).loss_base)) <= 1e-14);
}

TEST_CASE("compare_rows: a flip is another index of the first largest logit") {
  const std::vector<float> base{0, 5, 5, 1};
  CHECK_FALSE(compared(base, std::vector<float>{0, 6, 6, 1}, 0).flip);
  CHECK_FALSE(compared(base, std::vector<float>{0, 5, 4, 1}, 0).flip);
  CHECK(compared(base, std::vector<float>{0, 4, 5, 1}, 0).flip);
  CHECK(compared(base, std::vector<float>{5, 5, 5, 1}, 0).flip);
}

TEST_CASE("compare_rows: changes beyond the range of exp") {
  std::vector<double> base(20, 0.0), edited(20, 0.0);
  edited[3] = 5000.0;
  const RowStatistics got = compared(base, edited, 0);
  // log q is 0 for entry 3 and -5000 for the others; log p is -log 20.
  CHECK(std::fabs(got.kl - (5000.0 * 19 / 20 - std::log(20.0))) <= 1e-9);
  CHECK(std::fabs(got.kl_reverse - std::log(20.0)) <= 1e-12);
  CHECK(std::fabs(got.tv - 0.95) <= 1e-14);
  CHECK(std::fabs(got.loss_change - (5000.0 - std::log(20.0))) <= 1e-9);
}

TEST_CASE(
    "compare_rows: -inf in both rows is a token that neither can emit; anything else not finite is told") {
  const std::vector<double> base{0, 1, -inf, 2, 0.5}, edited{0, 1.5, -inf, 2, 0};
  const std::vector<double> base_short{0, 1, 2, 0.5}, edited_short{0, 1.5, 2, 0};
  const RowStatistics got = compared(base, edited, 1), want = compared(base_short, edited_short, 1);
  REQUIRE(got.finite);
  CHECK(std::fabs(got.kl - want.kl) <= 1e-15);
  CHECK(std::fabs(got.loss_change - want.loss_change) <= 1e-15);

  for (const double bad : {inf, -inf, std::nan("")}) {
    CAPTURE(bad);
    for (std::size_t place : {0u, 4u}) {
      std::vector<double> broken = base;
      broken[place] = bad;
      CHECK_FALSE(compared(base, broken, 1).finite);
      CHECK_FALSE(compared(broken, base, 1).finite);
    }
  }
  CHECK_FALSE(compared(std::vector<double>(9, inf), std::vector<double>(9, inf), 1).finite);
  CHECK_FALSE(compared(std::vector<double>(9, -inf), std::vector<double>(9, -inf), 1).finite);
}

TEST_CASE("loss_gradient: the loss and scale * (softmax - one-hot)") {
  std::mt19937 random(3);
  std::normal_distribution<double> normal(0.0, 4.0);
  for (const std::size_t size : {1u, 8u, 13u, 777u}) {
    CAPTURE(size);
    std::vector<double> row(size);
    for (double& v : row) v = normal(random);
    const std::size_t target = size - 1;
    const Reference want = textbook(row, row, target);
    std::vector<double> out = row;
    std::vector<float> narrow(row.begin(), row.end());
    const double scale = 0.125;
    const auto count = static_cast<std::int64_t>(size), place = static_cast<std::int64_t>(target);
    CHECK(std::fabs(loss_gradient(out.data(), count, place, scale) - static_cast<double>(want.loss_base)) <=
          1e-13);
    loss_gradient(narrow.data(), count, place, scale);
    for (std::size_t i = 0; i < size; ++i) {
      const long double p = std::exp(static_cast<long double>(row[i]) - row[target] - want.loss_base);
      const auto expected = static_cast<double>(0.125L * (p - (i == target ? 1 : 0)));
      CHECK(std::fabs(out[i] - expected) <= 1e-15);
      CHECK(std::fabs(static_cast<double>(narrow[i]) - expected) <=
            1e-6 * scale);  // logits rounded to float32
    }
  }
}
