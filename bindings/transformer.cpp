// Mirrors core/model/transformer.h.
#include <c10/util/Exception.h>

#include <scalevec/core/error.h>
#include <scalevec/core/model/layers.h>
#include <scalevec/core/model/transformer.h>

#include "module.h"

namespace scalevec::python {
namespace {

at::ScalarType dtype_of(std::string_view name) {
  if (name == "float32") return at::kFloat;
  if (name == "bfloat16") return at::kBFloat16;
  if (name == "float64") return at::kDouble;
  fail(ErrorCode::dtype, "load: no such compute dtype",
       {.key = "dtype", .expected = "float32, bfloat16 or float64", .found = std::string(name)});
}

at::Device device_of(const std::string& name) {
  try {
    const at::Device device(name);
    // torch takes 300 for 300 - 256.
    TORCH_CHECK(!device.has_index() || (device.str() == name && !device.is_cpu()));
    return device.is_cuda() && !device.has_index() ? at::Device(at::kCUDA, 0) : device;
  } catch (const c10::Error&) {
    fail(ErrorCode::device, "load: no such device",
         {.key = "device", .expected = "cpu, cuda or cuda:0", .found = name});
  }
}

}  // namespace

void bind_transformer(py::module_& m) {
  const auto release = py::call_guard<py::gil_scoped_release>();
  m.def(
      "check_options",
      [](std::string_view dtype, const std::string& device) {
        check_options({.compute = dtype_of(dtype), .device = device_of(device)});
      },
      py::kw_only(), "dtype"_a, "device"_a, "Refuses names that are none, and a device that is absent.");
  m.def(
      "read_scales",
      [](const Checkpoint& checkpoint, const std::string& device) {
        return std::make_shared<ScaleMap>(read_scales(checkpoint, device_of(device)));
      },
      "checkpoint"_a, py::kw_only(), "device"_a = "cpu", release,
      "The scale vectors of a file and none of its weights.");

  py::class_<KvCache>(m, "KvCache", "Keys and values of the positions that a model has read.")
      .def(py::init<>())
      .def("__len__", &KvCache::length)
      .def("clear", &KvCache::clear);

  py::class_<SiteProvider>(m, "SiteProvider", "Whatever has norm sites and runs.")
      .def_property_readonly("sites", &SiteProvider::sites, "Every norm site in forward order.")
      .def_property_readonly(
          "scales", [](SiteProvider& model) -> ScaleMap& { return model.scales(); },
          py::return_value_policy::reference_internal);

  py::class_<Transformer, SiteProvider>(m, "Transformer", "The transformer: one class for every family.")
      .def(py::init([](const Checkpoint& checkpoint, const ScaleMap& scales, std::string_view dtype,
                       const std::string& device, py::object callback) {
             const Transformer::Options options{.compute = dtype_of(dtype), .device = device_of(device)};
             const Progress report = progress(std::move(callback));
             const py::gil_scoped_release unlocked;
             return Transformer::load(checkpoint, options, scales, report);
           }),
           "checkpoint"_a, py::kw_only(), "scales"_a, "dtype"_a = "float32", "device"_a = "cpu",
           "progress"_a = py::none(), "Reads all weights; shares the vectors of `scales`, edited or not.")
      .def(
          "hidden",
          [](Transformer& model, const at::Tensor& ids, KvCache* cache) {
            const Interruptible interruptible(model);
            return model.hidden(ids, cache);
          },
          "ids"_a, "cache"_a = py::none(), release)
      .def("head", &Transformer::head, "hidden"_a, release)
      .def(
          "logits",
          [](Transformer& model, const at::Tensor& ids, KvCache* cache) {
            const Interruptible interruptible(model);
            return model.logits(ids, cache);
          },
          "ids"_a, "cache"_a = py::none(), release,
          "ids: (batch, tokens) or (tokens,), int64. Returns (batch, tokens, vocabulary).");
}

}  // namespace scalevec::python
