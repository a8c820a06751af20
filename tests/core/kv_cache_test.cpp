#include <cstdint>
#include <stdexcept>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <core/tiny_model.h>
#include <doctest/doctest.h>
#include <readers/errors.h>

#include <scalevec/core/model/transformer.h>

using scalevec::KvCache;
using scalevec::Transformer;

namespace {

double distance(const at::Tensor& a, const at::Tensor& b) { return (a - b).abs().max().item<double>(); }

Transformer model_of(const scalevec::ModelSpec& spec) {
  Transformer::Options options;
  options.compute = at::kDouble;
  return Transformer(spec, tiny::slots(spec, at::kDouble), options);
}

/// Feeds `ids` in pieces of the given lengths.
at::Tensor decode(Transformer& model, const at::Tensor& ids, const std::vector<std::int64_t>& lengths,
                  KvCache& cache) {
  std::vector<at::Tensor> parts;
  std::int64_t at = 0;
  for (const std::int64_t n : lengths) {
    parts.push_back(model.logits(ids.narrow(1, at, n), &cache));
    at += n;
  }
  return at::cat(parts, 1);
}

struct Lender final : scalevec::NormObserver {
  at::Tensor vector;
  std::int64_t seen = 0;
  unsigned wants(std::size_t site) const override { return site == 0 ? scalevec::parts::input : 0; }
  void see(const scalevec::NormEvent& event) override { seen += event.input.size(1); }
  at::Tensor lend(std::size_t site) const override { return site == 0 ? vector : at::Tensor(); }
  bool lends() const override { return vector.defined(); }
};

struct Thrower final : scalevec::NormObserver {
  unsigned wants(std::size_t site) const override { return site == 7 ? scalevec::parts::rms : 0; }
  void see(const scalevec::NormEvent&) override { throw std::runtime_error("stop"); }
};

}  // namespace

TEST_CASE("key-value cache: decoding in any pieces gives the logits of one forward") {
  for (const auto& spec : {tiny::spec(), tiny::rich_spec()}) {
    Transformer model = model_of(spec);
    const at::Tensor ids = tiny::ids(1, 90);
    const at::Tensor whole = model.logits(ids);
    const double bound = 1e-12 * whole.abs().max().item<double>();
    const std::vector<std::int64_t> singles(90, 1);
    for (const auto& lengths : {singles, {90}, {40, 1, 1, 1, 30, 17}, {3, 50, 1, 36}}) {
      KvCache cache;
      CHECK(distance(decode(model, ids, lengths, cache), whole) <= bound);
      CHECK(cache.length() == 90);
    }
  }
}

TEST_CASE("key-value cache: what changed vectors made stale is read again, silently") {
  Transformer model = model_of(tiny::rich_spec());
  const at::Tensor ids = tiny::ids(1, 12);
  const at::Tensor first = ids.narrow(1, 0, 8), rest = ids.narrow(1, 8, 4);
  const auto& vector = model.scales()[0];
  const std::vector<std::byte> bytes = vector.bytes();

  KvCache cache;
  model.hidden(first, &cache);
  const at::Tensor base = model.logits(ids).narrow(1, 8, 4);
  vector.overwrite(std::vector<std::byte>(bytes.size()));  // zeros: the effective vector is one everywhere
  const at::Tensor edited = model.logits(ids).narrow(1, 8, 4);
  CHECK(distance(edited, base) > 1e-3);
  CHECK(distance(model.logits(rest, &cache), edited) <= 1e-12 * edited.abs().max().item<double>());
  CHECK(cache.length() == 12);
  vector.overwrite(bytes);

  cache.clear();
  CHECK(cache.length() == 0);
  model.hidden(first, &cache);
  Lender lender;
  lender.vector = normal({20}, 5);
  model.observers().add(&lender);
  const at::Tensor lent = model.logits(ids).narrow(1, 8, 4);
  lender.seen = 0;
  CHECK(distance(model.logits(rest, &cache), lent) <= 1e-12 * lent.abs().max().item<double>());
  CHECK(lender.seen == 4);  // not the eight that were only read again
  lender.vector.mul_(1.5);  // as an optimizer's step does to a lent vector that learns
  const at::Tensor stepped = model.logits(ids).narrow(1, 11, 1);
  KvCache early;
  lender.vector.div_(1.5);
  model.hidden(ids.narrow(1, 0, 11), &early);
  lender.vector.mul_(1.5);
  CHECK(distance(model.logits(ids.narrow(1, 11, 1), &early), stepped) <=
        1e-11 * stepped.abs().max().item<double>());
  model.observers().remove(&lender);
  const at::Tensor next = tiny::ids(1, 13).narrow(1, 12, 1);
  const at::Tensor all = at::cat({ids, next}, 1);
  CHECK(distance(model.logits(next, &cache), model.logits(all).narrow(1, 12, 1)) <= 1e-11);
}

TEST_CASE("key-value cache: a forward that fails leaves it as it was") {
  Transformer model = model_of(tiny::rich_spec());
  const at::Tensor ids = tiny::ids(1, 40);
  const at::Tensor whole = model.logits(ids);
  KvCache cache;
  model.hidden(ids.narrow(1, 0, 20), &cache);
  Thrower thrower;
  for (int i = 0; i < 3; ++i) {
    model.observers().add(&thrower);
    CHECK_THROWS_AS(model.hidden(ids.narrow(1, 20, 9), &cache), std::runtime_error);
    model.observers().remove(&thrower);
  }
  CHECK(cache.length() == 20);
  CHECK(distance(model.logits(ids.narrow(1, 20, 20), &cache), whole.narrow(1, 20, 20)) <=
        1e-12 * whole.abs().max().item<double>());
}

TEST_CASE("key-value cache: belongs to one model and one row, and records no gradient") {
  Transformer one = model_of(tiny::spec()), two = model_of(tiny::spec());
  KvCache cache;
  one.scales()[0].stored().requires_grad_(true);
  CHECK_FALSE(one.hidden(tiny::ids(1, 3), &cache).requires_grad());
  refusal([&] { two.hidden(tiny::ids(1, 1), &cache); }, scalevec::ErrorCode::state);
  refusal([&] { one.hidden(tiny::ids(2, 1), &cache); }, scalevec::ErrorCode::shape);
  KvCache moved = std::move(cache);
  CHECK(moved.length() == 3);
  CHECK(cache.length() == 0);  // NOLINT(bugprone-use-after-move): what is left is an empty cache
  two.hidden(tiny::ids(1, 2), &cache);
  CHECK(cache.length() == 2);
}
