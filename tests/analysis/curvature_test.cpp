// Curvature of losses whose Hessian is known: a vector and maps of different shapes.
#include <cmath>
#include <stdexcept>

#include <doctest/doctest.h>
#include <support/tensors.h>

#include <scalevec/analysis/curvature.h>
#include <scalevec/core/ops.h>

using namespace scalevec;

namespace {

at::Tensor flat(const std::vector<at::Tensor>& tensors) {
  std::vector<at::Tensor> parts;
  for (const at::Tensor& t : tensors) parts.push_back(t.reshape({-1}));
  return ops::cat(parts, 0);
}

// x^T H x / 2 of all the tensors together, and what of its gradient belongs to those that are asked for.
struct Quadratic {
  std::vector<at::Tensor> all;
  at::Tensor hessian;

  std::vector<at::Tensor> operator()(const std::vector<at::Tensor>& asked) const {
    const at::Tensor gradient = hessian.mv(flat(all));
    std::vector<at::Tensor> out;
    for (const at::Tensor& t : asked) {
      std::int64_t first = 0;
      for (const at::Tensor& u : all) {
        if (u.is_same(t)) out.push_back(gradient.narrow(0, first, t.numel()).reshape(t.sizes()));
        first += u.numel();
      }
    }
    return out;
  }
};

at::Tensor symmetric(std::int64_t size, unsigned seed) {
  const at::Tensor m = normal({size, size}, seed);
  return m.add(m.t()).mul(0.5);
}

void check(const Spectrum& found, const at::Tensor& block) {
  const Spectrum exact = spectrum([&](const at::Tensor& v) { return block.mv(v); }, block.size(0));
  const double size = block.norm().item<double>();
  CHECK(std::fabs(found.largest - exact.largest) < 1e-8 * size);
  CHECK(std::fabs(found.trace - exact.trace) < 1e-8 * size * static_cast<double>(block.size(0)));
  CHECK(found.frobenius == doctest::Approx(exact.frobenius).epsilon(1e-8));
  REQUIRE(found.diagonal.size() == exact.diagonal.size());
  for (std::size_t j = 0; j < exact.diagonal.size(); ++j)
    CHECK(std::fabs(found.diagonal[j] - exact.diagonal[j]) < 1e-7 * size);
}

}  // namespace

TEST_CASE(
    "curvature: every block of a quadratic loss, maps of different shapes, and nothing has moved after it") {
  const std::vector<at::Tensor> all{normal({7}, 1), normal({5, 7}, 2), normal({3, 2, 7}, 3)};
  const Quadratic loss{all, symmetric(7 + 35 + 42, 4)};
  const at::Tensor before = flat(all).clone();
  const Curvature c = curvature(all[0], {all[1], all[2]}, loss);
  CHECK(flat(all).equal(before));
  const at::Tensor gradient = loss({all[0]})[0];
  for (std::size_t j = 0; j < 7; ++j) {
    CHECK(c.g[j] == all[0].const_data_ptr<double>()[j]);
    CHECK(c.gradient[j] == gradient.const_data_ptr<double>()[j]);
  }
  check(c.vector, loss.hessian.narrow(0, 0, 7).narrow(1, 0, 7));
  REQUIRE((c.maps && c.joint));
  check(*c.maps, loss.hessian.narrow(0, 7, 77).narrow(1, 7, 77));
  check(*c.joint, loss.hessian);
  const Curvature alone = curvature(all[0], {}, loss);
  CHECK_FALSE((alone.maps || alone.joint));
}

TEST_CASE("curvature: an exception on the way leaves every tensor as it was, bit for bit") {
  const std::vector<at::Tensor> all{normal({4}, 1), normal({3, 4}, 2)};
  const Quadratic loss{all, symmetric(16, 3)};
  const at::Tensor before = flat(all).clone();
  for (const int at : {1, 2, 3, 30, 60}) {
    int calls = 0;
    const Gradients failing = [&](const std::vector<at::Tensor>& asked) {
      if (++calls == at) throw std::runtime_error("in the middle");
      return loss(asked);
    };
    CHECK_THROWS_WITH(curvature(all[0], {all[1]}, failing), "in the middle");
    CHECK(calls == at);
    CHECK(flat(all).equal(before));
  }
}
