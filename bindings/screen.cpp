// Mirrors analysis/saliency.h and edits/sweep.h.
#include <algorithm>
#include <span>

#include <scalevec/analysis/saliency.h>
#include <scalevec/core/ops.h>
#include <scalevec/edits/sweep.h>

#include "documents.h"
#include "module.h"

namespace scalevec::python {
namespace {

std::vector<at::Tensor> tensors_of(const PerChannel& values) {
  std::vector<at::Tensor> out;
  for (const std::vector<double>& row : values) {
    at::Tensor tensor = ops::empty({static_cast<std::int64_t>(row.size())}, at::kDouble);
    std::copy(row.begin(), row.end(), tensor.mutable_data_ptr<double>());
    out.push_back(std::move(tensor));
  }
  return out;
}

}  // namespace

void bind_screen(py::module_& m) {
  py::class_<Saliency>(m, "Saliency", R"doc(
First-order view of every entry at once. Lists have one (width,) float64 tensor for each vector of the map.
)doc")
      .def_property_readonly("effective", [](const Saliency& s) { return tensors_of(s.effective); })
      .def_property_readonly(
          "gradient", [](const Saliency& s) { return tensors_of(s.gradient); },
          "dL / dg, nats per prediction and unit of g.")
      .def_property_readonly(
          "ablation", [](const Saliency& s) { return tensors_of(s.ablation()); },
          "-g dL/dg: first-order loss change of setting each entry to zero.")
      .def_readonly("loss", &Saliency::loss)
      .def_readonly("predictions", &Saliency::predictions);

  m.def(
      "saliency",
      [](Transformer& model, const IdArrays& ids, std::int64_t context, std::optional<std::int64_t> bos,
         std::int64_t tokens, py::object callback) {
        const Documents documents = documents_of(ids);
        const Progress report = progress(std::move(callback));
        const py::gil_scoped_release unlocked;
        const Interruptible interruptible(model);
        return saliency(model, documents, {.context = context, .bos = bos, .tokens = tokens}, report);
      },
      "model"_a, "documents"_a, py::kw_only(), "context"_a = 512, "bos"_a = py::none(), "tokens"_a = 0,
      "progress"_a = py::none(),
      "One forward and one backward in which only the scale vectors require gradients.");

  m.def(
      "outlier_scores", [](const ScaleMap& scales) { return tensors_of(outlier_scores(scales)); }, "scales"_a,
      py::call_guard<py::gil_scoped_release>(),
      "For each vector: how many of its standard deviations each entry lies from its mean.");

  py::class_<Trial>(m, "Trial", "One entry of the base set to another effective value.")
      .def(py::init([](std::size_t vector, std::int64_t channel, double value) {
             return Trial{vector, channel, value};
           }),
           "vector"_a, "channel"_a, "value"_a)
      .def_readonly("vector", &Trial::vector, "Of the map.")
      .def_readonly("channel", &Trial::channel)
      .def_readonly("value", &Trial::value);

  m.def(
      "sweep",
      [](Transformer& model, const IdArrays& ids, const std::vector<Trial>& trials, std::int64_t context,
         std::optional<std::int64_t> bos, std::int64_t tokens, std::uint64_t seed, std::int64_t resamples,
         std::size_t batch, py::object callback) {
        const SweepOptions options{.windows = {.context = context, .bos = bos, .tokens = tokens},
                                   .seed = seed,
                                   .resamples = resamples,
                                   .batch = batch};
        const Documents documents = documents_of(ids);
        const Progress report = progress(std::move(callback));
        const py::gil_scoped_release unlocked;
        const Interruptible interruptible(model);
        return sweep(model, documents, std::span<const Trial>(trials), options, report);
      },
      "model"_a, "documents"_a, "trials"_a, py::kw_only(), "context"_a = 512, "bos"_a = py::none(),
      "tokens"_a = 0, "seed"_a = 0, "resamples"_a = 2000, "batch"_a = 32, "progress"_a = py::none(),
      "One Change for each trial.");
}

}  // namespace scalevec::python
