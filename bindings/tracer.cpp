// Mirrors analysis/tracer.h, for loops whose tensors and optimizer are Python's.
#include <pybind11/functional.h>
#include <scalevec/analysis/curvature.h>
#include <scalevec/analysis/forward_trace.h>
#include <scalevec/analysis/tracer.h>
#include <scalevec/hooks/watch.h>

#include <scalevec/core/error.h>
#include <scalevec/core/torch_version.h>

#include "module.h"

namespace scalevec::python {
namespace {

UpdateFacts::Rule rule_of(const std::string& name) {
  if (name == "sgd") return UpdateFacts::Rule::sgd;
  if (name == "adamw") return UpdateFacts::Rule::adamw;
  if (name == "muon") return UpdateFacts::Rule::muon;
  return UpdateFacts::Rule::other;
}

at::Tensor tensor_or_none(const py::dict& facts, const char* key) {
  return facts.contains(key) && !facts[key].is_none() ? facts[key].cast<at::Tensor>() : at::Tensor();
}

UpdateFacts facts_of(const py::dict& d) {
  const auto number = [&](const char* key) { return d.contains(key) ? d[key].cast<double>() : 0.0; };
  UpdateFacts facts;
  facts.rule = rule_of(d["rule"].cast<std::string>());
  facts.rate = number("rate");
  facts.stretch = d.contains("stretch") ? number("stretch") : 1.0;
  facts.weight_decay = number("weight_decay");
  facts.momentum = number("momentum");
  facts.beta2 = number("beta2");
  facts.eps = number("eps");
  facts.steps = number("steps");
  facts.gradient = tensor_or_none(d, "gradient");
  facts.exp_avg = tensor_or_none(d, "exp_avg");
  facts.exp_avg_sq = tensor_or_none(d, "exp_avg_sq");
  return facts;
}

UpdateView view_of(const py::function& view) {
  return [view](const at::Tensor& tensor) { return facts_of(view(tensor).cast<py::dict>()); };
}

std::vector<TracedMap> maps_of(const std::vector<std::pair<std::string, at::Tensor>>& maps) {
  std::vector<TracedMap> out;
  for (const auto& [branch, weight] : maps) out.push_back({.branch = branch, .weight = weight});
  return out;
}

}  // namespace

void bind_tracer(py::module_& m) {
  py::class_<TracedVector>(m, "TracedVector", "A scale vector that learns, and the maps beside it.")
      .def(py::init([](const std::string& address, const std::string& native, const std::string& role,
                       double offset, double eps, const at::Tensor& stored,
                       const std::vector<std::pair<std::string, at::Tensor>>& consumers) {
             TracedVector v;
             v.site.address = Address::parse(address);
             v.site.native = native;
             v.site.role = parse_role(role);
             v.site.offset = offset;
             v.site.eps = eps;
             v.site.width = v.site.group = stored.numel();
             v.stored = stored;
             v.consumers = maps_of(consumers);
             for (const TracedMap& map : v.consumers) v.site.consumers.push_back({map.branch, ""});
             return v;
           }),
           py::kw_only(), "address"_a, "native"_a, "role"_a, "offset"_a, "eps"_a, "stored"_a, "consumers"_a)
      .def_property_readonly("address", [](const TracedVector& v) { return v.site.address.str(); })
      .def_property_readonly("offset", [](const TracedVector& v) { return v.site.offset; })
      .def_property_readonly("stored", [](const TracedVector& v) { return v.stored; })
      .def_property_readonly(
          "beta",
          [](const TracedVector& v) { return v.beta.defined() ? std::optional(v.beta) : std::nullopt; })
      .def_property_readonly(
          "maps",
          [](const TracedVector& v) {
            std::vector<std::pair<std::string, at::Tensor>> out;
            for (const TracedMap& map : v.beside()) out.emplace_back(map.branch, map.weight);
            return out;
          },
          "(branch, weight) of those beside it: its readers, else what it scales.");

  py::class_<Tracer>(m, "Tracer", "Rows of metrics of scale vectors while a model trains.")
      .def(
          py::init([](const std::filesystem::path& path, std::vector<TracedVector> vectors,
                      const std::string& command, std::int64_t every, double gauge_tolerance, bool inputs,
                      bool curvature, std::optional<std::int64_t> after) {
            TraceHeader header;
            header.run = {.command = command, .torch = torch_version(), .device = "", .seed = 0, .more = {}};
            if (!vectors.empty()) header.run.device = vectors[0].stored.device().str();
            Tracer::Options options{
                .every = every, .gauge_tolerance = gauge_tolerance, .inputs = inputs, .curvature = curvature};
            options.writer.after = after;
            return std::make_unique<Tracer>(path, std::move(vectors), header, options);
          }),
          "path"_a, "vectors"_a, py::kw_only(), "command"_a, "every"_a, "gauge_tolerance"_a, "inputs"_a,
          "curvature"_a, "after"_a)
      .def("due", &Tracer::due, "step"_a)
      .def("see", &Tracer::see, "address"_a, "normalized"_a,
           "What a norm gave in a forward pass of the step to come, before its vector: (..., width).")
      .def("input_moments", &Tracer::input_moments, "address"_a,
           "S = E[x x^T] of what the readers of a norm were given in the last row, float64.")
      .def("save_inputs", &Tracer::save_inputs, "path"_a,
           "A results file of input_moments at every norm that was seen.")
      .def(
          "note",
          [](Tracer& t, std::string_view address, std::string_view column,
             const std::vector<double>& values) { t.note(address, column, values); },
          "address"_a, "column"_a, "values"_a,
          "What the loop itself has measured for the row to come: one value, or one for each channel.")
      .def(
          "note_curvature",
          [](Tracer& t, std::string_view address, std::vector<double> g, std::vector<double> gradient,
             const Spectrum& vector, const std::optional<Spectrum>& maps,
             const std::optional<Spectrum>& joint) {
            note(t, address, {std::move(g), std::move(gradient), vector, maps, joint});
          },
          "address"_a, py::kw_only(), "g"_a, "gradient"_a, "vector"_a, "maps"_a = py::none(),
          "joint"_a = py::none(), "The loss's curvature beside one norm, for the row to come.")
      .def(
          "before",
          [](Tracer& t, std::int64_t step, const py::function& view) { t.before(step, view_of(view)); },
          "step"_a, "view"_a)
      .def(
          "after",
          [](Tracer& t, std::int64_t step, const py::function& view) { t.after(step, view_of(view)); },
          "step"_a, "view"_a)
      .def("state", &Tracer::state, "What the next rows depend on, for a checkpoint.")
      .def("restore", &Tracer::restore, "state"_a)
      .def_property_readonly(
          "gauge_faults",
          [](const Tracer& t) {
            std::vector<std::tuple<std::string, std::int64_t, std::int64_t, double, std::string>> out;
            for (const Tracer::GaugeFault& f : t.gauge_faults())
              out.emplace_back(f.address, f.step, f.channel, f.residual, f.identity);
            return out;
          })
      .def(
          "close",
          [](Tracer& t, py::object callback) {
            const Progress report = progress(std::move(callback));
            const py::gil_scoped_release unlocked;
            return t.close(report).error;
          },
          "progress"_a = py::none(), "What could not be kept; empty: nothing.");
  py::class_<Watch>(m, "Watch", "An observer of a model, while it lives.").def("stop", &Watch::stop);
  m.def(
      "watch_forward",
      [](Transformer& model, Tracer& tracer, bool inputs, std::function<std::int64_t()> step) {
        return Watch(model, std::make_shared<ForwardTrace>(model, tracer, inputs, std::move(step)));
      },
      "model"_a, "tracer"_a, py::kw_only(), "inputs"_a, "step"_a, py::keep_alive<0, 1>(),
      py::keep_alive<0, 2>(), "Shows a tracer the forward passes that `step` counts to a training step.");
  py::class_<Spectrum>(m, "Spectrum", "What a few products tell of a symmetric matrix.")
      .def_readonly("largest", &Spectrum::largest,
                    "Lanczos's estimate of the largest eigenvalue, from below.")
      .def_readonly("bound", &Spectrum::bound, "An eigenvalue is within this of it.")
      .def_readonly("trace", &Spectrum::trace, "Hutchinson's estimate.")
      .def_readonly("trace_error", &Spectrum::trace_error, "Its standard error.")
      .def_readonly("frobenius", &Spectrum::frobenius)
      .def_readonly("diagonal", &Spectrum::diagonal)
      .def_readonly("diagonal_error", &Spectrum::diagonal_error, "Standard errors.");
  m.def(
      "spectrum",
      [](const std::function<at::Tensor(at::Tensor)>& product, std::int64_t size, int iterations, int probes,
         std::uint64_t seed) {
        if (size < 1 || iterations < 1 || probes < 1)
          fail(ErrorCode::value, "spectrum: size, iterations and probes must be 1 or more");
        const auto checked = [&](const at::Tensor& v) {
          const at::Tensor out = product(v);
          if (out.dim() == 1 && out.size(0) == size) return out.detach().to(at::kCPU, at::kDouble);
          fail(ErrorCode::shape,
               "spectrum: the product must be (" + std::to_string(size) + ",), as its vector");
        };
        return spectrum(checked, size, {iterations, probes, seed});
      },
      "product"_a, "size"_a, py::kw_only(), "iterations"_a = SpectrumOptions{}.iterations,
      "probes"_a = SpectrumOptions{}.probes, "seed"_a = 0,
      "Of a symmetric matrix known by its products: (size,) to (size,), float64.");
  m.def("tracer_columns", [] {
    std::vector<std::array<std::string, 4>> rows;
    for (const auto* columns :
         {&Tracer::columns(), &Tracer::branch_columns(), &Tracer::vector_branch_columns(),
          &Tracer::input_columns(), &Tracer::curvature_columns()}) {
      for (const TraceColumn& c : *columns)
        rows.push_back({c.name, c.unit, std::string(trace_per_name(c.per)), c.description});
    }
    return rows;
  });
}

}  // namespace scalevec::python
