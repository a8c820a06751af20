#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>
#include <doctest/doctest.h>
#include <hooks/two_norms.h>
#include <readers/errors.h>

#include <scalevec/hooks/capture.h>
#include <scalevec/hooks/override.h>

using scalevec::Capture;
using scalevec::ErrorCode;
using scalevec::Override;
using scalevec::Selector;
using scalevec::SiteCapture;
namespace taps = scalevec::taps;

namespace {

const Selector everything = Selector::parse("**");
const char* const first = "layers.0.attn.input_norm";
const char* const bare = "layers.0.mlp.input_norm";

std::string state_refusal(const SiteCapture& site, unsigned tap) {
  std::string message;
  const auto fields = refusal([&] { site.get(tap); }, ErrorCode::state, &message);
  CHECK(fields.tensor == site.site().address.str());
  CHECK(fields.key == scalevec::tap_name(tap));
  return message;
}

// Central difference of f along each entry of `at_point`, which is put back. With steps of 1e-6 in float64
// truncation is about 1e-12 and rounding 1e-10 of f's scale, so 1e-7 of the largest entry is a wide bound.
template <class F>
at::Tensor slopes(const at::Tensor& at_point, F f) {
  const at::NoGradGuard no_grad;
  std::vector<double> out;
  const at::Tensor flat = at_point.view({-1});
  for (std::int64_t i = 0; i < flat.size(0); ++i) {
    const at::Tensor entry = flat.select(0, i);
    const double value = entry.item<double>(), step = 1e-6;
    entry.fill_(value + step);
    const double above = f();
    entry.fill_(value - step);
    const double below = f();
    entry.fill_(value);
    out.push_back((above - below) / (2 * step));
  }
  return tensor(std::move(out), at_point.sizes());
}

void check_close(const at::Tensor& a, const at::Tensor& b, double relative) {
  CHECK(a.sizes() == b.sizes());
  CHECK(a.sub(b).abs().max().item<double>() <= relative * b.abs().max().item<double>());
}

}  // namespace

TEST_CASE("capture: parts of a norm, computed again by hand") {
  TwoNorms model;
  const at::Tensor x = normal({2, 3, 5}, 10);
  const Capture capture(model, everything);
  const at::Tensor y = model(x);
  CHECK(capture.addresses() == std::vector<std::string>{first, bare, "final_norm"});
  const SiteCapture site = capture.at(first);
  REQUIRE(site.forwards() == 1);
  CHECK(site.input().at(0).equal(x));
  const double* const in = x.const_data_ptr<double>();
  const at::Tensor rms = site.rms().at(0), normalized = site.normalized().at(0), scaled = site.scaled().at(0);
  CHECK(rms.sizes() == at::IntArrayRef({2, 3, 1}));
  for (std::int64_t row = 0; row < 6; ++row) {
    long double squares = 0;
    for (std::int64_t c = 0; c < 5; ++c)
      squares += static_cast<long double>(in[row * 5 + c]) * in[row * 5 + c];
    const double want = static_cast<double>(std::sqrt(squares / 5 + 1e-6L));
    // Five terms, a division, an addition and a root: ten roundings at most.
    CHECK(std::abs(rms.view({-1}).select(0, row).item<double>() - want) <= 10 * 0x1p-53 * want);
    for (std::int64_t c = 0; c < 5; ++c) {
      const double g = model.first.select(0, c).item<double>(), n = in[row * 5 + c] / want;
      CHECK(std::abs(normalized.view({6, 5}).select(0, row).select(0, c).item<double>() - n) <=
            12 * 0x1p-53 * std::abs(n));
      CHECK(std::abs(scaled.view({6, 5}).select(0, row).select(0, c).item<double>() - n * g) <=
            13 * 0x1p-53 * std::abs(n * g));
    }
  }
  CHECK(capture.at("output_norm.weight").scaled().at(0).equal(y));
  CHECK(capture.at("final_norm").vector().at(0).equal(model.scales().at("final_norm").effective()));
  // A norm without a vector has all parts but that one.
  CHECK(capture.at(bare).normalized().at(0).equal(capture.at(bare).scaled().at(0)));
  CHECK(contains(state_refusal(capture.at(bare), taps::vector), "no vector"));
}

TEST_CASE("capture: gradients are those of finite differences") {
  TwoNorms model;
  const at::Tensor x = normal({2, 3, 5}, 10), weights = normal({2, 3, 5}, 11);
  const auto loss = [&] { return model(x).mul(weights).sum().mul(1.0); };
  model.first.requires_grad_();
  model.last.requires_grad_();
  const at::Tensor xg = x.clone().requires_grad_();
  Capture capture(model, everything, taps::gradients);
  model(xg).mul(weights).sum().backward();
  capture.stop();
  const auto value = [&] { return loss().item<double>(); };
  check_close(capture.at(first).vector_gradient().at(0), slopes(model.first, value), 1e-7);
  check_close(capture.at("final_norm").vector_gradient().at(0), slopes(model.last, value), 1e-7);
  check_close(capture.at(first).input_gradient().at(0), slopes(x, value), 1e-7);
  // What the stored parameters and the input got themselves is the same.
  CHECK(capture.at(first).vector_gradient().at(0).equal(model.first.grad()));
  CHECK(capture.at(first).input_gradient().at(0).equal(xg.grad()));
  CHECK(capture.at(bare).input_gradient().at(0).sizes() == x.sizes());
  CHECK(contains(state_refusal(capture.at(bare), taps::vector_gradient), "no vector"));
}

TEST_CASE("capture: the gradient of a lent vector") {
  TwoNorms model;
  const at::Tensor x = normal({2, 3, 5}, 10), weights = normal({2, 3, 5}, 11);
  const at::Tensor leaf = normal({5}, 12, at::kDouble, 1.0).requires_grad_();
  const Override lent(model, {{first, leaf.mul(2.0)}});
  const Capture capture(model, everything, taps::vector_gradient | taps::vector);
  model(x).mul(weights).sum().backward();
  const at::Tensor gradient = capture.at(first).vector_gradient().at(0);
  CHECK(leaf.grad().equal(gradient.mul(2.0)));
  const auto value = [&] {
    const Override now(model, {{first, leaf.detach().mul(2.0)}});
    return model(x).mul(weights).sum().item<double>();
  };
  const at::Tensor point = leaf.detach();
  check_close(leaf.grad(), slopes(point, value), 1e-7);
  CHECK(capture.at(first).vector().at(0).equal(point.mul(2.0)));
}

TEST_CASE("capture: one lent leaf in several forwards: each has its own gradient, and no hook stays on it") {
  TwoNorms model;
  const at::Tensor leaf = normal({5}, 12).requires_grad_();
  const Override lent(model, {{first, leaf}});
  const Capture capture(model, everything, taps::vector_gradient);
  const at::Tensor a = model(normal({1, 3, 5}, 10)).mul(normal({1, 3, 5}, 21)).sum();
  const at::Tensor b = model(normal({1, 3, 5}, 11)).mul(normal({1, 3, 5}, 22)).sum();
  a.add(b).backward();
  const auto gradients = capture.at(first).vector_gradient();
  REQUIRE(gradients.size() == 2);
  CHECK_FALSE(gradients[0].equal(gradients[1]));
  check_close(gradients[0].add(gradients[1]), leaf.grad(), 1e-14);
}

TEST_CASE("capture: forwards append, clear forgets, stop keeps") {
  TwoNorms model;
  Capture capture(model, everything, taps::input);
  const at::Tensor a = normal({1, 2, 5}, 10), b = normal({2, 4, 5}, 11);
  model(a);
  model(b);
  const auto inputs = capture.at(first).input();
  REQUIRE(inputs.size() == 2);
  CHECK(inputs[0].equal(a));
  CHECK(inputs[1].equal(b));
  CHECK(inputs[0].const_data_ptr() == a.const_data_ptr());  // no copy
  capture.clear();
  CHECK(capture.at(first).forwards() == 0);
  model(b);
  capture.stop();
  model(a);
  REQUIRE(capture.at(first).forwards() == 1);
  CHECK(capture.at(first).input().at(0).equal(b));
}

TEST_CASE("capture: backward passes add up; forwards that none reached stay undefined") {
  TwoNorms model;
  model.first.requires_grad_();
  const Capture capture(model, everything, taps::vector_gradient);
  const at::Tensor weights = normal({1, 2, 5}, 21);
  const at::Tensor loss = model(normal({1, 2, 5}, 10)).mul(weights).sum();
  const SiteCapture site = capture.at(first);
  model(normal({1, 2, 5}, 11));
  loss.backward({}, /*retain_graph=*/true);
  const at::Tensor once = site.vector_gradient().at(0);  // a site's view gets later gradients
  loss.backward();
  CHECK(site.vector_gradient().at(0).equal(once.add(once)));
  CHECK_FALSE(capture.at(first).vector_gradient().at(1).defined());
}

TEST_CASE("capture: what was not recorded is named with its reason") {
  TwoNorms model;
  const at::Tensor x = normal({1, 2, 5}, 10);
  Capture capture(model, everything, taps::input | taps::gradients);
  CHECK(contains(state_refusal(capture.at(first), taps::input), "did not run"));
  CHECK(contains(state_refusal(capture.at(first), taps::scaled), "not asked for"));
  model(x);
  CHECK(contains(state_refusal(capture.at(first), taps::vector_gradient), "requires_grad_"));
  CHECK(contains(state_refusal(capture.at(first), taps::input_gradient), "requires_grad_"));
  capture.clear();
  model.first.requires_grad_();
  {
    const at::NoGradGuard no_grad;
    model(x);
  }
  CHECK(contains(state_refusal(capture.at(first), taps::vector_gradient), "grad mode was off"));
  const at::Tensor loss = model(x).sum();
  CHECK(contains(state_refusal(capture.at(first), taps::vector_gradient), "backward was not run"));
  capture.clear();
  loss.backward();  // of a forward that was forgotten
  CHECK(contains(state_refusal(capture.at(first), taps::vector_gradient), "did not run"));

  Capture some(model, Selector::parse("final_norm"), taps::input);
  address_refusal([&] { some.at(first); });
  refusal([&] { Capture(model, everything, 0); }, ErrorCode::value);
  refusal([&] { Capture(model, everything, 128); }, ErrorCode::value);
  refusal([&] { Capture(model, Selector::parse("final_norm@1")); }, ErrorCode::value);
}

TEST_CASE("capture: a write to a captured activation is noticed, an edit of a vector does no harm") {
  TwoNorms model;
  const at::Tensor x = normal({1, 2, 5}, 10);
  const Capture capture(model, everything);
  model(x);
  const auto edited = model.scales().at(first).bytes();
  model.scales().at(first).overwrite(std::vector<std::byte>(edited.size()));
  CHECK_FALSE(capture.at(first).vector().at(0).equal(model.first));
  x.add_(1.0);
  CHECK(contains(state_refusal(capture.at(first), taps::input), "overwritten"));
  capture.at(first).scaled();
}

TEST_CASE("capture: inference mode") {
  TwoNorms model;
  const Capture capture(model, everything, taps::all);
  const c10::InferenceMode mode;
  const at::Tensor y = model(normal({1, 2, 5}, 10));
  CHECK(capture.at("final_norm").scaled().at(0).equal(y));
  CHECK(contains(state_refusal(capture.at("final_norm"), taps::input_gradient), "grad mode was off"));
}

TEST_CASE("capture: the graph is not kept") {
  TwoNorms model;
  model.first.requires_grad_();
  const Capture capture(model, everything, taps::all);
  std::weak_ptr<int> alive;
  {
    const auto token = std::make_shared<int>();
    alive = token;
    const at::Tensor x = normal({1, 2, 5}, 10).requires_grad_().mul(1.0);
    x.register_hook([token](const at::Tensor&) {});
    model(x);
  }
  CHECK(alive.expired());
  CHECK_FALSE(capture.at(first).scaled().at(0).requires_grad());
}
