// Mirrors hooks/capture.h, hooks/override.h and hooks/reductions.h.
#include <scalevec/hooks/capture.h>
#include <scalevec/hooks/override.h>
#include <scalevec/hooks/reductions.h>

#include "module.h"

namespace scalevec::python {
namespace {

using Names = std::vector<std::string>;

}  // namespace

void bind_hooks(py::module_& m) {
  py::class_<SiteCapture>(m, "SiteCapture", R"doc(
What one site did: of each tap a list with one tensor per forward, oldest first, detached.

input, normalized and scaled are (batch, tokens, width), or (batch, tokens, heads, head_dim) for q/k-norm; rms has one
entry per group in the last place; vector and vector_gradient are (width,).
)doc")
      .def_property_readonly("site", &SiteCapture::site)
      .def_property_readonly("forwards", &SiteCapture::forwards)
      .def_property_readonly("input", &SiteCapture::input)
      .def_property_readonly("rms", &SiteCapture::rms)
      .def_property_readonly("normalized", &SiteCapture::normalized)
      .def_property_readonly("scaled", &SiteCapture::scaled)
      .def_property_readonly("vector", &SiteCapture::vector)
      .def_property_readonly("input_gradient", &SiteCapture::input_gradient)
      .def_property_readonly("vector_gradient", &SiteCapture::vector_gradient);

  py::class_<Capture>(m, "Capture", "Keeps what selected norm sites do in every forward while it watches.")
      .def(py::init([](SiteProvider& model, std::string_view selector, const Names& asked) {
             return std::make_unique<Capture>(model, Selector::parse(selector), parse_taps(asked));
           }),
           "model"_a, "selector"_a, "taps"_a)
      .def("stop", &Capture::stop)
      .def_property_readonly("watching", &Capture::watching)
      .def("clear", &Capture::clear)
      .def_property_readonly("addresses", &Capture::addresses)
      .def("__getitem__", &Capture::at, "name"_a);

  py::class_<Override>(m, "Override",
                       "Lends other scale vectors to a model for every forward while it lives.")
      .def(py::init([](SiteProvider& model, const Override::Vectors& vectors, bool allow_non_finite) {
             return std::make_unique<Override>(model, vectors,
                                               Override::Options{.allow_nonfinite = allow_non_finite});
           }),
           "model"_a, "vectors"_a, py::kw_only(), "allow_non_finite"_a = false)
      .def_static("base", &Override::base, "model"_a, "The vectors as they were loaded.")
      .def("stop", &Override::stop)
      .def_property_readonly("active", &Override::active)
      .def_property_readonly("addresses", &Override::addresses);

  py::class_<ChannelReduction>(m, "ChannelReduction",
                               "Running figures of each channel: (channels,), float64.")
      .def_property_readonly("count", &ChannelReduction::count)
      .def_property_readonly("sum", &ChannelReduction::sum)
      .def_property_readonly("sum_of_squares", &ChannelReduction::sum_of_squares)
      .def_property_readonly("minimum", &ChannelReduction::minimum)
      .def_property_readonly("maximum", &ChannelReduction::maximum)
      .def_property_readonly("max_abs", &ChannelReduction::max_abs)
      .def_property_readonly("mean", &ChannelReduction::mean)
      .def_property_readonly("mean_square", &ChannelReduction::mean_square)
      .def_property_readonly("product", &ChannelReduction::product, "Sum over rows of value * gradient.")
      .def_property_readonly("product_count", &ChannelReduction::product_count);

  py::class_<Reductions>(m, "Reductions", "Figures per channel of what norm sites do; keeps no activations.")
      .def(py::init([](SiteProvider& model, std::string_view selector, const Names& asked, bool products) {
             return std::make_unique<Reductions>(model, Selector::parse(selector), parse_taps(asked),
                                                 products);
           }),
           "model"_a, "selector"_a, "taps"_a, py::kw_only(), "products"_a = false)
      .def("stop", &Reductions::stop)
      .def_property_readonly("watching", &Reductions::watching)
      .def("clear", &Reductions::clear)
      .def("merge", &Reductions::merge, "other"_a, "Adds what another one of the same sites and taps saw.")
      .def_property_readonly("addresses", &Reductions::addresses)
      .def(
          "at",
          [](const Reductions& reductions, std::string_view name, const std::string& tap) {
            return reductions.at(name, parse_taps(std::vector{tap}));
          },
          "name"_a, "tap"_a);
}

}  // namespace scalevec::python
