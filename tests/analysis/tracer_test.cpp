#include <map>

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <doctest/doctest.h>
#include <support/temporary_folder.h>
#include <support/tensors.h>

#include <scalevec/analysis/tracer.h>
#include <scalevec/core/store/trace_reader.h>

#include <support/check.h>

using namespace scalevec;

namespace {

Site site(const std::string& address, Role role, std::int64_t width) {
  Site out;
  out.address = Address::parse(address);
  out.role = role;
  out.width = out.group = width;
  return out;
}

// One step of SGD on vectors of `width`, each with a map; every column's bytes by name. A map without a
// gradient is frozen.
std::map<std::string, std::vector<std::byte>> traced(bool frozen, std::int64_t vectors = 1,
                                                     std::int64_t rows = 40) {
  constexpr std::int64_t width = 24;
  const testing::TemporaryFolder folder;
  std::vector<TracedVector> all;
  std::map<const void*, at::Tensor> gradients;
  unsigned seed = 0;
  const auto leaf = [&](at::IntArrayRef shape, bool moves) {
    const at::Tensor t = normal(shape, ++seed).to(at::kFloat);
    if (moves) gradients[t.unsafeGetTensorImpl()] = normal(shape, ++seed).to(at::kFloat);
    return t;
  };
  for (std::int64_t i = 0; i < vectors; ++i) {
    TracedVector out{.site = site(fmt::format("layers.{}.attn.output_norm", i), Role::output, width),
                     .stored = leaf({width}, true),
                     .beta = {},
                     .consumers = {},
                     .producers = {{"o", leaf({width, 40}, !frozen)}}};
    TracedVector in{.site = site(fmt::format("layers.{}.mlp.input_norm", i), Role::input, width),
                    .stored = leaf({width}, true),
                    .beta = {},
                    .consumers = {{"up", leaf({rows, width}, !frozen)}},
                    .producers = {}};
    all.push_back(std::move(out));
    all.push_back(std::move(in));
  }
  const UpdateView view = [&](const at::Tensor& t) {
    UpdateFacts facts;
    facts.rule = UpdateFacts::Rule::sgd;
    facts.rate = 0.01;
    if (const auto found = gradients.find(t.unsafeGetTensorImpl()); found != gradients.end())
      facts.gradient = found->second;
    return facts;
  };
  Tracer tracer(folder.path() / "run.h5", all, TraceHeader{}, {.every = 1, .gauge_tolerance = 0.0});
  tracer.before(1, view);
  for (const TracedVector& v : all) {
    for (const auto* maps : {&v.consumers, &v.producers}) {
      for (const TracedMap& map : *maps) {
        if (const at::Tensor g = view(map.weight).gradient; g.defined()) map.weight.sub_(g, 0.01);
      }
    }
    v.stored.sub_(view(v.stored).gradient, 0.01);
  }
  tracer.after(1, view);
  tracer.close();
  const TraceReader trace(folder.path() / "run.h5");
  std::map<std::string, std::vector<std::byte>> out;
  for (std::size_t c = 0; c < trace.header().columns.size(); ++c) {
    const auto entries = static_cast<std::size_t>(trace.layout()[c].entries);
    out[trace.header().columns[c].name] = trace.read(c, 0, 1, 0, entries);
  }
  return out;
}

// y = norm(W (g x)) * h, a loss of y, and a trace of one step; `r` is differentiated or, wrongly, not;
// `doubled`: g's gradient is. The faults found.
std::vector<Tracer::GaugeFault> faults_of(double eps, bool differentiated, bool doubled = false) {
  constexpr std::int64_t width = 32, rows = 48, group = 12;
  const testing::TemporaryFolder folder;
  at::AutoGradMode gradients(true);
  const at::Tensor x = normal({64, width}, 1).to(at::kFloat);
  const at::Tensor w = (normal({rows, width}, 2) * 0.02).to(at::kFloat).requires_grad_();
  const at::Tensor g = (normal({width}, 3) * 0.2 + 1.0).to(at::kFloat).requires_grad_();
  const at::Tensor h = (normal({rows}, 4) * 0.2 + 1.0).to(at::kFloat).requires_grad_();
  const at::Tensor z = (x / (x.square().mean(-1, true) + eps).sqrt() * g).mm(w.t()).view({64, -1, group});
  const at::Tensor r = (z.square().mean(-1, true) + eps).sqrt();
  const at::Tensor y = (z / (differentiated ? r : r.detach())).reshape({64, rows}) * h;
  (y * normal({64, rows}, 5).to(at::kFloat)).square().sum().backward();  // grows with y
  if (doubled) g.mutable_grad().mul_(2.0);

  Site out = site("layers.0.attn.q.output_norm", Role::output, rows);
  out.group = group;
  Site in = site("layers.0.attn.input_norm[q]", Role::input, width);
  for (Site* s : {&out, &in}) s->eps = eps, s->kind = Statistics::rms;
  const UpdateView view = [&](const at::Tensor& t) {
    UpdateFacts facts;
    facts.rule = UpdateFacts::Rule::sgd;
    facts.gradient = t.grad();
    return facts;
  };
  Tracer tracer(folder.path() / "run.h5",
                {{.site = in, .stored = g, .beta = {}, .consumers = {{"q", w}}, .producers = {}},
                 {.site = out, .stored = h, .beta = {}, .consumers = {}, .producers = {{"q", w}}}},
                TraceHeader{}, {.every = 1});
  tracer.before(1, view);
  tracer.after(1, view);
  tracer.close();
  return tracer.gauge_faults();
}

double first(const std::vector<std::byte>& column) { return *reinterpret_cast<const double*>(column.data()); }

}  // namespace

TEST_CASE("Tracer: where a map is frozen, what needs its gradient says nothing") {
  const auto moving = traced(false), frozen = traced(true);
  // Random gradients are not across their weights: the residual of 960 products is of the order of 1 / 31.
  CHECK(first(moving.at("scale_inv_residual")) > 1e-4);
  CHECK(first(moving.at("scale_inv_residual")) < 1.0);
  CHECK(std::isnan(first(frozen.at("scale_inv_residual"))));
  // What needs none of it stays.
  CHECK(first(frozen.at("weight_norm")) > 1.0);
  CHECK(first(frozen.at("weight_growth")) == 1.0);
  CHECK(first(moving.at("weight_growth")) != 1.0);
}

TEST_CASE("Tracer: a row has the same bits on any number of threads") {
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  const auto one = traced(false, 20, 600);  // of more rows than a task sums
  for (const int threads : {2, 5}) {
    at::set_num_threads(threads);
    CHECK((traced(false, 20, 600) == one));
  }
  at::set_num_threads(before);
  CHECK(one.size() > 50);
}

TEST_CASE(
    "Tracer: what is normalised does not depend on its size; where its gradient says so, the site is named") {
  for (const double eps : {0.0, 1e-6, 1e-4}) {  // r^2 is about 0.012: the last leaves 0.8 % of it
    CAPTURE(eps);
    CHECK(faults_of(eps, true).empty());
    const auto faults = faults_of(eps, false);
    REQUIRE(faults.size() == 2);
    CHECK(faults[0].address == "layers.0.attn.input_norm[q]");
    CHECK(faults[0].identity == "length_residual");
    CHECK(faults[1].address == "layers.0.attn.q.output_norm");
    CHECK(faults[1].identity == "scale_inv_residual");
    CHECK(faults[1].channel % 12 == 0);
    CHECK(faults[1].step == 1);
  }
  const auto doubled = faults_of(1e-6, true, true);
  REQUIRE(doubled.size() == 1);
  CHECK(doubled[0].address == "layers.0.attn.input_norm[q]");
  CHECK(doubled[0].identity == "gauge_residual");
}
