#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include <ATen/core/Tensor.h>
#include <doctest/doctest.h>
#include <support/tensors.h>

#include <scalevec/core/error.h>
#include <scalevec/core/random.h>
#include <scalevec/edits/behaviour.h>

using namespace scalevec;

namespace {

struct Streams {
  at::Tensor base, edited, targets;
};

at::Tensor tokens(std::int64_t count, std::int64_t vocabulary, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<double> values(static_cast<std::size_t>(count));
  for (double& v : values) v = static_cast<double>(random() % static_cast<std::uint64_t>(vocabulary));
  return tensor(values, {count}, at::kLong);
}

Streams random_streams(std::int64_t rows, std::int64_t vocabulary, double change, unsigned seed) {
  at::Tensor base = normal({rows, vocabulary}, seed, at::kFloat, 0.0, 3.0);
  at::Tensor edited = base.add(normal({rows, vocabulary}, seed + 1, at::kFloat).mul(change));
  return {base, edited, tokens(rows, vocabulary, seed + 2)};
}

double double_mean(const at::Tensor& t) { return t.mean().item<double>(); }

ErrorCode code_of(auto&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.code();
  }
  FAIL("nothing was thrown");
  return ErrorCode::io;
}

}  // namespace

TEST_CASE("Philox: the published vectors of Random123") {
  using Block = std::array<std::uint32_t, 4>;
  CHECK(Philox(0, 0).block(0) == Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(Philox(~std::uint64_t{0}, ~std::uint64_t{0}).block(~std::uint64_t{0}) ==
        Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
}

TEST_CASE("Behaviour: ATen's float64 figures, however the rows are cut") {
  const Streams s = random_streams(200, 333, 0.3, 5);
  const at::Tensor p = s.base.to(at::kDouble).log_softmax(1), q = s.edited.to(at::kDouble).log_softmax(1);
  const at::Tensor at_target = s.targets.unsqueeze(1);
  Behaviour whole, cut;
  whole.add(s.base, s.edited, s.targets, 0);
  for (std::int64_t i = 0; i < 200; i += 7) {
    const std::int64_t n = std::min<std::int64_t>(7, 200 - i);
    cut.add(s.base.narrow(0, i, n), s.edited.narrow(0, i, n), s.targets.narrow(0, i, n), 0);
  }
  const Change c = whole.result(), d = cut.result();
  // Float64 on both sides, figures of order one.
  CHECK(std::fabs(c.loss_base.value + double_mean(p.gather(1, at_target))) <= 1e-12);
  CHECK(std::fabs(c.loss_edited.value + double_mean(q.gather(1, at_target))) <= 1e-12);
  CHECK(std::fabs(c.loss_change.value - (c.loss_edited.value - c.loss_base.value)) <= 1e-12);
  CHECK(std::fabs(c.perplexity_base.value - std::exp(c.loss_base.value)) <= 1e-9);
  CHECK(std::fabs(c.kl.value - double_mean(p.exp().mul(p.sub(q)).sum(1))) <= 1e-12);
  CHECK(std::fabs(c.kl_reverse.value - double_mean(q.exp().mul(q.sub(p)).sum(1))) <= 1e-12);
  CHECK(std::fabs(c.tv.value - 0.5 * double_mean(p.exp().sub(q.exp()).abs().sum(1))) <= 1e-12);
  CHECK(c.flips.value == double_mean(p.argmax(1).ne(q.argmax(1)).to(at::kDouble)));
  CHECK(c.predictions == 200);
  CHECK(c.chunks == 4);
  CHECK_FALSE(c.kl.low.has_value());  // 4 chunks
  CHECK(d.kl.value == c.kl.value);
  CHECK(d.loss_change.value == c.loss_change.value);
  CHECK(d.chunks == 4);
}

TEST_CASE("Behaviour: mean KL over 1,024 predictions is right to 1 % down to 1e-8, from float32 logits") {
  for (const double change : {1e-2, 1e-3, 1e-4}) {
    const Streams s = random_streams(1024, 500, change, 11);
    const at::Tensor p = s.base.to(at::kDouble).log_softmax(1);
    const at::Tensor u = s.edited.to(at::kDouble).sub(s.base.to(at::kDouble));
    // KL = log E_p[e^(u - mean)]; for small u its variance / 2 + third cumulant / 6: derived, not measured.
    const at::Tensor centred = u.sub(p.exp().mul(u).sum(1, true));
    const double want = double_mean(p.exp().mul(centred.expm1().sub(centred)).sum(1).log1p());
    Behaviour b;
    b.add(s.base, s.edited, s.targets, 0);
    const Change c = b.result();
    CAPTURE(want);
    CHECK(std::fabs(c.kl.value / want - 1.0) <= 1e-4);
    if (change == 1e-4) CHECK(want < 1e-7);
  }
}

TEST_CASE("Behaviour: chunks stay inside documents; the interval is the percentile bootstrap of their sums") {
  // 25 documents of 70 predictions: chunks of 64 and 6, 50 in all.
  Behaviour b({.per_token = true});
  std::vector<at::Tensor> changes;
  for (std::int64_t document = 0; document < 25; ++document) {
    const Streams s = random_streams(70, 50, 0.5, 100 + 3 * static_cast<unsigned>(document));
    b.add(s.base, s.edited, s.targets, document);
  }
  const Change c = b.result(42, 500), again = b.result(42, 500), other = b.result(43, 500);
  CHECK(c.chunks == 50);
  REQUIRE(c.loss_change.low.has_value());
  CHECK(c.loss_change.low == again.loss_change.low);
  CHECK(c.loss_change.low != other.loss_change.low);
  CHECK(*c.loss_change.low < c.loss_change.value);
  CHECK(c.loss_change.value < *c.loss_change.high);
  CHECK(*c.perplexity_base.low == std::exp(*c.loss_base.low));

  // The same by hand from the values per token.
  const PerToken& t = b.per_token();
  REQUIRE(t.kl.size() == 1750);
  std::vector<double> sums, sizes;
  for (std::size_t i = 0; i < t.kl.size(); i += i % 70 == 0 ? 64 : 6) {
    const std::size_t n = i % 70 == 0 ? 64 : 6;
    sizes.push_back(static_cast<double>(n));
    double sum = 0.0;
    for (std::size_t j = i; j < i + n; ++j) sum += t.loss_change[j];
    sums.push_back(sum);
  }
  std::vector<double> means;
  for (std::uint64_t r = 0; r < 500; ++r) {
    double sum = 0.0, size = 0.0;
    for (std::uint64_t i = 0; i < 50; ++i) {
      const auto k = static_cast<std::size_t>(Philox(42, r).uniform(i) * 50);
      sum += sums[k];
      size += sizes[k];
    }
    means.push_back(sum / size);
  }
  std::sort(means.begin(), means.end());
  const double low = means[12] + 0.475 * (means[13] - means[12]);  // 0.025 * 499 = 12.475
  CHECK(std::fabs(*c.loss_change.low - low) <= 1e-12);
}

TEST_CASE("Behaviour: an interval covers the truth about as often as it says") {
  // Independent predictions with a known mean change of zero: edited rows are base rows of another draw.
  int covered = 0;
  for (unsigned trial = 0; trial < 100; ++trial) {
    Behaviour b;
    const std::int64_t rows = 30 * 64;
    const at::Tensor base = normal({rows, 4}, 900 + trial, at::kFloat);
    const at::Tensor edited = normal({rows, 4}, 5000 + trial, at::kFloat);
    b.add(base, edited, tokens(rows, 4, trial), 0);
    const Change c = b.result(trial, 400);
    if (*c.loss_change.low <= 0.0 && 0.0 <= *c.loss_change.high) ++covered;
  }
  // Binomial(100, 0.95), a little less for the bootstrap of 30 chunks: 5 sigma below is 82.
  CHECK(covered >= 82);
  CHECK(covered <= 100);
}

TEST_CASE("Behaviour: equal streams give exact zeros") {
  const Streams s = random_streams(1400, 60, 0.0, 3);
  Behaviour b;
  b.add(s.base, s.base.clone(), s.targets, 0);
  const Change c = b.result();
  CHECK(c.kl.value == 0.0);
  CHECK(*c.loss_change.high == 0.0);
  CHECK(c.flips.value == 0.0);
  CHECK(c.tv.value == 0.0);
  CHECK(c.largest_difference == 0.0);
}

TEST_CASE("Behaviour: what does not fit is refused, and adds nothing") {
  const Streams s = random_streams(4, 9, 0.1, 1);
  Behaviour b;
  CHECK(code_of([&] { b.result(); }) == ErrorCode::state);
  CHECK(code_of([&] { b.add(s.base, s.edited.narrow(1, 0, 8), s.targets, 0); }) == ErrorCode::shape);
  CHECK(code_of([&] { b.add(s.base, s.edited, s.targets.narrow(0, 0, 3), 0); }) == ErrorCode::shape);
  CHECK(code_of([&] { b.add(s.base, s.edited.to(at::kDouble), s.targets, 0); }) == ErrorCode::dtype);
  CHECK(code_of([&] { b.add(s.base, s.edited, s.targets.to(at::kInt), 0); }) == ErrorCode::dtype);
  CHECK(code_of([&] { b.add(s.base, s.edited, s.targets.add(9), 0); }) == ErrorCode::value);
  const at::Tensor broken = s.edited.clone();
  broken.mutable_data_ptr<float>()[2 * 9 + 3] = std::numeric_limits<float>::quiet_NaN();
  CHECK(code_of([&] { b.add(s.base, broken, s.targets, 0); }) == ErrorCode::value);
  CHECK(b.predictions() == 0);
}
