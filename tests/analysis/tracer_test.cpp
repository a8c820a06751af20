#include <map>

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
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
    CHECK(traced(false, 20, 600) == one);
  }
  at::set_num_threads(before);
  CHECK(one.size() > 50);
}
