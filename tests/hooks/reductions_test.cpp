#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <hooks/two_norms.h>
#include <readers/errors.h>

#include <scalevec/hooks/capture.h>
#include <scalevec/hooks/channel_reduction.h>
#include <scalevec/hooks/reductions.h>

using scalevec::Capture;
using scalevec::ChannelReduction;
using scalevec::ErrorCode;
using scalevec::Reductions;
using scalevec::Selector;
namespace taps = scalevec::taps;

namespace {

const Selector everything = Selector::parse("**");
const char* const first = "layers.0.attn.input_norm";
constexpr double unit = 0x1p-53;

// As a header promises: a sum of n float64 terms is within n unit of their summed magnitudes of the exact
// one.
void check_sum(const at::Tensor& sum, const at::Tensor& terms) {
  const at::Tensor rows = terms.to(at::kDouble).reshape({-1, terms.size(-1)});
  const std::int64_t n = rows.size(0), channels = rows.size(1);
  REQUIRE(sum.sizes() == at::IntArrayRef({channels}));
  REQUIRE((sum.scalar_type() == at::kDouble));
  const at::Tensor table = rows.contiguous();
  const double* const value = table.const_data_ptr<double>();
  bool within = true;
  const at::Tensor found = sum.contiguous();
  for (std::int64_t c = 0; c < channels; ++c) {
    long double exact = 0, magnitude = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      exact += value[i * channels + c];
      magnitude += std::abs(value[i * channels + c]);
    }
    const long double error = std::abs(found.const_data_ptr<double>()[c] - exact);
    within = within && error <= static_cast<long double>(n) * unit * magnitude;
  }
  CHECK(within);
}

void check_all(const ChannelReduction& figures, const at::Tensor& values) {
  const at::Tensor rows = values.to(at::kDouble).reshape({-1, values.size(-1)});
  CHECK(figures.count() == rows.size(0));
  check_sum(figures.sum(), rows);
  check_sum(figures.sum_of_squares(), rows.mul(rows));
  CHECK(figures.minimum().equal(rows.amin(0)));
  CHECK(figures.maximum().equal(rows.amax(0)));
  CHECK(figures.max_abs().equal(rows.abs().amax(0)));
  CHECK(figures.mean().equal(figures.sum().div(static_cast<double>(rows.size(0)))));
  CHECK(figures.mean_square().equal(figures.sum_of_squares().div(static_cast<double>(rows.size(0)))));
}

}  // namespace

TEST_CASE(
    "channel reduction: figures of every dtype and shape, larger than a block, within the stated bound") {
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
    CAPTURE(c10::toString(dtype));
    for (const std::vector<std::int64_t>& shape :
         {std::vector<std::int64_t>{1, 1}, {7}, {2, 3, 4, 5}, {70000, 4}, {2, 262147}}) {
      if (shape.back() > 1000 && dtype != at::kFloat) continue;  // wider than a block: once is enough
      // Values around a large mean, where float32 sums would be off in the fourth digit.
      const at::Tensor values = normal(shape, 7, dtype, 100.0, 1.0);
      ChannelReduction figures;
      figures.add(values);
      check_all(figures, shape.size() == 1 ? values.view({1, 7}) : values);
    }
  }
}

TEST_CASE("channel reduction: NaN stays NaN in its own channel") {
  ChannelReduction figures;
  figures.add(tensor({1.0, std::numeric_limits<double>::quiet_NaN(), 3.0, 4.0}, {2, 2}));
  figures.add(tensor({5.0, 6.0}, {1, 2}));
  for (const at::Tensor& figure : {figures.sum(), figures.minimum(), figures.maximum(), figures.max_abs()}) {
    CHECK(std::isnan(figure.select(0, 1).item<double>()));
    CHECK_FALSE(std::isnan(figure.select(0, 0).item<double>()));
  }
}

TEST_CASE("channel reduction: a value type; what does not fit is refused") {
  ChannelReduction figures;
  refusal([&] { figures.sum(); }, ErrorCode::state);
  refusal([&] { figures.product(); }, ErrorCode::state);
  figures.add(normal({2, 3}, 1));
  const ChannelReduction before = figures;
  const at::Tensor sum = before.sum();
  figures.add(normal({2, 3}, 2));
  figures.sum().zero_();
  CHECK(before.count() == 2);
  CHECK(before.sum().equal(sum));
  CHECK_FALSE(figures.sum().equal(sum));
  refusal([&] { figures.add(normal({2, 4}, 1)); }, ErrorCode::shape);
  refusal([&] { figures.add(normal({2, 3}, 1, at::kInt)); }, ErrorCode::dtype);
  refusal([&] { figures.add(normal({1}, 1).select(0, 0)); }, ErrorCode::shape);
  refusal([&] { figures.add_product(normal({2, 3}, 1), normal({3, 2}, 1)); }, ErrorCode::shape);
  ChannelReduction other;
  other.add(normal({2, 4}, 1));
  refusal([&] { figures.merge(other); }, ErrorCode::shape);
  figures.merge(ChannelReduction());
  CHECK(figures.count() == 4);
}

TEST_CASE("reductions: of all taps, against what a capture kept") {
  TwoNorms model(at::kFloat);
  Reductions sums(model, everything, taps::input | taps::rms | taps::normalized | taps::scaled);
  const Capture capture(model, everything);
  const at::Tensor x = normal({4, 6, 5}, 10, at::kFloat);
  model(x);
  for (const std::string& address : sums.addresses()) {
    for (const unsigned tap : {taps::input, taps::rms, taps::normalized, taps::scaled}) {
      check_all(sums.at(address, tap), capture.at(address).get(tap).at(0));
    }
  }
}

TEST_CASE("reductions: the split into forwards moves nothing but the last bits of sums, within the bound") {
  TwoNorms model(at::kFloat);
  const at::Tensor x = normal({1, 240, 5}, 10, at::kFloat, 3.0);
  const auto run = [&](std::int64_t step) {
    Reductions sums(model, Selector::parse(first), taps::input);
    for (std::int64_t i = 0; i < 240; i += step) model(x.narrow(1, i, std::min<std::int64_t>(step, 240 - i)));
    return sums.at(first, taps::input);
  };
  const ChannelReduction whole = run(240);
  for (const std::int64_t step : {1, 7, 100}) {
    const ChannelReduction split = run(step);
    check_all(split, x);
    CHECK(split.minimum().equal(whole.minimum()));
    CHECK(split.max_abs().equal(whole.max_abs()));
    const at::Tensor bound = x.abs().to(at::kDouble).sum(at::IntArrayRef({0, 1})).mul(2 * 240 * unit);
    CHECK(split.sum().sub(whole.sum()).abs().le(bound).all().item<bool>());
  }
}

TEST_CASE("reductions: products are saliencies: g dL/dg summed over tokens, x dL/dx zero over a group") {
  TwoNorms model;
  model.first.requires_grad_();
  model.last.requires_grad_();
  const at::Tensor x = normal({2, 6, 5}, 10).requires_grad_(), weights = normal({2, 6, 5}, 11);
  Reductions sums(model, everything, taps::input | taps::scaled, /*products=*/true);
  // The two halves of the batch in two forwards.
  for (int half = 0; half < 2; ++half) {
    model(x.narrow(0, half, 1)).mul(weights.narrow(0, half, 1)).sum().backward();
  }
  const auto close = [](const at::Tensor& a, const at::Tensor& b) {
    CHECK(a.sub(b).abs().max().item<double>() <= 1e-13 * b.abs().max().item<double>());
  };
  const at::Tensor g = model.first.detach();
  CHECK(sums.at(first, taps::scaled).product_count() == 12);
  close(sums.at(first, taps::scaled).product(), g.mul(model.first.grad()));
  close(sums.at("final_norm", taps::scaled).product(), model.last.detach().add(1.0).mul(model.last.grad()));
  close(sums.at(first, taps::input).product(), x.detach().mul(x.grad()).sum(at::IntArrayRef({0, 1})));
}

TEST_CASE("reductions: without gradients products say so; cleared or gone ones get none") {
  TwoNorms model;
  const at::Tensor x = normal({1, 6, 5}, 10);
  Reductions sums(model, everything, taps::scaled, true);
  model(x);
  std::string message;
  refusal([&] { sums.at(first, taps::scaled).product(); }, ErrorCode::state, &message);
  CHECK(contains(message, "requires gradients"));
  model.first.requires_grad_();
  const at::Tensor loss = model(x).sum();
  sums.clear();
  loss.backward();
  refusal([&] { sums.at(first, taps::scaled).sum(); }, ErrorCode::state);
  refusal([&] { sums.at(first, taps::scaled).product(); }, ErrorCode::state);
}

TEST_CASE("reductions: merging is as having seen both") {
  TwoNorms a, b;
  const at::Tensor x = normal({2, 6, 5}, 10);
  Reductions left(a, everything, taps::input), right(b, everything, taps::input);
  a(x.narrow(0, 0, 1));
  b(x.narrow(0, 1, 1));
  left.merge(right);
  check_all(left.at(first, taps::input), x);
  check_all(right.at(first, taps::input), x.narrow(0, 1, 1));
  Reductions other(a, Selector::parse(first), taps::input), tapped(a, everything, taps::scaled);
  refusal([&] { left.merge(other); }, ErrorCode::value);
  refusal([&] { left.merge(tapped); }, ErrorCode::value);
}

TEST_CASE("reductions: what cannot be reduced is refused") {
  TwoNorms model;
  for (const unsigned wrong : {0U, taps::vector, taps::input_gradient, 1024U}) {
    refusal([&] { Reductions(model, everything, wrong); }, ErrorCode::value);
  }
  const Reductions sums(model, Selector::parse(first), taps::input);
  address_refusal([&] { sums.at("final_norm", taps::input); });
  refusal([&] { sums.at(first, taps::scaled); }, ErrorCode::value);
}
