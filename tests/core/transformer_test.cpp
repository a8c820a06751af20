#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/equal.h>
#include <core/tiny_model.h>
#include <doctest/doctest.h>
#include <readers/errors.h>

#include <scalevec/core/model/transformer.h>

#include <support/check.h>

using scalevec::ErrorCode;
using scalevec::ModelSpec;
using scalevec::Transformer;

namespace {

Transformer::Options in(at::ScalarType compute) {
  Transformer::Options options;
  options.compute = compute;
  return options;
}

double distance(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

/// Keeps what it is shown, and lends what it is given.
struct Recorder final : scalevec::NormObserver {
  unsigned parts = 0;
  std::vector<scalevec::NormEvent> events;
  std::map<std::size_t, at::Tensor> loans;

  unsigned wants(std::size_t) const override { return parts; }
  void see(const scalevec::NormEvent& event) override { events.push_back(event); }
  at::Tensor lend(std::size_t site) const override {
    return loans.contains(site) ? loans.at(site) : at::Tensor();
  }
  bool lends() const override { return !loans.empty(); }
};

constexpr unsigned all_parts = scalevec::parts::input | scalevec::parts::rms | scalevec::parts::normalized |
                               scalevec::parts::scaled | scalevec::parts::vector;

}  // namespace

TEST_CASE("transformer: logits are those of the plain arithmetic, in every dtype") {
  for (const ModelSpec& spec : {tiny::spec(), tiny::rich_spec()}) {
    CAPTURE(spec.tied_head);
    const tiny::Slots slots = tiny::slots(spec);
    const tiny::Reference reference(spec, slots);
    const at::NoGradGuard no_grad;
    // 300 tokens: past the window of 5, and past one part of windowed attention.
    for (const auto& [batch, tokens] : {std::pair{3, 7}, {1, 1}, {2, 300}}) {
      CAPTURE(tokens);
      const at::Tensor ids = tiny::ids(batch, tokens);
      const at::Tensor expected = reference.logits(ids);
      const double largest = expected.abs().max().item<double>();
      Transformer exact(spec, slots, in(at::kDouble));
      CHECK((exact.logits(ids).scalar_type() == at::kDouble));
      CHECK(distance(exact.logits(ids), expected) <= 1e-11 * largest);
      Transformer single(spec, slots, in(at::kFloat));
      // A dozen maps in a row, each off by a few roundings of its sum of magnitudes, which norms keep near
      // one.
      CHECK(distance(single.logits(ids), expected) <= 1e-5 * largest);
      Transformer half(spec, slots, in(at::kBFloat16));
      CHECK((half.logits(ids).scalar_type() == at::kFloat));
      CHECK((half.logits(ids).to(at::kDouble) - expected).pow(2).mean().sqrt().item<double>() <=
            0.05 * expected.pow(2).mean().sqrt().item<double>());
    }
  }
}

TEST_CASE("transformer: ids of one row need no batch, and a text's beginning does not know its end") {
  Transformer model(tiny::rich_spec(), tiny::slots(tiny::rich_spec()), in(at::kDouble));
  const at::NoGradGuard no_grad;
  const at::Tensor ids = tiny::ids(1, 30);
  const at::Tensor whole = model.logits(ids);
  CHECK(whole.sizes() == at::IntArrayRef({1, 30, 37}));
  CHECK(at::equal(model.logits(ids.squeeze(0)), whole));
  CHECK(distance(model.logits(ids.narrow(1, 0, 11)), whole.narrow(1, 0, 11)) <=
        1e-12 * whole.abs().max().item<double>());
  CHECK(at::equal(model.head(model.hidden(ids)), whole));
}

TEST_CASE("transformer: watching shows every site in order and changes no bit") {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const bool gradients : {false, true}) {
      const ModelSpec spec = tiny::rich_spec();
      Transformer model(spec, tiny::slots(spec), in(dtype));
      for (const auto& vector : model.scales()) vector.stored().requires_grad_(gradients);
      const at::Tensor ids = tiny::ids(2, 9);
      const at::Tensor before = model.logits(ids);
      Recorder recorder;
      recorder.parts = all_parts;
      model.observers().add(&recorder);
      const at::Tensor watched = model.logits(ids);
      model.observers().remove(&recorder);
      CHECK(at::equal(watched, before));
      CHECK(at::equal(model.logits(ids), before));
      REQUIRE(recorder.events.size() == model.sites().size());
      for (std::size_t i = 0; i < recorder.events.size(); ++i) {
        const scalevec::NormEvent& event = recorder.events[i];
        CAPTURE(event.site.address.str());
        CHECK(event.index == i);
        CHECK(&event.site == &model.sites()[i]);
        const bool layer = event.site.kind == scalevec::Statistics::layer;
        CHECK(event.vector.defined() == (event.site.width > 0));
        at::Tensor again = event.vector.defined() ? event.normalized * event.vector : event.normalized;
        if (!layer) CHECK(at::equal(again.to(dtype), event.scaled));  // no bias
        if (event.site.kind == scalevec::Statistics::rms) {
          const at::Tensor x = event.input.to(at::kDouble).unflatten(-1, {-1, event.site.group});
          CHECK(event.rms.sizes() == x.sizes().slice(0, static_cast<std::size_t>(x.dim() - 1)));
          CHECK(distance(event.rms, (x.pow(2).mean(-1) + event.site.eps).sqrt()) <=
                1e-5 * event.rms.max().item<double>());
        }
        if (event.site.address.str() == "layers.0.attn.q_norm")
          CHECK(event.input.sizes() == at::IntArrayRef({2, 9, 4, 6}));
        if (i > 0) CHECK(event.scaled.requires_grad() == gradients);
      }
    }
  }
}

TEST_CASE("transformer: a lent vector counts for the forward and leaves the stored one alone") {
  const ModelSpec spec = tiny::rich_spec();
  tiny::Slots slots = tiny::slots(spec);
  Transformer model(spec, slots, in(at::kDouble));
  const at::Tensor ids = tiny::ids(1, 9);
  std::size_t site = 0;
  while (model.sites()[site].address.str() != "layers.0.mlp.input_norm") ++site;
  const at::Tensor stored = slots["layers.0.mlp.input_norm.weight"].clone();
  Recorder lender;
  lender.loans[site] = normal({20}, 5);
  model.observers().add(&lender);
  const at::Tensor lent = model.logits(ids);
  model.observers().remove(&lender);
  tiny::Slots other = slots;
  other["layers.0.mlp.input_norm.weight"] =
      lender.loans[site] - 1.0;  // effective values are lent, offset 1 stands
  CHECK(distance(lent, tiny::Reference(spec, other).logits(ids)) <= 1e-11 * lent.abs().max().item<double>());
  CHECK(at::equal(slots["layers.0.mlp.input_norm.weight"], stored));

  lender.loans[site] = normal({19}, 5);
  model.observers().add(&lender);
  CHECK(refusal([&] { model.logits(ids); }, ErrorCode::shape).tensor == "layers.0.mlp.input_norm");
  model.observers().remove(&lender);
}

TEST_CASE("transformer: gradients of every scale vector are those of the plain arithmetic") {
  const ModelSpec spec = tiny::rich_spec();
  const at::Tensor ids = tiny::ids(2, 9), seed = normal({2, 9, 37}, 3);
  tiny::Slots ours = tiny::slots(spec, at::kDouble), theirs;
  for (const auto& [name, tensor] : ours) theirs[name] = tensor.clone();
  for (auto* slots : {&ours, &theirs}) {
    for (auto& [name, tensor] : *slots) tensor.requires_grad_(tiny::is_vector(name));
  }
  Transformer model(spec, ours, in(at::kDouble));
  (model.logits(ids) * seed).sum().backward();
  (tiny::Reference(spec, theirs).logits(ids) * seed).sum().backward();
  int compared = 0;
  for (const auto& [name, tensor] : ours) {
    if (!tensor.requires_grad()) continue;
    CAPTURE(name);
    REQUIRE(tensor.grad().defined());
    CHECK(distance(tensor.grad(), theirs[name].grad()) <=
          1e-10 * (1.0 + theirs[name].grad().abs().max().item<double>()));
    ++compared;
  }
  CHECK(compared == 18);  // every vector of the spec, and one bias
}

TEST_CASE("transformer: an edited vector is met by the next forward, whatever its dtype") {
  for (const at::ScalarType stored : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
    const ModelSpec spec = tiny::rich_spec();
    const tiny::Slots slots = tiny::slots(spec, stored);
    Transformer model(spec, slots, in(at::kFloat));
    const at::NoGradGuard no_grad;
    const at::Tensor ids = tiny::ids(1, 5);
    for (int i = 0; i < 2; ++i) {
      const at::Tensor expected = tiny::Reference(spec, slots).logits(ids);
      CHECK(distance(model.logits(ids), expected) <= 1e-5 * expected.abs().max().item<double>());
      slots.at("layers.0.attn.input_norm.weight").mul_(0.5);
      slots.at("layers.1.attn.input_norm[k].weight").fill_(2.0);
    }
  }
}

TEST_CASE("transformer: shares the vectors it is given, and says where they are") {
  const ModelSpec spec = tiny::spec();
  const tiny::Slots slots = tiny::slots(spec);
  std::vector<scalevec::Site> named(1);
  named[0].address = scalevec::Address::parse("final_norm");
  named[0].native = "model.norm.weight";
  Transformer model(spec, slots, in(at::kFloat), named);
  CHECK(model.scales().size() == 5);
  CHECK(model.scales().at("model.norm.weight").address() == "final_norm");
  CHECK(model.scales().at("final_norm").stored().is_same(slots.at("final_norm.weight")));
  CHECK(model.sites().size() == 5);
}

TEST_CASE("transformer: what cannot be built is refused by name") {
  const ModelSpec spec = tiny::spec();
  const tiny::Slots slots = tiny::slots(spec);
  const auto build = [&](const ModelSpec& s, const tiny::Slots& tensors) {
    Transformer(s, tensors, in(at::kFloat));
  };
  tiny::Slots changed = slots;
  changed.erase("layers.1.attn.k.weight");
  CHECK(refusal([&] { build(spec, changed); }, ErrorCode::config).tensor == "layers.1.attn.k.weight");
  changed = slots;
  changed["layers.1.attn.k.weight"] = normal({12, 19}, 1);
  CHECK(refusal([&] { build(spec, changed); }, ErrorCode::shape).expected == "[12, 20]");
  changed = slots;
  changed["layers.9.attn.k.weight"] = normal({12, 20}, 1);
  CHECK(refusal([&] { build(spec, changed); }, ErrorCode::config).tensor == "layers.9.attn.k.weight");
  ModelSpec other = spec;
  other.layers[0].attn.kv_heads = 3;
  refusal([&] { build(other, slots); }, ErrorCode::config);
  other = spec;
  other.layers[0].attn.o.own_vector = true;
  CHECK(refusal([&] { build(other, slots); }, ErrorCode::config).tensor == "layers.0.attn.o");
  refusal([&] { Transformer(spec, slots, in(at::kHalf)); }, ErrorCode::dtype);
}

TEST_CASE("transformer: ids are checked before anything runs") {
  Transformer model(tiny::spec(), tiny::slots(tiny::spec()), in(at::kFloat));
  at::Tensor ids = tiny::ids(2, 4);
  ids[1][2] = 37;
  CHECK(refusal([&] { model.hidden(ids); }, ErrorCode::value).index == 6);
  ids[1][2] = -1;
  refusal([&] { model.hidden(ids); }, ErrorCode::value);
  refusal([&] { model.hidden(tiny::ids(1, 4).to(at::kInt)); }, ErrorCode::dtype);
  refusal([&] { model.hidden(tiny::ids(1, 4).unsqueeze(0)); }, ErrorCode::shape);
  refusal([&] { model.hidden(tiny::ids(1, 4).narrow(1, 0, 0)); }, ErrorCode::shape);
  refusal([&] { model.head(normal({1, 19}, 1)); }, ErrorCode::shape);
}
