// Mirrors edits/behaviour.h, edits/measure.h and analysis/windows.h.
#include <algorithm>
#include <optional>

#include <fmt/format.h>

#include <scalevec/core/ops.h>
#include <scalevec/edits/measure.h>

#include "documents.h"
#include "module.h"

namespace scalevec::python {
namespace {

template <class Values>
at::Tensor tensor_of(const Values& values, at::ScalarType dtype) {
  at::Tensor out = ops::empty({static_cast<std::int64_t>(values.size())}, dtype);
  std::copy(values.begin(), values.end(), static_cast<typename Values::value_type*>(out.data_ptr()));
  return out;
}

std::string text_of(const Figure& figure) {
  if (!figure.low || !figure.high) return fmt::format("{:.4g} (no interval)", figure.value);
  return fmt::format("{:.4g} [{:.4g}, {:.4g}]", figure.value, *figure.low, *figure.high);
}

}  // namespace

void bind_measure(py::module_& m) {
  const auto release = py::call_guard<py::gil_scoped_release>();
  py::class_<Figure>(m, "Figure",
                     "A mean over predictions with its 95 % interval; low and high are None without one.")
      .def_readonly("value", &Figure::value)
      .def_readonly("low", &Figure::low)
      .def_readonly("high", &Figure::high)
      .def("__float__", [](const Figure& figure) { return figure.value; })
      .def("__lt__", [](const Figure& figure, double other) { return figure.value < other; })
      .def("__gt__", [](const Figure& figure, double other) { return figure.value > other; })
      .def("__le__", [](const Figure& figure, double other) { return figure.value <= other; })
      .def("__ge__", [](const Figure& figure, double other) { return figure.value >= other; })
      .def("__format__",
           [](const Figure& figure, const py::str& format) {
             return py::len(format) == 0 ? py::str(text_of(figure))
                                         : py::str(py::float_(figure.value).attr("__format__")(format));
           })
      .def("__repr__", &text_of);

  py::class_<Change>(m, "Change", "What an edit did to a model's output distribution. Nats per prediction.")
      .def_readonly("loss_base", &Change::loss_base)
      .def_readonly("loss_edited", &Change::loss_edited)
      .def_readonly("loss_change", &Change::loss_change)
      .def_readonly("perplexity_base", &Change::perplexity_base)
      .def_readonly("perplexity_edited", &Change::perplexity_edited)
      .def_readonly("kl", &Change::kl)
      .def_readonly("kl_reverse", &Change::kl_reverse)
      .def_readonly("flips", &Change::flips)
      .def_readonly("tv", &Change::tv)
      .def_readonly("predictions", &Change::predictions)
      .def_readonly("chunks", &Change::chunks)
      .def_readonly("largest_difference", &Change::largest_difference)
      .def("__repr__", [](const Change& change) {
        return fmt::format("Change(loss {} nats / token, kl {}, flips {}; {} predictions)",
                           text_of(change.loss_change), text_of(change.kl), text_of(change.flips),
                           change.predictions);
      });

  py::class_<PerToken>(m, "PerToken", "One entry per prediction: tensors of one length.")
      .def_property_readonly("document", [](const PerToken& t) { return tensor_of(t.document, at::kLong); })
      .def_property_readonly("target", [](const PerToken& t) { return tensor_of(t.target, at::kLong); })
      .def_property_readonly("loss_base",
                             [](const PerToken& t) { return tensor_of(t.loss_base, at::kDouble); })
      .def_property_readonly("loss_change",
                             [](const PerToken& t) { return tensor_of(t.loss_change, at::kDouble); })
      .def_property_readonly("kl", [](const PerToken& t) { return tensor_of(t.kl, at::kDouble); })
      .def_property_readonly("tv", [](const PerToken& t) { return tensor_of(t.tv, at::kDouble); })
      .def_property_readonly("flip", [](const PerToken& t) { return tensor_of(t.flip, at::kByte); });

  py::class_<Behaviour>(m, "Behaviour", "Compares two streams of logits, a few rows at a time.")
      .def(py::init([](bool per_token) { return Behaviour({.per_token = per_token}); }), py::kw_only(),
           "per_token"_a = false)
      .def("add", &Behaviour::add, "base"_a, "edited"_a, "targets"_a, "document"_a = 0, release,
           "base, edited: (rows, vocabulary). targets: (rows,), int64.")
      .def_property_readonly("predictions", &Behaviour::predictions)
      .def_property_readonly("per_token", &Behaviour::per_token)
      .def("result", &Behaviour::result, "seed"_a = 0, "resamples"_a = 2000, release);

  py::class_<TouchedVector>(m, "TouchedVector",
                            "A vector that the edited stream ran with and the base did not.")
      .def_readonly("address", &TouchedVector::address)
      .def_readonly("native", &TouchedVector::native)
      .def_readonly("base", &TouchedVector::base)
      .def_readonly("edited", &TouchedVector::edited)
      .def("__repr__", [](const TouchedVector& v) { return "TouchedVector('" + v.address + "')"; });

  py::class_<NoOpControl>(m, "NoOpControl", "The base sent the way of an edit, against the base: all zero.")
      .def_readonly("predictions", &NoOpControl::predictions)
      .def_readonly("largest_difference", &NoOpControl::largest_difference)
      .def_readonly("loss_change", &NoOpControl::loss_change)
      .def_readonly("kl", &NoOpControl::kl)
      .def_readonly("flips", &NoOpControl::flips)
      .def("__repr__", [](const NoOpControl& control) {
        return fmt::format("NoOpControl(largest difference of any logit {:g}, over {} predictions)",
                           control.largest_difference, control.predictions);
      });

  py::class_<Measurement>(m, "Measurement",
                          "What an edit did to a model over a text, and how that was obtained.")
      .def_readonly("change", &Measurement::change)
      .def_readonly("control", &Measurement::control)
      .def_readonly("per_token", &Measurement::per_token)
      .def_property_readonly("position",
                             [](const Measurement& made) { return tensor_of(made.position, at::kLong); })
      .def_readonly("touched", &Measurement::touched)
      .def_readonly("reached_output", &Measurement::reached_output)
      .def_readonly("windows", &Measurement::windows)
      .def_readonly("documents", &Measurement::documents)
      .def_readonly("context", &Measurement::context)
      .def_readonly("threads", &Measurement::threads)
      .def_readonly("resamples", &Measurement::resamples)
      .def_readonly("bos", &Measurement::bos)
      .def_readonly("seed", &Measurement::seed)
      .def_readonly("dtype", &Measurement::dtype)
      .def_readonly("device", &Measurement::device)
      .def_readonly("scalevec", &Measurement::scalevec)
      .def_readonly("torch", &Measurement::torch)
      .def_readonly("seconds", &Measurement::seconds);

  m.def(
      "measure",
      [](Transformer& model, const IdArrays& ids, const std::optional<Override::Vectors>& lent,
         std::int64_t context, std::optional<std::int64_t> bos, std::int64_t tokens, std::uint64_t seed,
         std::int64_t resamples, bool per_token, bool allow_unedited, bool allow_no_effect,
         const Journal* journal, py::object callback) {
        const MeasureOptions options{.windows = {.context = context, .bos = bos, .tokens = tokens},
                                     .seed = seed,
                                     .resamples = resamples,
                                     .per_token = per_token,
                                     .allow_unedited = allow_unedited,
                                     .allow_no_effect = allow_no_effect,
                                     .journal = journal};
        const Documents documents = documents_of(ids);
        const Progress report = progress(std::move(callback));
        const py::gil_scoped_release unlocked;
        const Interruptible interruptible(model);
        return lent ? measure(model, documents, *lent, options, report)
                    : measure(model, documents, options, report);
      },
      "model"_a, "documents"_a, py::kw_only(), "lent"_a = py::none(), "context"_a = 512, "bos"_a = py::none(),
      "tokens"_a = 0, "seed"_a = 0, "resamples"_a = 2000, "per_token"_a = false, "allow_unedited"_a = false,
      "allow_no_effect"_a = false, "journal"_a = py::none(), "progress"_a = py::none(),
      "Measures the model as it stands, or its base with `lent` on top, against its base.");
}

}  // namespace scalevec::python
