#include <cmath>
#include <cstdint>
#include <exception>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/layer_norm.h>
#include <doctest/doctest.h>
#include <readers/errors.h>
#include <support/tensors.h>

#include <scalevec/core/norm.h>

using scalevec::ErrorCode;
using scalevec::NormParts;
using scalevec::Statistics;

namespace {

// The definition, in ATen's own differentiable operators.
at::Tensor plain(const at::Tensor& x, const at::Tensor& g, double eps, std::int64_t group) {
  const at::Tensor v = x.unflatten(-1, {x.size(-1) / group, group});
  return (v / (v.pow(2).mean(-1, true) + eps).sqrt()).flatten(-2) * g;
}

double distance(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

}  // namespace

TEST_CASE("rms_norm: value, gradients and their gradients are those of the definition") {
  for (const std::int64_t group : {12, 4}) {
    CAPTURE(group);
    const at::Tensor x = normal({2, 3, 12}, 1), g = normal({12}, 2, at::kDouble, 1.0),
                     seed = normal({2, 3, 12}, 3);
    const at::Tensor direction_x = normal({2, 3, 12}, 4), direction_g = normal({12}, 5);
    std::vector<std::vector<at::Tensor>> results;
    for (const bool ours : {true, false}) {
      at::Tensor xs = x.clone().requires_grad_(true), gs = g.clone().requires_grad_(true);
      const at::Tensor y = ours ? scalevec::rms_norm(xs, gs, 1e-3, group) : plain(xs, gs, 1e-3, group);
      // A loss with curvature, so that the second derivative meets all of it.
      const at::Tensor loss = (y * seed).sum() + y.pow(3).sum();
      loss.backward({}, /*retain_graph=*/true, /*create_graph=*/true);
      const at::Tensor dx = xs.grad(), dg = gs.grad();
      std::vector<at::Tensor> all = {y.detach(), dx.detach().clone(), dg.detach().clone()};
      xs.mutable_grad() = at::Tensor();
      gs.mutable_grad() = at::Tensor();
      ((dx * direction_x).sum() + (dg * direction_g).sum()).backward();
      all.push_back(xs.grad());
      all.push_back(gs.grad());
      results.push_back(all);
    }
    for (std::size_t i = 0; i < results[0].size(); ++i) {
      CAPTURE(i);
      CHECK(distance(results[0][i], results[1][i]) <=
            1e-12 * (1.0 + results[1][i].abs().max().item<double>()));
    }
  }
}

TEST_CASE("rms_norm: float32 and bfloat16 gradients agree with float64") {
  const at::Tensor x = normal({40, 96}, 1), g = normal({96}, 2, at::kDouble, 1.0), seed = normal({40, 96}, 3);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    at::Tensor xs = x.to(dtype).requires_grad_(true), gs = g.to(at::kFloat).requires_grad_(true);
    at::Tensor xd = xs.detach().to(at::kDouble).requires_grad_(true),
               gd = gs.detach().to(at::kDouble).requires_grad_(true);
    const at::Tensor y = scalevec::rms_norm(xs, gs, 1e-5);
    CHECK((y.scalar_type() == dtype));
    y.backward(seed.to(dtype));
    plain(xd, gd, 1e-5, 96).backward(seed.to(dtype).to(at::kDouble));
    CHECK((xs.grad().scalar_type() == dtype));
    CHECK((gs.grad().scalar_type() == at::kFloat));
    // dx is rounded to the dtype once; dg stays in float32.
    CHECK(distance(xs.grad(), xd.grad()) <= (dtype == at::kFloat ? 1e-6 : 1.0 / 256.0 * 8.0));
    CHECK(distance(gs.grad(), gd.grad()) <= 1e-6 * gd.grad().abs().max().item<double>() * 10.0);
  }
}

TEST_CASE(
    "rms_norm: the bits do not depend on threads, on who asks for parts, or on the gradient being recorded") {
  const at::Tensor x = normal({700, 96}, 1, at::kFloat), g = normal({96}, 2, at::kFloat, 1.0),
                   seed = normal({700, 96}, 3, at::kFloat);
  const int threads = at::get_num_threads();
  std::vector<at::Tensor> values, slopes;
  for (const int count : {1, 2}) {
    at::set_num_threads(count);
    values.push_back(scalevec::rms_norm(x, g, 1e-5));
    at::Tensor xs = x.clone().requires_grad_(true), gs = g.clone().requires_grad_(true);
    const at::Tensor y = scalevec::rms_norm(xs, gs, 1e-5);
    y.backward(seed);
    values.push_back(y.detach());
    slopes.push_back(gs.grad());
    NormParts parts{.want_rms = true, .want_normalized = true};
    values.push_back(scalevec::rms_norm(x, g, 1e-5, 0, &parts));
    CHECK(at::equal(parts.normalized * g, values.back()));
    CHECK(parts.rms.sizes() == at::IntArrayRef({700, 1}));
    CHECK(distance(parts.rms.squeeze(-1), (x.to(at::kDouble).pow(2).mean(-1) + 1e-5).sqrt()) <= 1e-6);
    CHECK_FALSE(parts.normalized.requires_grad());
  }
  at::set_num_threads(threads);
  for (const at::Tensor& value : values) CHECK(at::equal(value, values[0]));
  CHECK(at::equal(slopes[0], slopes[1]));
}

TEST_CASE("rms_norm: rows need not lie together, groups have one rms each") {
  const at::Tensor wide = normal({3, 8, 12}, 1);
  const at::Tensor x = wide.transpose(0, 1), g = normal({12}, 2);
  CHECK(distance(scalevec::rms_norm(x, g, 1e-6, 4), plain(x, g, 1e-6, 4)) <= 1e-14);
  NormParts parts{.want_rms = true};
  scalevec::rms_norm(x, g, 1e-6, 4, &parts);
  CHECK(parts.rms.sizes() == at::IntArrayRef({8, 3, 3}));
  CHECK_FALSE(parts.normalized.defined());
  CHECK(scalevec::rms_norm(normal({0, 12}, 1), g, 1e-6).sizes() == at::IntArrayRef({0, 12}));
}

TEST_CASE("apply_norm: LayerNorm is ATen's, a bare scale divides by nothing") {
  const at::Tensor x = normal({5, 12}, 1), g = normal({12}, 2), b = normal({12}, 3);
  NormParts parts{.want_rms = true, .want_normalized = true};
  const at::Tensor y = scalevec::apply_norm(Statistics::layer, x, g, b, 1e-5, 0, &parts);
  CHECK(distance(y, at::layer_norm(x, {12}, g, b, 1e-5)) <= 1e-13);
  CHECK(at::equal(parts.normalized * g + b, y));
  const at::Tensor scaled = scalevec::apply_norm(Statistics::none, x, g, {}, 1e-5, 0, &parts);
  CHECK(at::equal(scaled, x * g));
  CHECK(at::equal(parts.normalized, x));
  CHECK((parts.rms == 1.0).all().item<bool>());
  CHECK(distance(scalevec::apply_norm(Statistics::rms, x, g, b, 1e-5), plain(x, g, 1e-5, 12) + b) <= 1e-14);
}

TEST_CASE("rms_norm: an input written before the backward pass is noticed") {
  at::Tensor x = normal({2, 12}, 1), g = normal({12}, 2).requires_grad_(true);
  const at::Tensor y = scalevec::rms_norm(x, g, 1e-5);
  x.add_(1.0);
  std::string message;
  try {
    y.sum().backward();
  } catch (const std::exception& error) {
    message = error.what();
  }
  CHECK(contains(message, "modified by an inplace operation"));
}

TEST_CASE("rms_norm refuses what does not fit, and says what would") {
  const at::Tensor x = normal({2, 12}, 1, at::kFloat), g = normal({12}, 2, at::kFloat);
  refusal([&] { scalevec::rms_norm(x, normal({11}, 1, at::kFloat), 1e-5); }, ErrorCode::shape);
  refusal([&] { scalevec::rms_norm(x, g, 1e-5, 5); }, ErrorCode::shape);
  refusal([&] { scalevec::rms_norm(x.to(at::kHalf), g, 1e-5); }, ErrorCode::dtype);
  std::string message;
  refusal([&] { scalevec::rms_norm(x, g.to(at::kDouble), 1e-5); }, ErrorCode::dtype, &message);
  CHECK(contains(message, "expected Float"));
}
