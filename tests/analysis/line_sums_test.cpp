#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include <ATen/Parallel.h>
#include <doctest/doctest.h>
#include <support/tensors.h>

#include <scalevec/analysis/line_sums.h>

using namespace scalevec;
using kernels::LineSums;

namespace {

constexpr double correction = 0.4, eps = 1e-3;

struct Map {
  at::Tensor before, after, gradient, v;
};

Map random_map(at::IntArrayRef shape, at::ScalarType dtype) {
  // The step is small beside the weight, as in a training.
  const at::Tensor w = normal(shape, 1);
  return {w.to(dtype), normal(shape, 2).mul(1e-3).add(w).to(dtype), normal(shape, 3).to(dtype),
          normal(shape, 4).square().to(dtype)};
}

// One entry's products in float64.
std::array<double, LineSums::count> products(double w, double after, double g, double v) {
  const double d = after - w;
  return {w * w, w * g, g * g, std::fabs(w * g), d * d, w * d, 1 / (std::sqrt(v / correction) + eps)};
}

// by_row: which sums; every entry of `sums` against a loop over the map.
void check(const Map& map, const Lines& sums, bool by_row) {
  const at::Tensor w = map.before.to(at::kDouble), a = map.after.to(at::kDouble),
                   g = map.gradient.to(at::kDouble), v = map.v.to(at::kDouble);
  const std::int64_t columns = w.size(-1), rows = w.numel() / columns, lines = by_row ? rows : columns;
  std::array<std::vector<double>, LineSums::count> expected, sizes;
  REQUIRE(sums.size() == static_cast<std::size_t>(lines));
  for (int k = 0; k < LineSums::count; ++k) {
    expected[k].resize(sums.size());
    sizes[k].resize(sums.size());
  }
  for (std::int64_t i = 0; i < w.numel(); ++i) {
    const auto line = static_cast<std::size_t>(by_row ? i / columns : i % columns);
    auto all = products(w.const_data_ptr<double>()[i], a.const_data_ptr<double>()[i],
                        g.const_data_ptr<double>()[i], v.const_data_ptr<double>()[i]);
    if (by_row) all[LineSums::inverse_root] = 0.0;  // of columns only
    for (std::size_t k = 0; k < all.size(); ++k) {
      expected[k][line] += all[k];
      sizes[k][line] += std::fabs(all[k]);
    }
  }
  // Of each term four roundings of the map's dtype (root, product, sum, quotient), of its sum one for each of
  // up to 128 terms; float64's own for the rest of up to 2000.
  const double unit = map.before.scalar_type() == at::kDouble ? std::numeric_limits<double>::epsilon()
                                                              : std::numeric_limits<float>::epsilon();
  const double bound = 132 * unit / 2 + 2000 * std::numeric_limits<double>::epsilon();
  for (int k = 0; k < LineSums::count; ++k) {
    CAPTURE(k);
    for (std::size_t j = 0; j < sums[k].size(); ++j) {
      CAPTURE(j);
      REQUIRE(std::fabs(sums[k][j] - expected[k][j]) <= bound * sizes[k][j]);
    }
  }
}

using Shape = std::vector<std::int64_t>;

}  // namespace

TEST_CASE("Line sums: a loop in float64, over borders of tiles, blocks and tasks") {
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
    for (const Shape& shape : std::vector<Shape>{{1, 1},
                                                 {3, 5},
                                                 {1, 300},
                                                 {129, 129},
                                                 {128, 128},
                                                 {513, 130},
                                                 {1024, 3},
                                                 {2050, 7},
                                                 {9, 2100},
                                                 {67, 4129},
                                                 {2, 40, 12},
                                                 {3, 1, 4}}) {
      CAPTURE(shape.back());
      const Map map = random_map(shape, dtype);
      check(map, column_sums(map.before, map.after, map.gradient, {map.v, correction, eps}), false);
      check(map, row_sums(map.before, map.after, map.gradient), true);
    }
  }
}

TEST_CASE("Line sums: other dtypes are converted, and layout says nothing") {
  const Map map = random_map({70, 33}, at::kBFloat16);
  CHECK(column_sums(map.before, map.after, map.gradient) ==
        column_sums(map.before.to(at::kFloat), map.after.to(at::kFloat), map.gradient.to(at::kFloat)));
  const Map wide = random_map({33, 70}, at::kFloat);
  const auto turned = [](const at::Tensor& t) { return t.t(); };
  const auto dense = [](const at::Tensor& t) { return t.t().contiguous(); };
  CHECK(row_sums(turned(wide.before), turned(wide.after), turned(wide.gradient)) ==
        row_sums(dense(wide.before), dense(wide.after), dense(wide.gradient)));
}

TEST_CASE("Line sums: the same bits for any number of threads") {
  const Map map = random_map({3100, 40}, at::kFloat);
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const Lines columns = column_sums(map.before, map.after, map.gradient),
              rows = row_sums(map.before, map.after, map.gradient);
  for (const int count : {2, 3, 7}) {
    at::set_num_threads(count);
    CHECK(column_sums(map.before, map.after, map.gradient) == columns);
    CHECK(row_sums(map.before, map.after, map.gradient) == rows);
  }
  at::set_num_threads(threads);
}
