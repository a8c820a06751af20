// The paper's theorem on decay and noise (arXiv 2605.26895: 2.3, C.1), and how far it reaches: with one
// output and without decay of its own a vector grows without end, with several outputs it does not.
#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include <doctest/doctest.h>
#include <support/toy_flow.h>
#include <support/toy_noise.h>

#include <support/check.h>

using toy::NoisyPaths;

namespace {

// That of a difference of two ensembles of our size, three times: how large the one was that the digits are
// of is not known.
double sampling(const NoisyPaths::Mean& mean) { return 3.0 * std::sqrt(2.0) * mean.error; }

}  // namespace

TEST_CASE("toy noise: decay of the vector keeps E|g|^2 under the theorem's bound at all times") {
  const std::vector<double> targets{1.0, 0.5, -0.3};
  const auto d = static_cast<double>(targets.size());
  for (const double mu : {0.02, 0.1}) {
    CAPTURE(mu);
    std::vector<NoisyPaths> decayed, free;
    double wanted = 0.0;
    for (const double target : targets) {
      const NoisyPaths::Setting setting{.target = target, .decay_g = mu};
      decayed.emplace_back(setting, 512, 1 + decayed.size());
      free.emplace_back(NoisyPaths::Setting{.target = target}, 512, 1 + free.size());
      wanted += target * target;
    }
    const auto total = [](std::vector<NoisyPaths>& coordinates, double t) {
      NoisyPaths::Mean sum;
      for (NoisyPaths& paths : coordinates) {
        paths.go_to(t);
        sum.value += paths.g2().value;
        sum.error = std::hypot(sum.error, paths.g2().error);
      }
      return sum;
    };
    // The bound is e^(-2 mu t) E|g(0)|^2 + (d q + |a*|^2 / 2) / (2 mu), q = 0.1.
    const double level = (d * 0.1 + wanted / 2) / (2 * mu);
    for (const double t : {1.0, 3.0, 10.0, 50.0}) {
      CAPTURE(t);
      const NoisyPaths::Mean found = total(decayed, t);
      CHECK(found.value + 4 * found.error < std::exp(-2 * mu * t) * d + level);
      // Not by far: it is never ten times what is found.
      CHECK(found.value > 0.1 * (std::exp(-2 * mu * t) * d + level));
    }
    // Without that decay it is passed, by where it is low.
    const NoisyPaths::Mean without = total(free, 50.0);
    CHECK((without.value - 4 * without.error > level) == (mu == 0.1));
  }
}

TEST_CASE("toy noise: without decay of its own a vector before one output grows, and the Hessian with it") {
  NoisyPaths paths({}, 2048, 1);
  struct Row {
    double t, g2;  // simulated elsewhere, from g = 1, w = 0, a* = 1 with q = lambda = 0.1
  };
  std::array<double, 3> last{};
  double before = 1.0;
  for (const Row& row : {Row{10, 2.6}, Row{50, 6.3}, Row{200, 16.4}, Row{500, 30.0}}) {
    CAPTURE(row.t);
    paths.go_to(row.t);
    const NoisyPaths::Mean g2 = paths.g2();
    CHECK(std::abs(g2.value - row.g2) < sampling(g2) + 0.05);
    CHECK(g2.value - 4 * g2.error > before);
    before = g2.value + 4 * g2.error;
    // Trace, squared Frobenius norm and largest eigenvalue are as large as g^2 makes them.
    const auto of_hessian = [&](auto figure) {
      return paths.mean([&](double g, double w) { return figure(toy::HessianForms({g}, {w}, {1.0})); }).value;
    };
    const std::array<double, 3> now{of_hessian([](const toy::HessianForms& h) { return h.trace; }),
                                    of_hessian([](const toy::HessianForms& h) { return h.frobenius2; }),
                                    of_hessian([](const toy::HessianForms& h) { return h.largest; })};
    CHECK(now[0] > g2.value);
    CHECK(now[1] > g2.value * g2.value);
    CHECK(now[2] > g2.value);
    for (std::size_t i = 0; i < now.size(); ++i) CHECK(now[i] > 1.5 * last[i]);
    last = now;
  }
}

TEST_CASE("toy noise: before eight outputs it does not grow, and |w| is where the balance of noise says") {
  constexpr double outputs = 8;
  NoisyPaths paths({.outputs = 8}, 512, 1);
  double w2 = 0.0, error2 = 0.0;
  struct Row {
    double t, g2;
  };
  for (const Row& row : {Row{10, 0.39}, Row{50, 0.27}, Row{200, 0.24}, Row{500, 0.28}}) {
    CAPTURE(row.t);
    paths.go_to(row.t);
    const NoisyPaths::Mean g2 = paths.g2(), w = paths.w2();
    CHECK(std::abs(g2.value - row.g2) < sampling(g2) + 0.005);
    CHECK(g2.value + 4 * g2.error < 1.0);  // where it began
    if (row.t < 50) continue;              // on its way: 1 / lambda is 10
    w2 += w.value / 3;
    error2 += w.error * w.error / 9;
  }
  // g^2 - |w|^2 gains 2 lambda |w|^2 + q - C q on average, whatever is learned: at rest 2 lambda |w|^2 = (C -
  // 1) q.
  CHECK(std::abs(2 * 0.1 * w2 - (outputs - 1) * 0.1) < 4 * 2 * 0.1 * std::sqrt(error2));
  CHECK(4 * std::sqrt(error2) < 0.1 * w2);
}
