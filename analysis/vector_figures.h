#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace scalevec {

/// The sizes |v| of numbers with their logarithms and their order, found once for all figures that need them.
class Sizes {
 public:
  explicit Sizes(std::span<const double> v);
  const std::vector<double>& values() const { return values_; }
  const std::vector<double>& logs() const { return logs_; }  // of 0: -infinity
  /// Indices from the smallest to the largest; none where a number is not finite.
  const std::vector<std::uint32_t>& order() const { return order_; }
  bool finite() const { return finite_; }      // all
  bool positive() const { return positive_; }  // none is 0

 private:
  std::vector<double> values_, logs_;
  std::vector<std::uint32_t> order_;
  bool finite_ = true, positive_ = true;
};

/// One effective vector as numbers (metrics 2, 3, 5, 6, 11 of the metric list); at least one entry. All NaN
/// where one is not finite.
struct VectorFigures {
  double mean = 0, rms = 0, min = 0, max = 0;  // rms is also |g| / sqrt(d), the magnitude of g
  double negative = 0, near_zero = 0;          // shares of entries below 0, and with |g| < 1e-3
  double log_spread = 0;                       // standard deviation of log|g|; entries that are 0 left out
  double participation = 0;                    // (sum g^2)^2 / (d sum g^4): 1 for equal entries, 1/d for one
  double gini = 0;                             // of |g|: 0 for equal entries
  double kurtosis = 0;                         // excess
  double dispersion = 0;                       // max g^2 / min g^2
};
VectorFigures vector_figures(std::span<const double> g);
VectorFigures vector_figures(std::span<const double> g, const Sizes& sizes);
/// VectorFigures' log_spread alone.
double spread_of_logs(const Sizes& sizes);

/// Of two lists of numbers: Pearson's correlation, and the slope of y on x by least squares. Pairs with a
/// value that is not finite are left out; NaN where fewer than two remain, or x does not vary.
struct Relation {
  double pearson, slope;
};
Relation relation(std::span<const double> x, std::span<const double> y);
/// Spearman's correlation of sizes; pairs of which one is 0 or not finite are left out, as their logarithms
/// are.
double rank_correlation(const Sizes& x, const Sizes& y);

/// x . y / (|x| |y|); NaN where one is 0.
double cosine(std::span<const double> x, std::span<const double> y);
/// The angle between x and y, radians, exact also where it is small; NaN where one is 0.
double angle(std::span<const double> x, std::span<const double> y);

/// Largest and smallest eigenvalue of diag(v^2) + c v v^T with c >= 0: what ER's parametrisation does to a
/// gradient on g (metric 13: c = 1 - 1/d, v = g).
struct Extremes {
  double smallest, largest;
};
Extremes diagonal_plus_outer(std::span<const double> v, double c);

}  // namespace scalevec
