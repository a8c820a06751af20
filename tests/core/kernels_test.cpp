#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include <doctest/doctest.h>
#include <readers/errors.h>

#include <scalevec/core/error.h>
#include <scalevec/core/kernels/rms_norm.h>
#include <scalevec/core/kernels/rope.h>

namespace kernels = scalevec::kernels;
using kernels::Bfloat16;

namespace {

template <class V>
std::vector<V> random(std::size_t count, unsigned seed, double middle = 0.0) {
  std::mt19937 engine(seed);
  std::normal_distribution<double> normal(middle, 1.0);
  std::vector<V> out(count);
  for (V& v : out) v = static_cast<V>(normal(engine));
  return out;
}

double rms_of(const float* x, std::int64_t n, double eps) {
  double sum = 0.0;
  for (std::int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return std::sqrt(sum / static_cast<double>(n) + eps);
}

}  // namespace

TEST_CASE(
    "rms_norm kernel: within rounding of the closed form in float64, whatever the width and the groups") {
  using Shape = std::pair<std::int64_t, std::int64_t>;
  for (const auto& [width, group] : {Shape{1, 1}, Shape{7, 7}, Shape{16, 16}, Shape{33, 33}, Shape{576, 576},
                                     Shape{192, 64}, Shape{30, 6}}) {
    CAPTURE(width);
    CAPTURE(group);
    const std::int64_t rows = 5, groups = width / group;
    const auto x = random<float>(static_cast<std::size_t>(rows * width), 1);
    const auto g = random<float>(static_cast<std::size_t>(width), 2, 1.0);
    std::vector<float> y(x.size()), normalized(x.size()), rstd(static_cast<std::size_t>(rows * groups));
    kernels::rms_norm({x.data(), g.data(), y.data(), rstd.data(), normalized.data(), width, group, 1e-5}, 0,
                      rows);
    // Sixteen sums of group / 16 positive terms, halved by the root; then 1 / rms and two products are
    // rounded.
    const double eps = std::numeric_limits<float>::epsilon();
    const double bound = (static_cast<double>(group) / 64.0 + 4.0) * eps;
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t i = 0; i < width; ++i) {
        const auto at = static_cast<std::size_t>(r * width + i);
        const double rms = rms_of(x.data() + r * width + i / group * group, group, 1e-5);
        const double exact =
            static_cast<double>(x[at]) / rms * static_cast<double>(g[static_cast<std::size_t>(i)]);
        REQUIRE(std::abs(static_cast<double>(y[at]) - exact) <= bound * std::abs(exact));
        REQUIRE(std::abs(static_cast<double>(rstd[static_cast<std::size_t>(r * groups + i / group)]) * rms -
                         1.0) <= bound);
        REQUIRE(normalized[at] * g[static_cast<std::size_t>(i)] == y[at]);
      }
    }
    // Asking for less changes no bit, nor does sharing rows among calls.
    std::vector<float> again(x.size());
    kernels::rms_norm({x.data(), g.data(), again.data(), nullptr, nullptr, width, group, 1e-5}, 3, rows);
    kernels::rms_norm({x.data(), g.data(), again.data(), nullptr, nullptr, width, group, 1e-5}, 0, 3);
    CHECK(again == y);
    // No vector: all ones.
    kernels::rms_norm({x.data(), nullptr, again.data(), nullptr, nullptr, width, group, 1e-5}, 0, rows);
    CHECK(again == normalized);
  }
}

TEST_CASE("rms_norm kernel: bfloat16 is computed in float32 and rounded once, to even") {
  const std::int64_t width = 48, rows = 4;
  const auto values = random<float>(static_cast<std::size_t>(rows * width), 3);
  const auto g = random<float>(static_cast<std::size_t>(width), 4, 1.0);
  std::vector<Bfloat16> x(values.size()), y(values.size());
  std::vector<float> wide(values.size()), expected(values.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] = kernels::narrow<Bfloat16>(values[i]);
    wide[i] = kernels::widen(x[i]);
  }
  kernels::rms_norm({x.data(), g.data(), y.data(), nullptr, nullptr, width, width, 1e-5}, 0, rows);
  kernels::rms_norm({wide.data(), g.data(), expected.data(), nullptr, nullptr, width, width, 1e-5}, 0, rows);
  for (std::size_t i = 0; i < y.size(); ++i) {
    // Half a unit of the eighth bit.
    REQUIRE(std::abs(kernels::widen(y[i]) - expected[i]) <= std::abs(expected[i]) / 256.0f);
  }
  CHECK(kernels::narrow<Bfloat16>(std::bit_cast<float>(0x3F808000u)).bits == 0x3F80);  // a tie goes to even
  CHECK(kernels::narrow<Bfloat16>(std::bit_cast<float>(0x3F818000u)).bits == 0x3F82);
  CHECK(kernels::narrow<Bfloat16>(std::bit_cast<float>(0x7F800001u)).bits == 0x7FC0);  // a NaN stays one
  CHECK(kernels::narrow<Bfloat16>(std::numeric_limits<float>::max()).bits ==
        0x7F80);  // past the largest: infinity
}

TEST_CASE("rms_norm kernel: gradients of 4,096 rows, that of the vector to 1e-6") {
  const std::int64_t width = 192, rows = 4096;
  for (const std::int64_t group : {192, 64}) {
    CAPTURE(group);
    const auto x = random<float>(static_cast<std::size_t>(rows * width), 5);
    // A gradient with a mean, as a loss has it: sums that cancel to nothing have no relative error to speak
    // of.
    const auto dy = random<float>(x.size(), 6, 0.5);
    const auto g = random<float>(static_cast<std::size_t>(width), 7, 1.0);
    std::vector<float> y(x.size()), dx(x.size()), rstd(static_cast<std::size_t>(rows * width / group));
    std::vector<double> dg(static_cast<std::size_t>(width), 0.0), exact(dg.size(), 0.0),
        magnitude(dg.size(), 0.0);
    kernels::rms_norm({x.data(), g.data(), y.data(), rstd.data(), nullptr, width, group, 1e-6}, 0, rows);
    kernels::rms_norm_backward(
        {dy.data(), x.data(), g.data(), rstd.data(), dx.data(), dg.data(), width, group}, 0, rows);
    double worst_dx = 0.0;
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t k = 0; k < width; k += group) {
        const auto at = static_cast<std::size_t>(r * width + k);
        const double rms = rms_of(x.data() + at, group, 1e-6);
        double along = 0.0;
        for (std::int64_t i = 0; i < group; ++i) {
          const auto j = static_cast<std::size_t>(i);
          const double n = static_cast<double>(x[at + j]) / rms;
          const double term = static_cast<double>(dy[at + j]) * n;
          exact[static_cast<std::size_t>(k) + j] += term;
          magnitude[static_cast<std::size_t>(k) + j] += std::abs(term);
          along +=
              term * static_cast<double>(g[static_cast<std::size_t>(k) + j]) / static_cast<double>(group);
        }
        for (std::int64_t i = 0; i < group; ++i) {
          const auto j = static_cast<std::size_t>(i);
          const double n = static_cast<double>(x[at + j]) / rms;
          const double slope =
              (static_cast<double>(g[static_cast<std::size_t>(k) + j]) * static_cast<double>(dy[at + j]) -
               n * along) /
              rms;
          worst_dx = std::max(worst_dx, std::abs(static_cast<double>(dx[at + j]) - slope));
        }
      }
    }
    CHECK(worst_dx <= 2e-6);  // entries of size 1 and a few roundings of 6e-8 each
    for (std::size_t i = 0; i < dg.size(); ++i) REQUIRE(std::abs(dg[i] - exact[i]) <= 1e-7 * magnitude[i]);
    // Against the vector as a whole: what a user reads as the relative error.
    double error = 0.0, size = 0.0;
    for (std::size_t i = 0; i < dg.size(); ++i) {
      error += (dg[i] - exact[i]) * (dg[i] - exact[i]);
      size += exact[i] * exact[i];
    }
    CHECK(std::sqrt(error / size) <= 1e-6);
  }
}

TEST_CASE("rotation kernel: interleaved pairs are halves in another order, and the inverse turns back") {
  const std::int64_t tokens = 3, heads = 2, dim = 10, turned = 8, pairs = turned / 2;
  const auto x = random<float>(static_cast<std::size_t>(2 * tokens * heads * dim), 8);
  std::vector<float> cos(static_cast<std::size_t>(tokens * pairs)), sin(cos.size());
  for (std::size_t i = 0; i < cos.size(); ++i) {
    cos[i] = std::cos(0.3f * static_cast<float>(i));
    sin[i] = std::sin(0.3f * static_cast<float>(i));
  }
  // Entry i of the halves' order stands at place(i) of the pairs' order.
  const auto place = [&](std::int64_t i) {
    return i >= turned ? i : i < pairs ? 2 * i : 2 * (i - pairs) + 1;
  };
  std::vector<float> halves = x, interleaved(x.size());
  for (std::size_t row = 0; row < x.size(); row += dim) {
    for (std::int64_t i = 0; i < dim; ++i)
      interleaved[row + static_cast<std::size_t>(place(i))] = x[row + static_cast<std::size_t>(i)];
  }
  const auto call = [&](std::vector<float>& data, bool pairwise, bool inverse) {
    kernels::rotate(kernels::Rotation<float>{data.data(), cos.data(), sin.data(), tokens, heads, dim, turned,
                                             pairwise, inverse},
                    0, 2 * tokens);
  };
  call(halves, false, false);
  call(interleaved, true, false);
  const std::size_t row =
      static_cast<std::size_t>((tokens + 2) * heads * dim);  // second sequence, token 2, head 0
  for (std::int64_t i = 0; i < dim; ++i) {
    const auto at = row + static_cast<std::size_t>(i);
    CHECK(interleaved[row + static_cast<std::size_t>(place(i))] == halves[at]);
    if (i >= turned) {
      CHECK(halves[at] == x[at]);
      continue;
    }
    const auto t = static_cast<std::size_t>(2 * pairs + i % pairs);
    const float a = x[row + static_cast<std::size_t>(i % pairs)],
                b = x[row + static_cast<std::size_t>(i % pairs + pairs)];
    CHECK(std::abs(halves[at] - (i < pairs ? a * cos[t] - b * sin[t] : b * cos[t] + a * sin[t])) <= 1e-6f);
  }
  call(halves, false, true);
  for (std::size_t i = 0; i < x.size(); ++i) REQUIRE(std::abs(halves[i] - x[i]) <= 1e-6f * 4.0f);
}

TEST_CASE("the CUDA kernels say why they cannot run") {
  // On a machine with a device and a build for it, they can.
  try {
    const int devices = kernels::require_cuda_device();
    CHECK(devices > 0);
  } catch (const scalevec::Error& error) {
    CHECK(error.code() == scalevec::ErrorCode::device);
    CHECK(error.message().find("use the CPU") != std::string::npos);
  }
}
