// The hooks on the library's own model.
#include <cmath>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/core/grad_mode.h>
#include <doctest/doctest.h>
#include <hooks/tiny_transformer.h>
#include <readers/errors.h>

#include <scalevec/core/dtype.h>
#include <scalevec/core/model/transformer.h>
#include <scalevec/hooks/capture.h>
#include <scalevec/hooks/override.h>
#include <scalevec/hooks/reductions.h>

using scalevec::Capture;
using scalevec::KvCache;
using scalevec::NormEvent;
using scalevec::Override;
using scalevec::Reductions;
using scalevec::ScaleVector;
using scalevec::Selector;
using scalevec::Tap;
using scalevec::Transformer;
namespace taps = scalevec::taps;

namespace {

const Selector everything = Selector::parse("**");

void store(const ScaleVector& vector, const at::Tensor& stored) {
  const std::size_t each = scalevec::scale_dtype_bytes(vector.dtype());
  std::vector<std::byte> bytes(static_cast<std::size_t>(vector.width()) * each);
  for (std::int64_t i = 0; i < vector.width(); ++i) {
    scalevec::encode(vector.dtype(), stored.select(0, i).item<double>(),
                     std::span(bytes).subspan(static_cast<std::size_t>(i) * each, each));
  }
  vector.overwrite(bytes);
}

void require_vector_gradients(Transformer& model) {
  for (const ScaleVector& vector : model.scales()) at::Tensor(vector.stored()).requires_grad_();
}

// Multiples of 1/128 between 0 and 1: bfloat16 holds them exactly, with any offset of 0 or 1.
at::Tensor other_values(const ScaleVector& vector, unsigned seed) {
  return normal({vector.width()}, seed, at::kDouble, 0.5, 0.1).mul(128.0).round().div(128.0);
}

double largest(const at::Tensor& t) { return t.abs().max().item<double>(); }

}  // namespace

TEST_CASE("transformer: watching with every tap changes no bit of the logits, with gradients and without") {
  for (const at::ScalarType compute : {at::kFloat, at::kBFloat16, at::kDouble}) {
    CAPTURE(c10::toString(compute));
    const auto model = tiny_transformer(compute, at::kBFloat16);
    const at::Tensor ids = some_ids(17, 1);
    for (const bool gradients : {false, true}) {
      if (gradients) require_vector_gradients(*model);
      const at::AutoGradMode mode(gradients);
      const at::Tensor quiet = model->logits(ids);
      const Capture capture(*model, everything, taps::all);
      const Reductions sums(*model, everything, taps::input | taps::scaled, true);
      const at::Tensor watched = model->logits(ids);
      CHECK(watched.equal(quiet));
      if (gradients) watched.sum().backward();
    }
  }
}

TEST_CASE("transformer: gradients of the watched and the quiet model are the same bits") {
  const auto a = tiny_transformer(at::kFloat, at::kFloat), b = tiny_transformer(at::kFloat, at::kFloat);
  require_vector_gradients(*a);
  require_vector_gradients(*b);
  const at::Tensor ids = some_ids(17, 1), weights = normal({1, 17, 23}, 2, at::kFloat);
  a->logits(ids).mul(weights).sum().backward();
  const Capture capture(*b, everything, taps::all);
  b->logits(ids).mul(weights).sum().backward();
  for (std::size_t i = 0; i < a->scales().size(); ++i) {
    const ScaleVector& vector = b->scales()[i];
    CAPTURE(vector.address());
    CHECK(vector.stored().grad().equal(a->scales()[i].stored().grad()));
    CHECK(capture.at(vector.address()).vector_gradient().at(0).equal(vector.stored().grad()));
  }
}

TEST_CASE("transformer: every site is tapped, with its own shapes; branches and bare norms too") {
  const auto model = tiny_transformer(at::kFloat, at::kBFloat16);
  const Capture capture(*model, everything);
  model->logits(some_ids(7, 1).view({1, 7}));
  REQUIRE(capture.addresses().size() == model->sites().size());
  for (const scalevec::Site& site : model->sites()) {
    CAPTURE(site.address.str());
    const auto at = capture.at(site.address.str());
    REQUIRE(at.forwards() == 1);
    const at::Tensor input = at.input().at(0), rms = at.rms().at(0), scaled = at.scaled().at(0);
    const at::Tensor normalized = at.normalized().at(0);
    CHECK(input.size(-1) == site.group);
    CHECK(rms.size(-1) == 1);
    CHECK(scaled.sizes() == input.sizes());
    // Against LibTorch's own operators: some roundings of float32 apart.
    const at::Tensor wide = input.to(at::kDouble);
    const at::Tensor want = wide.mul(wide).mean({-1}, true).add(site.eps).sqrt();
    CHECK(largest(rms.to(at::kDouble).div(want).sub(1.0)) <= 20 * 0x1p-24);
    CHECK(largest(normalized.to(at::kDouble).sub(wide.div(want))) <= 20 * 0x1p-24 * largest(wide.div(want)));
    if (site.width == 0) {
      CHECK(scaled.equal(normalized));
      refusal([&] { at.vector(); }, scalevec::ErrorCode::state);
      continue;
    }
    const at::Tensor vector = at.vector().at(0);
    CHECK(vector.to(at::kDouble).equal(model->scales().at(site.address.str()).effective()));
    CHECK(scaled.equal(normalized.mul(vector)));
  }
  // The two views of one norm: q's own vector, and the one that k and v share.
  const auto shared = capture.at("layers.0.attn.input_norm"), own = capture.at("layers.0.attn.input_norm[q]");
  CHECK(shared.input().at(0).equal(own.input().at(0)));
  CHECK_FALSE(shared.scaled().at(0).equal(own.scaled().at(0)));
  CHECK(capture.at("layers.0.attn.q_norm").input().at(0).sizes() == at::IntArrayRef({1, 7, 4, 6}));
  CHECK(capture.at("layers.0.attn.k_norm").input().at(0).sizes() == at::IntArrayRef({1, 7, 2, 6}));
  CHECK(capture.at("final_norm").input().at(0).sizes() == at::IntArrayRef({1, 7, 12}));
}

TEST_CASE("transformer: captured gradients of vectors are those of finite differences") {
  const auto model = tiny_transformer(at::kDouble, at::kDouble);
  const at::Tensor ids = some_ids(9, 3), weights = normal({1, 9, 23}, 4);
  const auto loss = [&] { return model->logits(ids).mul(weights).sum(); };
  require_vector_gradients(*model);
  const Capture capture(*model, everything, taps::vector_gradient);
  loss().backward();
  const at::NoGradGuard no_grad;
  for (const ScaleVector& vector : model->scales()) {
    CAPTURE(vector.address());
    const at::Tensor gradient = capture.at(vector.address()).vector_gradient().at(0);
    const double step = 1e-5;
    for (std::int64_t channel = 0; channel < vector.width(); channel += 5) {
      const at::Tensor entry = vector.stored().select(0, channel);
      const double value = entry.item<double>();
      entry.fill_(value + step);
      const double above = loss().item<double>();
      entry.fill_(value - step);
      const double below = loss().item<double>();
      entry.fill_(value);
      // Truncation is about step^2 of the third derivative, rounding 1e-16 / step of the loss.
      CHECK(std::abs((above - below) / (2 * step) - gradient.select(0, channel).item<double>()) <=
            1e-6 * (largest(gradient) + 1.0));
    }
  }
}

TEST_CASE("transformer: gradients of inputs equal autograd's of a norm written in LibTorch's operators") {
  const auto model = tiny_transformer(at::kDouble, at::kDouble);
  require_vector_gradients(*model);
  const at::Tensor ids = some_ids(9, 3), weights = normal({1, 9, 23}, 4);
  // Sites whose input nothing else reads, so that the whole gradient comes through the norm.
  const Selector lone = Selector::parse("layers.0.attn.{q,k}_norm; layers.0.*.output_norm; final_norm");
  std::vector<at::Tensor> slopes(model->sites().size());
  const Tap tap(*model, lone, taps::scaled, [&](const NormEvent& event) {
    event.scaled.register_hook([&slopes, i = event.index](const at::Tensor& g) { slopes[i] = g.clone(); });
  });
  const Capture capture(*model, lone, taps::input | taps::vector | taps::gradients);
  model->logits(ids).mul(weights).sum().backward();
  REQUIRE(capture.addresses().size() == 5);
  for (const std::string& address : capture.addresses()) {
    CAPTURE(address);
    const auto site = capture.at(address);
    const at::Tensor x = site.input().at(0).clone().requires_grad_();
    const at::Tensor g = site.vector().at(0).clone().requires_grad_();
    const at::Tensor y = x.div(x.mul(x).mean({-1}, true).add(1e-6).sqrt()).mul(g);
    y.backward(slopes[scalevec::find_site(model->sites(), address)]);
    CHECK(largest(site.input_gradient().at(0).sub(x.grad())) <= 1e-13 * largest(x.grad()));
    CHECK(largest(site.vector_gradient().at(0).sub(g.grad())) <= 1e-13 * largest(g.grad()));
  }
}

TEST_CASE("transformer: an override is the edit, in the logits, bit for bit") {
  for (const at::ScalarType compute : {at::kFloat, at::kBFloat16, at::kDouble}) {
    CAPTURE(c10::toString(compute));
    const auto model = tiny_transformer(compute, at::kBFloat16);
    const at::Tensor ids = some_ids(11, 5), before = model->logits(ids);
    Override::Vectors vectors;
    for (const ScaleVector& vector : model->scales()) vectors[vector.address()] = other_values(vector, 6);
    at::Tensor lent;
    {
      const Override override(*model, vectors);
      lent = model->logits(ids);
    }
    CHECK(model->logits(ids).equal(before));
    CHECK_FALSE(lent.equal(before));
    for (const ScaleVector& vector : model->scales()) {
      store(vector, vectors.at(vector.address()).sub(vector.offset()));
      // The values were chosen so that nothing is rounded away in the stored dtype.
      REQUIRE(vector.effective().equal(vectors.at(vector.address())));
    }
    CHECK(model->logits(ids).equal(lent));
    const Override base = Override::base(*model);
    CHECK(model->logits(ids).equal(before));
  }
}

TEST_CASE("transformer: a key-value cache never answers with another vector's keys") {
  const auto model = tiny_transformer(at::kFloat, at::kBFloat16);
  const at::Tensor ids = some_ids(12, 7);
  const auto part = [&](std::int64_t from, std::int64_t to) { return ids.narrow(0, from, to - from); };
  const ScaleVector& vector = model->scales().at("layers.0.attn.input_norm");
  const Override::Vectors vectors = {{vector.address(), other_values(vector, 8)}};
  // The last four ids after a cache that has read eight, all with one set of vectors.
  const auto fresh = [&](std::int64_t from, std::int64_t to) {
    KvCache cache;
    model->logits(part(0, from), &cache);
    return model->logits(part(from, to), &cache);
  };
  KvCache cache;
  model->logits(part(0, 8), &cache);
  std::optional<Override> override(std::in_place, *model, vectors);
  const at::Tensor during = model->logits(part(8, 10), &cache);
  CHECK(during.equal(fresh(8, 10)));
  override.reset();
  CHECK_FALSE(during.equal(fresh(8, 10)));
  CHECK(model->logits(part(10, 12), &cache).equal(fresh(10, 12)));
  CHECK(cache.length() == 12);
}

TEST_CASE("transformer: taps see cached decoding token by token, and a refill of the cache not at all") {
  const auto model = tiny_transformer(at::kFloat, at::kBFloat16);
  const at::Tensor ids = some_ids(6, 7);
  KvCache cache;
  const Capture capture(*model, Selector::parse("final_norm"), taps::input);
  model->logits(ids.narrow(0, 0, 4), &cache);
  const Override override(*model, {{"final_norm", normal({12}, 9)}});
  model->logits(ids.narrow(0, 4, 1), &cache);
  const auto inputs = capture.at("final_norm").input();
  REQUIRE(inputs.size() == 2);
  CHECK(inputs[0].size(1) == 4);
  CHECK(inputs[1].size(1) == 1);
}

TEST_CASE("transformer: an exception in a tap leaves model and cache as they were") {
  const auto model = tiny_transformer(at::kFloat, at::kFloat);
  const at::Tensor ids = some_ids(8, 7), more = ids.narrow(0, 5, 3);
  const at::Tensor whole = model->logits(ids);
  KvCache cache, other;
  model->logits(ids.narrow(0, 0, 5), &cache);
  model->logits(ids.narrow(0, 0, 5), &other);
  {
    const Tap tap(*model, Selector::parse("layers.1.mlp.input_norm"), taps::input,
                  [](const NormEvent&) { throw std::runtime_error("stop"); });
    CHECK_THROWS_WITH(model->logits(ids), "stop");
    CHECK_THROWS_WITH(model->logits(more, &cache), "stop");
  }
  CHECK(model->observers().empty());
  CHECK(cache.length() == 5);
  CHECK(model->logits(ids).equal(whole));
  CHECK(model->logits(more, &cache).equal(model->logits(more, &other)));
}

TEST_CASE("transformer: saliency of every entry from one pass that keeps no activations") {
  const auto model = tiny_transformer(at::kDouble, at::kDouble);
  require_vector_gradients(*model);
  Reductions sums(*model, everything, taps::scaled, true);
  model->logits(some_ids(9, 3)).mul(normal({1, 9, 23}, 4)).sum().backward();
  for (const ScaleVector& vector : model->scales()) {
    CAPTURE(vector.address());
    const at::Tensor want = vector.effective().mul(vector.stored().grad());
    CHECK(largest(sums.at(vector.address(), taps::scaled).product().sub(want)) <= 1e-13 * largest(want));
  }
}

TEST_CASE("transformer: hooks leave nothing on stored vectors") {
  const auto model = tiny_transformer(at::kFloat, at::kFloat);
  require_vector_gradients(*model);
  const at::Tensor ids = some_ids(5, 3);
  int calls = 0;
  {
    const Tap tap(*model, everything, taps::vector, [&](const NormEvent& event) {
      CHECK((!event.vector.defined() || !event.vector.is_leaf()));
      if (event.vector.defined()) event.vector.register_hook([&calls](const at::Tensor&) { ++calls; });
    });
    model->logits(ids).sum().backward();
  }
  const int during = calls;
  CHECK(during == static_cast<int>(model->scales().size()));
  model->logits(ids).sum().backward();
  CHECK(calls == during);
}
