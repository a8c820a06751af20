#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <vector>

#include <ATen/ops/diag.h>
#include <ATen/ops/linalg_eigvalsh.h>
#include <ATen/ops/outer.h>
#include <doctest/doctest.h>
#include <support/tensors.h>

#include <scalevec/analysis/vector_figures.h>

#include <support/check.h>

using namespace scalevec;

namespace {

using Values = std::vector<double>;
constexpr double eps = std::numeric_limits<double>::epsilon();

Values random_values(std::int64_t count, unsigned seed) {
  const at::Tensor t = normal({count}, seed);
  return {t.const_data_ptr<double>(), t.const_data_ptr<double>() + count};
}

double mean_of(const Values& v) {
  long double sum = 0;
  for (const double x : v) sum += x;
  return static_cast<double>(sum / static_cast<long double>(v.size()));
}

// The central moment, in long double: its own round-off is out of sight.
long double moment(const Values& v, int power) {
  long double mean = 0, out = 0;
  for (const double x : v) mean += x;
  mean /= static_cast<long double>(v.size());
  for (const double x : v) out += std::pow(static_cast<long double>(x) - mean, power);
  return out / static_cast<long double>(v.size());
}

double covariance(const Values& x, const Values& y) {
  Values products;
  for (std::size_t i = 0; i < x.size(); ++i) products.push_back(x[i] * y[i]);
  return mean_of(products) - mean_of(x) * mean_of(y);
}

// A rank is one more than the entries below, and ties share the mean of theirs.
Values counted_ranks(const Values& v) {
  Values out;
  for (const double x : v) {
    const auto below = std::count_if(v.begin(), v.end(), [&](double y) { return y < x; });
    const auto equal = std::count(v.begin(), v.end(), x);
    out.push_back(static_cast<double>(below) + 0.5 * static_cast<double>(equal + 1));
  }
  return out;
}

// Numbers whose logarithms are those given: order and gaps are theirs.
Sizes sizes_of(Values logs) {
  for (double& x : logs) x = std::exp(x);
  return Sizes(logs);
}

// Sums of d terms, each a few roundings: relative to a figure that does not cancel.
bool close(double a, double b, std::size_t d) {
  return std::fabs(a - b) <= 8.0 * static_cast<double>(d + 4) * eps * std::max(std::fabs(a), std::fabs(b));
}

}  // namespace

TEST_CASE("VectorFigures: 1, 2, 3, 4 by hand") {
  const VectorFigures f = vector_figures(Values{3, -1, 4, 2});
  CHECK(f.mean == 2.0);
  CHECK(f.min == -1.0);
  CHECK(f.max == 4.0);
  CHECK(close(f.rms, std::sqrt(7.5), 4));
  CHECK(f.negative == 0.25);
  CHECK(f.near_zero == 0.0);
  CHECK(close(f.participation, 900.0 / (4 * 354), 4));
  CHECK(close(f.gini, 0.25, 4));
  CHECK(f.dispersion == 16.0);
  CHECK(close(vector_figures(Values{1, 2, 3, 4}).kurtosis, -1.36, 4));
  // log|g| = 0, 1, 2, 3 times log 2: a variance of 5 / 4.
  CHECK(close(vector_figures(Values{1, -2, 8, 4}).log_spread, std::log(2.0) * std::sqrt(1.25), 4));
}

TEST_CASE("VectorFigures: slow definitions on random vectors") {
  for (const std::int64_t count : {2, 3, 8, 501}) {
    const Values g = random_values(count, static_cast<unsigned>(count));
    const std::size_t d = g.size();
    CAPTURE(d);
    const VectorFigures f = vector_figures(g);
    Values sizes, squares, fourths, logs;
    for (const double x : g) {
      sizes.push_back(std::fabs(x));
      squares.push_back(x * x);
      fourths.push_back(x * x * x * x);
      logs.push_back(std::log(std::fabs(x)));
    }
    double pairs = 0;
    for (const double a : sizes) {
      for (const double b : sizes) pairs += std::fabs(a - b);
    }
    const double count_of_pairs = static_cast<double>(d * d);
    CHECK(close(f.rms, std::sqrt(mean_of(squares)), d));
    CHECK(close(f.participation, mean_of(squares) * mean_of(squares) / mean_of(fourths), d));
    CHECK(std::fabs(f.gini - pairs / count_of_pairs / (2 * mean_of(sizes))) <=
          8 * static_cast<double>(d) * eps);
    const auto kurtosis = static_cast<double>(moment(g, 4) / (moment(g, 2) * moment(g, 2)));
    CHECK(close(f.kurtosis + 3.0, kurtosis, d));
    CHECK(close(f.log_spread, std::sqrt(static_cast<double>(moment(logs, 2))), d));
    const auto [least, most] = std::minmax_element(squares.begin(), squares.end());
    CHECK(close(f.dispersion, *most / *least, d));
  }
}

TEST_CASE("VectorFigures: equal entries, of which the round-off of their mean makes no spread") {
  for (const double value : {1.0, 0.1, -0.3}) {
    for (const std::size_t d : {1, 2, 10, 1000}) {
      CAPTURE(value);
      CAPTURE(d);
      const VectorFigures f = vector_figures(Values(d, value));
      CHECK(f.log_spread == 0.0);
      CHECK(close(f.participation, 1.0, d));
      CHECK(std::fabs(f.gini) <= 8 * static_cast<double>(d) * eps);
      CHECK(std::isnan(f.kurtosis));
      CHECK(f.dispersion == 1.0);
    }
  }
}

TEST_CASE("VectorFigures: zeros") {
  for (const std::size_t d : {2, 5, 64}) {
    CAPTURE(d);
    Values one(d, 0.0);
    one[d / 2] = -3.0;
    const auto n = static_cast<double>(d);
    const VectorFigures f = vector_figures(one);
    CHECK(close(f.participation, 1 / n, d));
    CHECK(close(f.gini, 1 - 1 / n, d));
    CHECK(close(f.kurtosis + 3.0, (n * n - 3 * n + 3) / (n - 1), d));
    CHECK(f.dispersion == std::numeric_limits<double>::infinity());
    CHECK(f.log_spread == 0.0);  // entries that are 0 are left out
    CHECK(close(f.near_zero, 1 - 1 / n, d));
    CHECK(close(f.negative, 1 / n, d));
    const VectorFigures none = vector_figures(Values(d, 0.0));
    CHECK(none.rms == 0.0);
    CHECK(none.negative == 0.0);
    for (const double x : {none.participation, none.gini, none.kurtosis, none.dispersion}) {
      CHECK(std::isnan(x));
    }
  }
  const VectorFigures near = vector_figures(Values{1e-3, -9.99e-4, 0.0, -1e-3});
  CHECK(near.near_zero == 0.5);
  CHECK(near.negative == 0.5);
}

TEST_CASE("relation, rank_correlation: Pearson, slope and Spearman with ties, against counted ranks") {
  CHECK(close(rank_correlation(sizes_of(Values{1, 2, 2, 3}), sizes_of(Values{1, 3, 2, 4})),
              4.5 / std::sqrt(4.5 * 5.0), 4));
  const Relation line = relation(Values{0, 1, 2, 5}, Values{1, -2, -5, -14});
  CHECK(close(line.pearson, -1.0, 4));
  CHECK(close(line.slope, -3.0, 4));
  const Values root{0, 1, 2, 9}, square{0, 1, 4, 81};
  CHECK(close(rank_correlation(sizes_of(root), sizes_of(square)), 1.0, 4));
  CHECK(relation(root, square).pearson < 0.99);
  // Numbers that agree in their first ten digits.
  Values near, far;
  for (int i = 0; i < 50; ++i) near.push_back(1.0 + 1e-12 * (i * 17 % 50)), far.push_back(i * 17 % 50 + 1);
  CHECK(close(rank_correlation(Sizes(near), Sizes(far)), 1.0, 50));
  for (const std::int64_t count : {3, 40, 300}) {
    Values x = random_values(count, 1), y = random_values(count, 2);
    for (double& v : x) v = std::round(3 * v);  // many ties
    for (std::size_t i = 0; i < y.size(); ++i) y[i] = std::round(2 * (y[i] + 0.2 * x[i]));
    const Values rx = counted_ranks(x), ry = counted_ranks(y);
    const Relation r = relation(x, y);
    // Covariances as differences of means: d eps of means of squares, over deviations of order 1 of the
    // ranks.
    const double bound = 100 * static_cast<double>(count) * eps;
    CHECK(std::fabs(r.pearson - covariance(x, y) / std::sqrt(covariance(x, x) * covariance(y, y))) < bound);
    CHECK(std::fabs(r.slope - covariance(x, y) / covariance(x, x)) < bound);
    const double by_rank = covariance(rx, ry) / std::sqrt(covariance(rx, rx) * covariance(ry, ry));
    CHECK(std::fabs(rank_correlation(sizes_of(x), sizes_of(y)) - by_rank) < bound);
  }
}

TEST_CASE("relation, rank_correlation: what they leave out, and where they say nothing") {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::nan("");
  const Values whole_x{1, 2, 4}, whole_y{3, 2, 2}, x_gaps{1, -inf, 2, 7, 4}, y_gaps{3, 9, 2, nan, 2};
  CHECK(relation(x_gaps, y_gaps).pearson == relation(whole_x, whole_y).pearson);
  CHECK(relation(x_gaps, y_gaps).slope == relation(whole_x, whole_y).slope);
  CHECK(rank_correlation(sizes_of(x_gaps), sizes_of(y_gaps)) ==
        rank_correlation(sizes_of(whole_x), sizes_of(whole_y)));
  for (const auto& [x, y] : {std::pair{Values{1, inf}, Values{1, 2}},
                             {Values{2}, Values{2}},
                             {Values(10, 0.1), random_values(10, 3)}}) {
    CHECK(std::isnan(relation(x, y).pearson));
    CHECK(std::isnan(relation(x, y).slope));
    CHECK(std::isnan(rank_correlation(sizes_of(x), sizes_of(y))));
  }
  // The mean of ten times log 0.3 is not log 0.3: no variation all the same.
  const Values varied = random_values(10, 3), flat(10, std::log(0.3));
  CHECK(std::isnan(relation(varied, flat).pearson));
  CHECK(std::isnan(rank_correlation(sizes_of(varied), sizes_of(flat))));
  CHECK(relation(varied, flat).slope == 0.0);
}

TEST_CASE("cosine and angle") {
  CHECK(close(cosine(Values{1, 0}, Values{2, 2}), std::sqrt(0.5), 2));
  CHECK(close(angle(Values{1, 0}, Values{2, 2}), std::numbers::pi / 4, 2));
  CHECK(cosine(Values{1, 0}, Values{0, 5}) == 0.0);
  CHECK(close(angle(Values{3, 4}, Values{-6, -8}), std::numbers::pi, 2));
  CHECK(angle(Values{3, 4}, Values{3, 4}) == 0.0);
  // An arc cosine would give 0 or 1.5e-8 here.
  CHECK(std::fabs(angle(Values{1, 0}, Values{1, 1e-9}) - 1e-9) <= 4 * eps);
  CHECK(std::isnan(cosine(Values{0, 0}, Values{1, 2})));
  CHECK(std::isnan(angle(Values{1, 2}, Values{0, 0})));
}

TEST_CASE("diagonal_plus_outer: the extremes of torch's eigenvalues") {
  std::vector<Values> cases = {{1.5},          {2, -2},          {1, -1, 1, 1}, {1, 1, 3},
                               {1, 3, 3},      {0, 2},           {0, 0, 1},     {1, 1e-3, 1e-3},
                               {0.5, 100, -7}, {1, 1 + 1e-9, 2}, {0, 0, 0},     {1e-4, 1, 2, 3}};
  for (const std::int64_t d : {2, 3, 17, 64}) cases.push_back(random_values(d, 7));
  for (const Values& v : cases) {
    const auto d = static_cast<std::int64_t>(v.size());
    const at::Tensor t = tensor(v, {d});
    for (const double c : {1.0 - 1.0 / static_cast<double>(d), 0.25, 1.0}) {
      CAPTURE(t);
      CAPTURE(c);
      const at::Tensor all = at::linalg_eigvalsh(at::diag(t.square()).add(at::outer(t, t), c));
      const double least = all[0].item<double>(), most = all[d - 1].item<double>();
      const Extremes e = diagonal_plus_outer(v, c);
      // A symmetric eigensolver is right to a few d eps of the largest.
      const double bound = 16 * static_cast<double>(d) * eps * most;
      CHECK(std::fabs(e.largest - most) <= bound);
      CHECK(std::fabs(e.smallest - least) <= bound);
    }
  }
}
