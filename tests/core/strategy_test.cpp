// The paper's strategies run: forward, gradients and gauge identities.
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <doctest/doctest.h>
#include <support/tensors.h>

#include <scalevec/core/components.h>
#include <scalevec/core/model/transformer.h>
#include <scalevec/core/strategy.h>

#include "tiny_model.h"

#include <support/check.h>

using namespace scalevec;

namespace {

const std::vector<std::string> strategies = {
    "standard", "removal", "hg",        "ap",        "dp[v,up]",       "hg+ap", "hg+dp",   "hg+dnp",
    "or",       "er",      "hg+dnp+or", "hg+dnp+er", "hg+dp+or-input", "ap+er", "unified", "dp[o,down,head]",
    "gemma"};

ModelSpec small(const std::string& strategy) {
  ModelShape shape;
  shape.vocabulary = 17, shape.width = 12, shape.layers = 2, shape.head_dim = 6, shape.kv_heads = 1;
  shape.inner = 10, shape.context = 16;
  return make_spec(shape, Strategy::parse(strategy));
}

// Large epsilons and coefficients off their start, so that nothing is 1 or 0 by chance.
tiny::Slots values_of(const ModelSpec& spec) {
  tiny::Slots out;
  unsigned seed = 100;
  for (const auto& [name, shape] : spec.tensor_slots()) {
    const bool weight = shape.size() == 2;
    out[name] = normal(shape, ++seed).mul(weight ? 1.2 / std::sqrt(static_cast<double>(shape[1])) : 0.3);
    if (!weight) out[name].add_(name.ends_with(".beta") ? 0.8 : 1.1);
  }
  return out;
}

struct Problem {
  explicit Problem(const std::string& strategy)
      : spec(small(strategy)),
        slots(values_of(spec)),
        ids(tiny::ids(2, 7, spec.vocabulary)),
        probe(normal({2, 7, spec.vocabulary}, 5)),
        model(spec, slots, {.compute = at::kDouble}) {}

  at::Tensor loss() { return (model.logits(ids) * probe).sum(); }

  // d loss / d slot of every slot, by autograd.
  std::map<std::string, at::Tensor> gradients() {
    for (auto& [name, tensor] : slots) tensor.requires_grad_();
    const at::AutoGradMode on(true);
    loss().backward();
    std::map<std::string, at::Tensor> out;
    for (auto& [name, tensor] : slots) {
      REQUIRE_MESSAGE(tensor.grad().defined(), name);
      out[name] = tensor.grad().clone();
      tensor.requires_grad_(false);
    }
    return out;
  }

  ModelSpec spec;
  tiny::Slots slots;
  at::Tensor ids, probe;
  Transformer model;  // shares the slots
};

double item(const at::Tensor& t) { return t.item<double>(); }

}  // namespace

TEST_CASE("strategies: the forward is that of plain operators") {
  for (const std::string& strategy : strategies) {
    CAPTURE(strategy);
    Problem problem(strategy);
    const tiny::Reference reference(problem.spec, problem.slots);
    const at::Tensor expected = reference.logits(problem.ids), found = problem.model.logits(problem.ids);
    CHECK(item((found - expected).abs().max()) < 1e-10 * item(expected.abs().max()));
  }
}

TEST_CASE("strategies: gradients of every tensor are those of central differences") {
  for (const std::string& strategy : strategies) {
    Problem problem(strategy);
    const auto gradients = problem.gradients();
    unsigned seed = 900;
    for (auto& [name, tensor] : problem.slots) {
      CAPTURE(strategy);
      CAPTURE(name);
      const at::Tensor direction = normal(tensor.sizes(), ++seed);
      const double slope = item((gradients.at(name) * direction).sum());
      constexpr double h = 1e-4;
      const at::Tensor start = tensor.clone();
      const auto loss_at = [&](double t) {
        tensor.copy_(start + direction * t);
        return item(problem.loss());
      };
      const double near = loss_at(h) - loss_at(-h), far = loss_at(2 * h) - loss_at(-2 * h);
      const double measured = (8 * near - far) / (12 * h);
      tensor.copy_(start);
      // A loss of some 10 is rounded at 1e-15 of it, over 1e-4; what is cut off is h^4 of a fifth derivative.
      CHECK(std::abs(measured - slope) < 1e-6 * (1.0 + std::abs(slope)));
    }
  }
}

TEST_CASE("OR and ER: the vector and its gauge identities") {
  for (const std::string strategy : {"or", "er"}) {
    CAPTURE(strategy);
    Problem problem(strategy);
    const bool exponential = strategy == "er";
    const auto gradients = problem.gradients();
    // dL/dg from a model whose vectors are the same values, stored plainly.
    ModelSpec plain_spec = small("standard");
    tiny::Slots plain;
    for (const auto& [name, tensor] : problem.slots) {
      if (!name.ends_with(".alpha") && !name.ends_with(".beta")) plain[name] = tensor.clone();
    }
    for (const ScaleVector& vector : problem.model.scales())
      plain[vector.address() + ".weight"] = vector.effective().requires_grad_();
    Transformer twin(plain_spec, plain, {.compute = at::kDouble});
    const at::AutoGradMode on(true);
    const at::Tensor loss = (twin.logits(problem.ids) * problem.probe).sum();
    CHECK(item(loss) == doctest::Approx(item(problem.loss())).epsilon(1e-12));
    loss.backward();

    for (const ScaleVector& vector : problem.model.scales()) {
      CAPTURE(vector.address());
      const at::Tensor g = vector.effective(), alpha = vector.stored();
      const double beta = item(vector.beta());
      if (exponential) {
        CHECK(item(g.log().mean()) == doctest::Approx(beta).epsilon(1e-12));
      } else {
        CHECK(item(g.square().mean().sqrt()) == doctest::Approx(std::abs(beta)).epsilon(1e-12));
      }
      const at::Tensor d_alpha = gradients.at(vector.address() + ".alpha");
      const double d_beta = item(gradients.at(vector.address() + ".beta"));
      const at::Tensor d_g = plain.at(vector.address() + ".weight").grad();
      const double scale = item((g * d_g).abs().sum());
      REQUIRE(scale > 1e-3);
      const double along = item(exponential ? d_alpha.sum() : (alpha * d_alpha).sum());
      CHECK(std::abs(along) < 1e-10 * scale);
      CHECK(std::abs((exponential ? 1.0 : beta) * d_beta - item((g * d_g).sum())) < 1e-10 * scale);
    }
  }
}

TEST_CASE("OR: a vector with components is watched, kept and put back as others are") {
  Problem problem("or");
  ScaleMap& scales = problem.model.scales();
  const at::Tensor before = problem.model.logits(problem.ids);
  KvCache cache;
  const at::Tensor row = problem.ids[0].narrow(0, 0, 4);
  problem.model.logits(row, &cache);
  scales[0].beta().mul_(2.0);
  const at::Tensor moved = problem.model.logits(problem.ids);
  CHECK(item((moved - before).abs().max()) > 1e-2);
  // A cache is read again when only beta has changed.
  const at::Tensor next = problem.model.logits(problem.ids[0].narrow(0, 4, 3), &cache);
  CHECK(item((next[0] - moved[0].narrow(0, 4, 3)).abs().max()) < 1e-10 * item(moved.abs().max()));
  CHECK((scales[0].bytes() != scales.base_bytes(0)));
  CHECK(scales[0].bytes().size() == 13 * 8);
  scales.restore(0);
  CHECK((scales[0].bytes() == scales.base_bytes(0)));
  CHECK(problem.model.logits(problem.ids).equal(before));
}
