// AdamW's own pass: its arithmetic, and that sums on the way change nothing and are those of a pass after it.
#include <cmath>

#include <ATen/Parallel.h>
#include <doctest/doctest.h>
#include <support/tensors.h>

#include <scalevec/core/ops.h>
#include <scalevec/trainer/adamw.h>

using namespace scalevec;
using kernels::LineSums;

namespace {

struct State {
  at::Tensor w, m, v, g;
};
State random_state(at::IntArrayRef shape, std::uint64_t seed) {
  return {normal(shape, seed).to(at::kFloat), normal(shape, seed + 1).mul(1e-2).to(at::kFloat),
          normal(shape, seed + 2).square().mul(1e-3).to(at::kFloat),
          normal(shape, seed + 3).mul(0.1).to(at::kFloat)};
}
State copy(const State& s) { return {s.w.clone(), s.m.clone(), s.v.clone(), s.g.clone()}; }

constexpr double rate = 3e-3, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, decay = 0.1;
void step(const std::vector<AdamwMove>& moves, double count) {
  adamw(moves, count, rate, beta1, beta2, eps, decay);
}

bool same(const at::Tensor& a, const at::Tensor& b) { return a.equal(b); }

}  // namespace

TEST_CASE("adamw: the formula in float64, torch's kernel, a version for each parameter") {
  for (const double count : {1.0, 7.0, 5000.0}) {
    const State begun = random_state({37, 131}, 10);
    State ours = copy(begun), theirs = copy(begun);
    const auto version = ours.w.unsafeGetTensorImpl()->version_counter().current_version();
    step({{ours.w, ours.m, ours.v, ours.g}}, count);
    CHECK(ours.w.unsafeGetTensorImpl()->version_counter().current_version() > version);
    CHECK(same(ours.g, begun.g));
    ops::adamw({theirs.w}, {theirs.g}, {theirs.m}, {theirs.v}, count, rate, beta1, beta2, eps, decay);
    const at::Tensor g = begun.g.to(at::kDouble), w = begun.w.to(at::kDouble);
    const at::Tensor m = begun.m.to(at::kDouble).mul(beta1).add(g, 1 - beta1);
    const at::Tensor v = begun.v.to(at::kDouble).mul(beta2).add(g.square(), 1 - beta2);
    const at::Tensor by = v.div(1 - std::pow(beta2, count)).sqrt().add(eps);
    const at::Tensor exact = w.mul(1 - rate * decay).sub(m.div(by), rate / (1 - std::pow(beta1, count)));
    const auto worst = [](const at::Tensor& a, const at::Tensor& b, const at::Tensor& size) {
      return a.to(at::kDouble).sub(b).abs().div(size).max().item<double>();
    };
    // Of w four roundings of float32; m cancels by at most the sum of its two terms.
    CHECK(worst(ours.w, exact, w.abs().add(rate * 10)) < 4 * 0x1p-24 + 1e-6 * rate);
    CHECK(worst(ours.m, m, begun.m.to(at::kDouble).abs().add(g.abs())) < 4 * 0x1p-24);
    CHECK(worst(ours.v, v, v) < 4 * 0x1p-24);
    CHECK(worst(ours.w, theirs.w.to(at::kDouble), w.abs().add(rate * 10)) < 4 * 0x1p-24 + 1e-6 * rate);
    CHECK(worst(ours.w, w, w.abs().add(1.0)) > 1e-4);
  }
}

TEST_CASE(
    "adamw: sums on the way are those of a pass after it, and change no bit, for any number of threads") {
  const int threads = at::get_num_threads();
  for (const auto& shape : std::vector<std::vector<std::int64_t>>{
           {1, 1}, {3, 128}, {64, 129}, {2100, 257}, {70, 2085}, {3, 40, 64}}) {
    CAPTURE(shape.size());
    const State begun = random_state(shape, 20), other = random_state({1025, 5}, 30),
                vector = random_state({33}, 40);
    State plain = copy(begun), plain_other = copy(other), plain_vector = copy(vector);
    step({{plain.w, plain.m, plain.v, plain.g},
          {plain_other.w, plain_other.m, plain_other.v, plain_other.g},
          {plain_vector.w, plain_vector.m, plain_vector.v, plain_vector.g}},
         3);
    const Lines after = column_sums(begun.w, plain.w, begun.g, {plain.v, 1 - std::pow(beta2, 3.0), eps});
    for (const int count : {1, 2, 5}) {
      at::set_num_threads(count);
      State summed = copy(begun), second = copy(other), third = copy(vector);
      Lines sums, of_second;
      step({{summed.w, summed.m, summed.v, summed.g, &sums},
            {second.w, second.m, second.v, second.g, &of_second},
            {third.w, third.m, third.v, third.g}},
           3);
      CHECK(same(summed.w, plain.w));
      CHECK(same(summed.m, plain.m));
      CHECK(same(summed.v, plain.v));
      CHECK(same(second.w, plain_other.w));
      CHECK(same(third.w, plain_vector.w));
      CHECK(sums == after);
      CHECK(of_second ==
            column_sums(other.w, plain_other.w, other.g, {plain_other.v, 1 - std::pow(beta2, 3.0), eps}));
    }
    at::set_num_threads(threads);
    // Against float64: of each kind the sum is what it says.
    const at::Tensor w = begun.w.to(at::kDouble), d = plain.w.to(at::kDouble).sub(w),
                     g = begun.g.to(at::kDouble);
    const at::Tensor inverse =
        plain.v.to(at::kDouble).div(1 - std::pow(beta2, 3.0)).sqrt().add(eps).reciprocal();
    const auto total = [&](int k) {
      double sum = 0;
      for (const double x : after[static_cast<std::size_t>(k)]) sum += x;
      return sum;
    };
    CHECK(total(LineSums::ww) == doctest::Approx(w.square().sum().item<double>()).epsilon(1e-5));
    CHECK(total(LineSums::gg) == doctest::Approx(g.square().sum().item<double>()).epsilon(1e-5));
    // A difference of float32 is half a unit of w off, 2^-24 of it, beside a step of some 1e-3 of w.
    CHECK(total(LineSums::dd) == doctest::Approx(d.square().sum().item<double>()).epsilon(1e-3));
    CHECK(total(LineSums::inverse_root) == doctest::Approx(inverse.sum().item<double>()).epsilon(1e-5));
  }
}

TEST_CASE("adamw: nothing to move") {
  const State none{at::Tensor(normal({0, 4}, 1).to(at::kFloat)), normal({0, 4}, 1).to(at::kFloat),
                   normal({0, 4}, 1).to(at::kFloat), normal({0, 4}, 1).to(at::kFloat)};
  Lines sums;
  step({{none.w, none.m, none.v, none.g, &sums}}, 1);
  CHECK(sums == Lines(4));
  step({}, 1);
}
