// One coordinate of the toy flow under additive isotropic noise (arXiv 2605.26895, theorems 2.3 and C.1), in
// plain float64: with one row of x, dg = -(<g w - a*, w> + mu g) dt + sqrt(q) dB and dw = -((g w - a*) g +
// lambda w) dt + sqrt(q) dB' of C outputs w. Coordinates do not meet: of d of them everything is a sum.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace toy {

/// Paths that start as the flow does, at g = 1 and w = 0.
class NoisyPaths {
 public:
  struct Setting {
    double target = 1.0;  // a* of the first output; that of the others is 0
    std::size_t outputs = 1;
    double decay_g = 0.0, decay_w = 0.1;  // mu, lambda
    double noise = 0.1;                   // q
  };
  /// paths: a multiple of 64.
  NoisyPaths(const Setting& setting, std::size_t paths, std::uint64_t seed)
      : setting_(setting),
        g_(paths, 1.0),
        w_(setting.outputs, std::vector<double>(paths, 0.0)),
        slope_(paths),
        random_(seed) {}

  /// Goes on to time t.
  ///
  /// By the weak form of the Euler-Maruyama rule, whose increments are +-sqrt(q h) by coin and have the
  /// moments of Brownian ones that its order needs (Kloeden, Platen, 14.1): the same on every machine, and 64
  /// for each number. But w, which is stiff where g is large, goes by the trapezoidal rule at that g, whose
  /// mean and variance are right for any step; Euler's diverges beyond g^2 = 2 / h, and by such excursions of
  /// w g would be held down.
  void go_to(double t) {
    const double h = 0.01, size = std::sqrt(setting_.noise * h);
    for (const long last = std::lround(t / h); step_ < last; ++step_) {
      for (std::size_t i = 0; i < g_.size(); ++i) slope_[i] = setting_.decay_g * g_[i];
      for (std::size_t output = 0; output < w_.size(); ++output) {
        const double target = output == 0 ? setting_.target : 0.0;
        double* const w = w_[output].data();
        by_coin(size, [&](std::size_t i, double increment) {
          const double g = g_[i], half = 0.5 * h * (g * g + setting_.decay_w);
          slope_[i] += (g * w[i] - target) * w[i];
          w[i] = ((1.0 - half) * w[i] + h * g * target + increment) / (1.0 + half);
        });
      }
      by_coin(size, [&](std::size_t i, double increment) { g_[i] += increment - h * slope_[i]; });
    }
  }

  struct Mean {
    double value = 0.0, error = 0.0;  // its standard error, by the ensemble's own spread
  };
  /// Of f(g, w), w the first output's.
  template <class F>
  Mean mean(F f) const {
    double sum = 0.0, squares = 0.0;
    const auto n = static_cast<double>(g_.size());
    for (std::size_t i = 0; i < g_.size(); ++i) {
      const double value = f(g_[i], w_[0][i]);
      sum += value;
      squares += value * value;
    }
    return {sum / n, std::sqrt((squares / n - sum / n * sum / n) / n)};
  }
  Mean g2() const {
    return mean([](double g, double) { return g * g; });
  }
  /// Of |w|^2 over all outputs.
  Mean w2() const {
    std::size_t i = 0;
    return mean([&](double, double) {
      double sum = 0.0;
      for (const std::vector<double>& w : w_) sum += w[i] * w[i];
      ++i;
      return sum;
    });
  }

 private:
  template <class Visit>
  void by_coin(double size, Visit visit) {
    for (std::size_t first = 0; first < g_.size(); first += 64) {
      const std::uint64_t coins = random_();
      for (std::size_t i = 0; i < 64; ++i) visit(first + i, (coins >> i) & 1 ? size : -size);
    }
  }

  Setting setting_;
  std::vector<double> g_;
  std::vector<std::vector<double>> w_;  // by output
  std::vector<double> slope_;
  std::mt19937_64 random_;
  long step_ = 0;
};

}  // namespace toy
