// Identities between a vector's gradient and those of the linear maps beside it, which hold for any loss and
// batch because a scale can be moved from one to the other (Kunin et al., arXiv 2012.04728). A consumer that
// was missed, a forgotten offset or a vector in the wrong place breaks them.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <doctest/doctest.h>
#include <support/tensors.h>

#include <scalevec/core/model/transformer.h>
#include <scalevec/core/strategy.h>

#include "tiny_model.h"

#include <support/check.h>

using namespace scalevec;

namespace {

ModelSpec small(const std::string& strategy, bool mixture, double eps) {
  ModelShape shape;
  shape.vocabulary = 17, shape.width = 12, shape.layers = 2, shape.head_dim = 6, shape.kv_heads = 1;
  shape.inner = 10, shape.context = 16, shape.eps = eps;
  if (mixture) shape.experts = 5, shape.active = 2, shape.expert_inner = 7;
  return make_spec(shape, Strategy::parse(strategy));
}

tiny::Slots drawn(const ModelSpec& spec) {
  tiny::Slots slots;
  unsigned seed = 40;
  for (const auto& [name, shape] : spec.tensor_slots()) {
    const bool weight = shape.size() > 1;
    at::Tensor values =
        normal(shape, ++seed).mul(weight ? 1.2 / std::sqrt(static_cast<double>(shape.back())) : 0.3);
    if (!weight) values = values.add(name.ends_with(".beta") ? 0.8 : 1.1);
    slots[name] = values;
  }
  return slots;
}

// A model, a loss and its gradients, all of it float64.
struct Probe {
  Probe(const std::string& strategy, bool mixture, double eps = 0.0)
      : Probe(small(strategy, mixture, eps), drawn(small(strategy, mixture, eps))) {}
  Probe(ModelSpec given, tiny::Slots values) : spec(std::move(given)), slots(std::move(values)) {
    for (auto& [name, values_of_slot] : slots) values_of_slot.requires_grad_();
    Transformer model(spec, slots, {.compute = at::kDouble});
    sites = model.sites();
    Routing routing;
    const at::Tensor logits = model.head(model.hidden(tiny::ids(2, 7, spec.vocabulary), routing));
    at::Tensor loss = (logits.log_softmax(-1) * normal(logits.sizes(), 5)).sum();
    for (const auto& [layer, use] : routing) loss = loss + use.balance * 3.0;
    loss.backward();
  }

  // Of the linear map `branch` beside a site, all experts in the first dimension: (experts, out, in).
  std::string slot(const Site& site, const std::string& branch) const {
    if (branch == "head") return "head.weight";
    const std::string& address = site.address.str();
    const std::size_t part = address.find('.', address.find('.', address.find('.') + 1) + 1);
    return address.substr(0, part + 1) + branch + ".weight";
  }
  // w * dL/dw of it.
  at::Tensor work(const Site& site, const std::string& branch) const {
    const at::Tensor& w = slots.at(slot(site, branch));
    const at::Tensor product = w.detach() * w.grad();
    return product.view({-1, product.size(-2), product.size(-1)});
  }

  // g_j dL/dg_j of the effective vector, from what is stored.
  at::Tensor work(const Site& site) const {
    const std::string& at = site.address.str();
    if (in_one_tensor(site.parametrisation)) {
      const at::Tensor& w = slots.at(at + ".weight");
      return (w.detach() + site.offset) * w.grad();
    }
    const at::Tensor &alpha = slots.at(at + ".alpha"), &beta = slots.at(at + ".beta");
    const at::Tensor a = alpha.detach();
    if (site.parametrisation == Parametrisation::exponential)
      return alpha.grad() + beta.grad() / static_cast<double>(site.width);
    return a * alpha.grad() + a.square() / a.square().sum() * beta.detach() * beta.grad();
  }

  ModelSpec spec;
  tiny::Slots slots;
  std::vector<Site> sites;
};

double largest(const at::Tensor& t) { return t.abs().max().item<double>(); }

bool normalised(const ModelSpec& spec, const Link& reader) {
  const LayerSpec& layer = spec.layers[0];
  const std::map<std::string, const LinearSpec*> maps{{"q", &layer.attn.q},  {"k", &layer.attn.k},
                                                      {"v", &layer.attn.v},  {"gate", &layer.mlp.gate},
                                                      {"up", &layer.mlp.up}, {"head", &spec.head}};
  const auto found = maps.find(reader.branch);
  return found != maps.end() && found->second->output &&
         found->second->output->statistics != Statistics::none;
}

// How many identities of a kind were found to hold.
struct Count {
  int columns = 0, rows = 0, invariant = 0, inert = 0;
  bool operator==(const Count&) const = default;
};

Count check(const Probe& probe) {
  Count count;
  // What cancels is summed from some hundred terms, each rounded a few times on its way.
  constexpr double tolerance = 1e-11;
  for (const Site& site : probe.sites) {
    CAPTURE(site.address.str());
    if (!site.consumers.empty() && site.width > 0) {
      // g_j dL/dg_j = sum over readers of <w_j, dL/dw_j>, for each column j.
      at::Tensor sum = probe.work(site) * 0.0, size = sum;
      for (const Link& reader : site.consumers) {
        const at::Tensor work = probe.work(site, reader.branch);
        sum = sum + work.sum(at::IntArrayRef{0, 1});
        size = size + work.abs().sum(at::IntArrayRef{0, 1});
      }
      REQUIRE(size.min().item<double>() > 1e-4);
      CHECK(largest((probe.work(site) - sum) / size) < tolerance);
      ++count.columns;
      // What all readers normalise has no length: nor has its vector, and OR's beta does nothing.
      if (std::all_of(site.consumers.begin(), site.consumers.end(),
                      [&](const Link& reader) { return normalised(probe.spec, reader); })) {
        const double all = size.sum().item<double>();
        CHECK(std::abs(probe.work(site).sum().item<double>()) < tolerance * all);
        if (site.parametrisation == Parametrisation::magnitude_direction) {
          const at::Tensor& beta = probe.slots.at(site.address.str() + ".beta");
          CHECK(std::abs(beta.grad().item<double>()) < tolerance * all);
        }
        ++count.inert;
      }
    }
    if (site.producers.empty()) continue;
    if (site.kind == Statistics::none) {
      // g_i dL/dg_i = <w_i, dL/dw_i>, for each row i.
      const at::Tensor work = probe.work(site, site.producers[0].branch)[0];
      CHECK(largest((probe.work(site) - work.sum(-1)) / work.abs().sum(-1)) < tolerance);
      ++count.rows;
    } else {
      // <W, dL/dW> = 0 for the rows that are normalised together, of all maps that are added up before.
      at::Tensor sum, size;
      for (const Link& producer : site.producers) {
        const at::Tensor work = probe.work(site, producer.branch);
        const at::Tensor of_row = work.sum(at::IntArrayRef{0, 2}).view({-1, site.group}).sum(-1);
        const at::Tensor size_of_row = work.abs().sum(at::IntArrayRef{0, 2}).view({-1, site.group}).sum(-1);
        sum = sum.defined() ? sum + of_row : of_row;
        size = size.defined() ? size + size_of_row : size_of_row;
      }
      CHECK(largest(sum / size) < tolerance);
      ++count.invariant;
    }
  }
  return count;
}

}  // namespace

TEST_CASE("gauge: vectors and linear maps answer for each other") {
  struct Row {
    std::string strategy;
    Count dense, mixture;
  };
  // Two layers and the final norm. In a mixture the router reads an MLP's shared vector, and where gate and
  // up of the shared expert are normalised, those of routed experts are not.
  for (const Row& row : std::vector<Row>{{"standard", {5, 0, 0, 0}, {5, 0, 0, 0}},
                                         {"er", {5, 0, 0, 0}, {5, 0, 0, 0}},
                                         {"hg", {11, 0, 0, 0}, {13, 0, 0, 0}},
                                         {"ap", {0, 11, 0, 0}, {0, 11, 0, 0}},
                                         {"dp[q,v,o,down]", {5, 8, 0, 0}, {5, 8, 0, 0}},
                                         {"hg+dp+or", {11, 11, 0, 0}, {13, 11, 0, 0}},
                                         {"dnp", {5, 0, 11, 5}, {5, 0, 11, 3}},
                                         {"hg+dnp", {11, 0, 11, 11}, {13, 0, 11, 7}},
                                         {"unified", {11, 0, 11, 11}, {13, 0, 11, 7}},
                                         {"hg+dnp+er", {11, 0, 11, 11}, {13, 0, 11, 7}},
                                         {"gemma", {5, 0, 8, 0}, {5, 0, 8, 0}}}) {
    CAPTURE(row.strategy);
    CHECK((check(Probe(row.strategy, false)) == row.dense));
    CHECK((check(Probe(row.strategy, true)) == row.mixture));
  }
}

TEST_CASE(
    "gauge: components have the gradients of the plain vector that they make, OR's alpha and ER's mean "
    "none") {
  constexpr double eps = std::numeric_limits<double>::epsilon();
  int trained = 0, inert = 0;
  for (const auto& [form, plain] :
       std::vector<std::pair<std::string, std::string>>{{"or", "standard"},
                                                        {"er", "standard"},
                                                        {"hg+dp+or", "hg+dp"},
                                                        {"hg+dp+er", "hg+dp"},
                                                        {"hg+dnp+or", "hg+dnp"},
                                                        {"hg+dnp+er", "hg+dnp"}}) {
    for (const bool mixture : {false, true}) {
      CAPTURE(form);
      CAPTURE(mixture);
      const Probe probe(form, mixture);
      // The same function with one tensor for each vector: its gradient is dL/dg itself.
      tiny::Slots slots;
      for (const auto& [name, tensor] : probe.slots) {
        if (!name.ends_with(".alpha") && !name.ends_with(".beta")) slots[name] = tensor.detach().clone();
      }
      for (const Site& site : probe.sites) {
        const std::string& at = site.address.str();
        const at::Tensor alpha = probe.slots.at(at + ".alpha").detach(),
                         beta = probe.slots.at(at + ".beta").detach();
        slots[at + ".weight"] = form.ends_with("or") ? alpha / alpha.square().mean().sqrt() * beta
                                                     : (alpha - alpha.mean() + beta).exp();
      }
      const Probe twin(small(plain, mixture, 0.0), std::move(slots));

      for (const Site& site : probe.sites) {
        CAPTURE(site.address.str());
        const std::string& at = site.address.str();
        const at::Tensor &alpha = probe.slots.at(at + ".alpha"), &beta = probe.slots.at(at + ".beta"),
                         &g = twin.slots.at(at + ".weight");
        const at::Tensor along = g.detach() * g.grad();  // g_j dL/dg_j
        const double parts = along.abs().sum().item<double>(), sum = along.sum().item<double>();
        const double d = static_cast<double>(site.width), by_beta = beta.grad().item<double>();
        const bool is_or = site.parametrisation == Parametrisation::magnitude_direction;
        // <alpha, dL/dalpha>, sum dL/dalpha: 0 by the last step of backward, whatever dL/dg it is given. Its
        // d entries, each some four roundings, are sums of d terms that cancel, and are added up.
        const at::Tensor none = is_or ? alpha.detach() * alpha.grad() : alpha.grad();
        CHECK(std::abs(none.sum().item<double>()) < (2 * d + 4) * eps * parts);
        REQUIRE(none.abs().sum().item<double>() > 0.1 * parts);
        // beta dL/dbeta, dL/dbeta: what goes along g. Two models' gradients: some hundred terms, each rounded
        // a few times on its way.
        const double expected = is_or ? beta.detach().item<double>() * by_beta : by_beta;
        CHECK(std::abs(expected - sum) < 1e-11 * parts);
        REQUIRE(parts > 1e-2);
        // Where norms behind all readers take its length away, <g, dL/dg> is 0, and beta does nothing.
        const bool lengthless =
            !site.consumers.empty() &&
            std::all_of(site.consumers.begin(), site.consumers.end(),
                        [&](const Link& reader) { return normalised(probe.spec, reader); });
        if (lengthless) {
          CHECK(std::abs(sum) < 1e-11 * parts);
          CHECK(std::abs(by_beta) < 1e-11 * parts);
        } else {
          REQUIRE(std::abs(by_beta) > 1e-4 * parts);
        }
        ++(lengthless ? inert : trained);
      }
    }
  }
  // Five input vectors of the whole models, 11 by branch, 13 in a mixture, and 11 behind maps; under DNP all
  // 11 by branch have no length, in a mixture the 7 that no router and no routed expert reads.
  CHECK(inert == 2 * (11 + 7));
  CHECK(trained == 2 * (5 + 5 + 22 + 24 + 11 + 17));
}

TEST_CASE("gauge: epsilon leaves a beta that does next to nothing, in proportion to it") {
  // z / sqrt(m + eps) keeps eps / (m + eps) of z's length.
  const auto beta = [](double eps) {
    const Probe probe("unified", false, eps);
    return probe.slots.at("layers.0.attn.input_norm[v].beta").grad().item<double>();
  };
  const double one = beta(1e-6), two = beta(2e-6);
  CHECK(std::abs(one) > 1e-9);
  CHECK(two / one == doctest::Approx(2.0).epsilon(1e-3));
}
