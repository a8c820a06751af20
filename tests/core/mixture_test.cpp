// Mixtures of experts: the forward against loops over tokens and experts, gradients against differences, the
// balance loss against closed forms.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <doctest/doctest.h>
#include <support/errors.h>
#include <support/tensors.h>

#include <scalevec/core/model/mixture.h>
#include <scalevec/core/model/transformer.h>
#include <scalevec/core/strategy.h>

#include "tiny_model.h"

using namespace scalevec;
using scalevec::testing::Caught;
using scalevec::testing::error_of;

namespace {

ModelSpec small(const std::string& strategy, std::int64_t active = 2) {
  ModelShape shape;
  shape.vocabulary = 17, shape.width = 12, shape.layers = 2, shape.head_dim = 6, shape.kv_heads = 1;
  shape.inner = 10, shape.context = 16;
  shape.experts = 5, shape.active = active, shape.expert_inner = 7;
  return make_spec(shape, Strategy::parse(strategy));
}

void drop_shared_experts(ModelSpec& spec) {
  for (LayerSpec& layer : spec.layers) layer.mlp.gate = layer.mlp.up = layer.mlp.down = {};
}

struct Variant {
  std::string name;
  ModelSpec spec;
};

// What a mixture's spec can say.
std::vector<Variant> variants() {
  std::vector<Variant> out;
  for (const std::string strategy : {"standard", "removal", "hg", "hg+dp", "unified", "gemma"})
    out.push_back({strategy, small(strategy)});
  out.push_back({"one active", small("standard", 1)});
  out.push_back({"all active", small("standard", 5)});
  out.push_back({"no shared expert", small("hg+dnp+or")});
  drop_shared_experts(out.back().spec);
  out.push_back({"a dense layer, bare probabilities, GELU, a vector of the router's", small("hg")});
  ModelSpec& mixed = out.back().spec;
  mixed.layers[0].mlp.mixture.reset();
  mixed.layers[1].mlp.mixture->renormalise = false;
  mixed.layers[1].mlp.mixture->router.own_vector = true;
  mixed.layers[1].mlp.activation = Activation::gelu_tanh;
  return out;
}

// Coefficients off their start, so that nothing is 1 or 0 by chance.
tiny::Slots values_of(const ModelSpec& spec) {
  tiny::Slots out;
  unsigned seed = 300;
  for (const auto& [name, shape] : spec.tensor_slots()) {
    const bool weight = shape.size() > 1;
    out[name] = normal(shape, ++seed).mul(weight ? 1.2 / std::sqrt(static_cast<double>(shape.back())) : 0.3);
    if (!weight) out[name].add_(name.ends_with(".beta") ? 0.8 : 1.1);
  }
  return out;
}

double item(const at::Tensor& t) { return t.item<double>(); }

struct Problem {
  explicit Problem(const ModelSpec& given)
      : spec(given),
        slots(values_of(spec)),
        ids(tiny::ids(2, 7, spec.vocabulary)),
        probe(normal({2, 7, spec.vocabulary}, 5)),
        model(spec, slots, {.compute = at::kDouble}) {}

  // Of the output and of all routers.
  at::Tensor loss() {
    at::Tensor sum = (model.head(model.hidden(ids, routing)) * probe).sum();
    for (const auto& [layer, use] : routing) sum = sum + use.balance * 3.0;
    return sum;
  }

  ModelSpec spec;
  tiny::Slots slots;
  at::Tensor ids, probe;
  Routing routing;
  Transformer model;  // shares the slots
};

// Experts of one entry each that return activation(x) * x times a number of their own.
Mixture numbers(const std::vector<double>& scales, std::int64_t active, const at::Tensor& router) {
  const auto experts = static_cast<std::int64_t>(scales.size());
  const std::int64_t width = router.size(1);
  const at::Tensor ones = normal({experts, 1, width}, 1).mul(0.0).add(1.0);
  at::Tensor down = normal({experts, width, 1}, 1).mul(0.0);
  for (std::int64_t e = 0; e < experts; ++e) down[e][0][0] = scales[static_cast<std::size_t>(e)];
  return {{.experts = experts, .active = active, .router = {}, .gate = {}, .up = {}, .down = {}},
          Activation::silu,
          router,
          ones,
          ones,
          down};
}

double silu(double x) { return x / (1.0 + std::exp(-x)); }

}  // namespace

TEST_CASE("mixture: the forward is that of loops over tokens and experts") {
  for (const Variant& variant : variants()) {
    CAPTURE(variant.name);
    Problem problem(variant.spec);
    const tiny::Reference reference(problem.spec, problem.slots);
    const at::Tensor expected = reference.logits(problem.ids), found = problem.model.logits(problem.ids);
    CHECK(item((found - expected).abs().max()) < 1e-10 * item(expected.abs().max()));
  }
}

TEST_CASE("mixture: gradients of every tensor are those of central differences") {
  for (const Variant& variant : variants()) {
    CAPTURE(variant.name);
    Problem problem(variant.spec);
    for (auto& [name, tensor] : problem.slots) tensor.requires_grad_();
    problem.loss().backward();
    const Routing before = problem.routing;
    for (auto& [name, tensor] : problem.slots) tensor.requires_grad_(false);
    unsigned seed = 900;
    for (auto& [name, tensor] : problem.slots) {
      CAPTURE(name);
      REQUIRE(tensor.grad().defined());
      const at::Tensor direction = normal(tensor.sizes(), ++seed);
      const double slope = item((tensor.grad() * direction).sum());
      constexpr double h = 2e-5;  // small, or a token near a tie changes its expert
      const at::Tensor start = tensor.clone();
      const auto loss_at = [&](double t) {
        tensor.copy_(start + direction * t);
        const double loss = item(problem.loss());
        // Where a token changes its expert, the loss jumps and has no slope.
        for (const auto& [layer, use] : problem.routing) REQUIRE(use.load.equal(before.at(layer).load));
        return loss;
      };
      const double near = loss_at(h) - loss_at(-h), far = loss_at(2 * h) - loss_at(-2 * h);
      const double measured = (8 * near - far) / (12 * h);
      tensor.copy_(start);
      // A loss of some 10 is rounded at 1e-15 of it, over 2e-5.
      CHECK(std::abs(measured - slope) < 1e-6 * (1.0 + std::abs(slope)));
    }
  }
}

TEST_CASE("mixture: an expert without tokens is not computed and has a gradient of zero") {
  const at::Tensor x = tensor({1, 0, 1, 0}, {2, 2});
  const Mixture mixture = numbers({5, 7, 9}, 2, tensor({2, 0, 0, 0, 1, 0}, {3, 2}));
  at::Tensor down = mixture.down;
  down[1].fill_(std::numeric_limits<double>::quiet_NaN());
  down.requires_grad_();
  const at::Tensor y = mixture(x, x, x, nullptr);
  CHECK(std::isfinite(item(y.sum())));
  y.sum().backward();
  CHECK(item(down.grad()[1].abs().max()) == 0.0);
  CHECK(item(down.grad()[0].abs().max()) > 0.1);
}

TEST_CASE("mixture: load and balance have closed forms") {
  const at::Tensor eye = tensor({1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}, {4, 4});
  RouterUse use;
  // Equal probabilities: 1, wherever the choices fall.
  numbers({1, 2, 3, 4}, 2, eye * 0.0)(eye, eye, eye, &use);
  CHECK(item(use.balance) == doctest::Approx(1.0).epsilon(1e-14));
  CHECK(use.load.sum().item<std::int64_t>() == 8);
  // Each expert its own quarter of the tokens: 1, however sure the router is.
  numbers({1, 2, 3, 4}, 1, eye * 30.0)(eye, eye, eye, &use);
  CHECK(item(use.balance) == doctest::Approx(1.0).epsilon(1e-14));
  CHECK(use.load.equal(tensor({1, 1, 1, 1}, {4}, at::kLong)));
  // Every token the same two of four, with logits 2, 1, 0, 0: 4 (p0 + p1) / 2, which is at most 2.
  const at::Tensor same = tensor({1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0}, {3, 4});
  const at::Tensor first = tensor({2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, {4, 4});
  const at::Tensor y = numbers({5, 7, 100, 100}, 2, first)(same, same, same, &use);
  const double e = std::exp(1.0), total = e * e + e + 2.0;
  CHECK(item(use.balance) == doctest::Approx(2.0 * (e * e + e) / total).epsilon(1e-14));
  CHECK(use.load.equal(tensor({3, 3, 0, 0}, {4}, at::kLong)));
  // Its output: both experts see 1, and count in the proportion e : 1.
  CHECK(item(y[2][0]) == doctest::Approx(silu(1.0) * (5.0 * e + 7.0) / (e + 1.0)).epsilon(1e-14));
}

TEST_CASE("mixture: a balance loss is descended towards even choices") {
  Problem problem(small("standard"));
  const auto balance = [&] {
    problem.model.hidden(problem.ids, problem.routing);
    return problem.routing.at(0).balance;
  };
  at::Tensor& router = problem.slots.at("layers.0.mlp.router.weight");
  router[2].mul_(4.0);  // one expert is chosen, or avoided, by far more than its share
  const double before = item(balance());
  for (int step = 0; step < 200; ++step) {
    router.requires_grad_();
    balance().backward();
    const at::Tensor gradient = router.grad().clone();
    router.mutable_grad().reset();
    router.requires_grad_(false);
    router.sub_(gradient * 0.5);
  }
  const double after = item(balance());
  CHECK(before > 1.1);
  CHECK(after < 1.0 + 0.5 * (before - 1.0));
}

TEST_CASE("mixture: decoding with a cache and starting in the middle compute what the whole forward does") {
  Problem problem(small("unified"));
  const at::NoGradGuard no_grad;
  const at::Tensor row = problem.ids.narrow(0, 0, 1);
  const at::Tensor whole = problem.model.logits(row);
  KvCache cache;
  problem.model.logits(row.narrow(1, 0, 3), &cache);
  for (std::int64_t t = 3; t < row.size(1); ++t) {
    const at::Tensor next = problem.model.logits(row.narrow(1, t, 1), &cache);
    CHECK(item((next - whole.narrow(1, t, 1)).abs().max()) < 1e-12 * item(whole.abs().max()));
  }
  Transformer::Depths keep{{1, {}}};
  const at::Tensor hidden = problem.model.hidden(problem.ids, keep);
  CHECK(problem.model.hidden_from(keep.at(1), 1).equal(hidden));
  // Asking what routers do changes no bit, and dense layers have no router.
  CHECK(problem.model.hidden(problem.ids, problem.routing).equal(hidden));
  CHECK(problem.routing.size() == 2);
  problem.spec.layers[0].mlp.mixture.reset();
  Problem mixed(problem.spec);
  mixed.loss();
  CHECK(mixed.routing.size() == 1);
  CHECK(mixed.routing.contains(1));
}

TEST_CASE("mixture: twice the same bits, backward included") {
  const auto run = [] {
    Problem problem(small("hg"));
    for (auto& [name, tensor] : problem.slots) tensor.requires_grad_();
    problem.loss().backward();
    return problem.slots;
  };
  const tiny::Slots one = run(), two = run();
  for (const auto& [name, tensor] : one) CHECK_MESSAGE(tensor.grad().equal(two.at(name).grad()), name);
}

TEST_CASE("mixture: routers of bfloat16 models decide in float32") {
  // 257 and 256 are one number in bfloat16.
  const at::Tensor router = tensor({256, 0, 256, 1}, {2, 2}), x = tensor({1, 1, 1, 1}, {2, 2});
  Mixture mixture = numbers({10, 20}, 2, router);
  for (at::Tensor* weight : {&mixture.router, &mixture.gate, &mixture.up, &mixture.down})
    *weight = weight->to(at::kBFloat16);
  const at::Tensor input = x.to(at::kBFloat16);
  RouterUse use;
  const at::Tensor y = mixture(input, input, input, &use);
  CHECK((y.scalar_type() == at::kBFloat16));
  const double p = 1.0 / (1.0 + std::exp(-1.0));
  const double expected = silu(2.0) * 2.0 * (20.0 * p + 10.0 * (1.0 - p));
  // Some five roundings at 2^-9 each; with even weights it would be off by 13 %.
  CHECK(item(y[0][0].to(at::kDouble)) == doctest::Approx(expected).epsilon(0.01));
  CHECK((use.balance.scalar_type() == at::kFloat));
}

TEST_CASE("mixture: a spec or tensors that contradict themselves are refused") {
  const auto refused = [](auto&& change) {
    ModelSpec spec = small("hg");
    change(spec.layers[1].mlp);
    const tiny::Slots slots = values_of(spec);
    const Caught error = error_of([&] { Transformer(spec, slots, {.compute = at::kDouble}); });
    CHECK(error.code == ErrorCode::config);
    CHECK(error.fields.tensor.starts_with("layers.1.mlp"));
  };
  refused([](MlpSpec& mlp) { mlp.mixture->active = 6; });
  refused([](MlpSpec& mlp) { mlp.mixture->active = 0; });
  refused([](MlpSpec& mlp) { mlp.mixture->gate.out = mlp.mixture->up.out = mlp.mixture->down.in = 0; });
  refused([](MlpSpec& mlp) { mlp.mixture->router.out = 4; });
  refused([](MlpSpec& mlp) { mlp.mixture->up.out = 8; });
  refused([](MlpSpec& mlp) { mlp.mixture->down.in = 8; });
  refused([](MlpSpec& mlp) { mlp.mixture->gate.bias = true; });
  refused([](MlpSpec& mlp) { mlp.mixture->router.bias = true; });
  refused([](MlpSpec& mlp) { mlp.mixture->down.output = tiny::norm_spec(12, 12, 1e-5); });
  refused([](MlpSpec& mlp) { mlp.mixture->gate.own_vector = false; });
  refused([](MlpSpec& mlp) { mlp.up.own_vector = false; });
  refused([](MlpSpec& mlp) { mlp.mixture->down.own_vector = true; });
  refused([](MlpSpec& mlp) { mlp.gate = {}; });

  const ModelSpec spec = small("standard");
  tiny::Slots slots = values_of(spec);
  const auto build = [&] { Transformer(spec, slots, {.compute = at::kDouble}); };
  slots["layers.0.mlp.experts.up.weight"] = normal({5, 12, 7}, 1);
  Caught error = error_of(build);
  CHECK(error.code == ErrorCode::shape);
  CHECK(error.fields.tensor == "layers.0.mlp.experts.up.weight");
  slots.erase("layers.0.mlp.experts.up.weight");
  error = error_of(build);
  CHECK(error.code == ErrorCode::config);
  CHECK(error.fields.tensor == "layers.0.mlp.experts.up.weight");
}
