#include <cmath>
#include <cstdint>
#include <vector>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/equal.h>
#include <doctest/doctest.h>
#include <readers/errors.h>
#include <support/tensors.h>

#include <scalevec/core/model/rope.h>

#include <support/check.h>

using scalevec::RopeSpec;
using scalevec::RopeTables;

namespace {

RopeSpec spec(double base, std::int64_t dimensions, RopeSpec::Pairing pairing = RopeSpec::Pairing::halves) {
  RopeSpec rope;
  rope.base = base;
  rope.dimensions = dimensions;
  rope.pairing = pairing;
  return rope;
}

}  // namespace

TEST_CASE("rope: angles are positions times frequencies, wherever one begins to read") {
  RopeTables tables;
  const RopeSpec rope = spec(10000.0, 8);
  const auto table = tables.get(rope, {}, at::kCPU);
  CHECK((tables.get(rope, {}, at::kCPU) == table));
  CHECK((tables.get(spec(500.0, 8), {}, at::kCPU) != table));
  const auto [cos, sin] = table->rows(0, 300);
  CHECK(cos.sizes() == at::IntArrayRef({300, 4}));
  CHECK((cos.scalar_type() == at::kFloat));
  for (const std::int64_t p : {0, 1, 17, 299}) {
    for (std::int64_t i = 0; i < 4; ++i) {
      const double angle = static_cast<double>(p) * std::pow(10000.0, -static_cast<double>(i) / 4.0);
      // Frequency and angle are float32: the angle is off by at most two roundings of 2^-24.
      CHECK(std::abs(cos[p][i].item<double>() - std::cos(angle)) <= angle * 1.2e-7 + 6e-8);
      CHECK(std::abs(sin[p][i].item<double>() - std::sin(angle)) <= angle * 1.2e-7 + 6e-8);
    }
  }
  const auto [later, unused] = table->rows(250, 800);  // the table has to grow
  CHECK(at::equal(later.narrow(0, 0, 50), cos.narrow(0, 250, 50)));
  const auto divided = tables.get(rope, vector_of({1.0, 2.0, 4.0, 8.0}), at::kCPU);
  CHECK(at::equal(divided->rows(8, 1).first[0][3], cos[1][3]));
  refusal([&] { tables.get(rope, vector_of({1.0}), at::kCPU); }, scalevec::ErrorCode::shape);
}

TEST_CASE("rope: scores depend on distances alone") {
  RopeTables tables;
  for (const auto pairing : {RopeSpec::Pairing::halves, RopeSpec::Pairing::interleaved}) {
    const RopeSpec rope = spec(50.0, 6, pairing);
    const auto table = tables.get(rope, {}, at::kCPU);
    const at::Tensor q = normal({1, 1, 1, 8}, 1).expand({1, 40, 1, 8}).contiguous(),
                     k = normal({1, 1, 1, 8}, 2).expand({1, 40, 1, 8}).contiguous();
    const auto [cos, sin] = table->rows(0, 40);
    const at::Tensor qr = rotate(q, cos, sin, rope, false).view({40, 8}),
                     kr = rotate(k, cos, sin, rope, false).view({40, 8});
    const at::Tensor scores = qr.matmul(kr.t());
    for (const std::int64_t step : {0, 1, 7}) {
      const at::Tensor along = scores.diagonal(step);
      // The tables are float32, so sums of squares of cosine and sine are 1 up to 2^-23 or so, over angles of
      // 40 radians.
      CHECK((along - along[0]).abs().max().item<double>() <= 2e-5);
    }
    CHECK(std::abs(scores[5][0].item<double>() - scores[0][0].item<double>()) > 1e-2);
    CHECK(at::equal(qr.narrow(1, 6, 2), q.view({40, 8}).narrow(1, 6, 2)));  // a part of each head stays
  }
}

TEST_CASE("rope: in place or not, and its gradient and the gradient of that") {
  RopeTables tables;
  const RopeSpec rope = spec(50.0, 6, RopeSpec::Pairing::interleaved);
  const auto [cos, sin] = tables.get(rope, {}, at::kCPU)->rows(2, 5);
  const at::Tensor x = normal({2, 5, 3, 8}, 1), seed = normal({2, 5, 3, 8}, 2);
  at::Tensor leaf = x.clone().requires_grad_(true);
  const at::Tensor y = rotate(leaf, cos, sin, rope, false);
  const at::Tensor copy = x.clone();
  CHECK(at::equal(rotate(copy, cos, sin, rope, true), y.detach()));
  CHECK(at::equal(copy, y.detach()));
  // A linear map: <y(x), seed> = <x, gradient>, and the gradient of the gradient leads back to the map.
  at::Tensor slope_seed = seed.clone().requires_grad_(true);
  y.backward(slope_seed, /*retain_graph=*/true, /*create_graph=*/true);
  const at::Tensor slope = leaf.grad();
  CHECK(std::abs(((x * slope).sum() - (y * seed).sum()).item<double>()) <= 1e-12 * 240.0);
  (slope * x).sum().backward();
  CHECK((slope_seed.grad() - y).abs().max().item<double>() <= 1e-12);
}
