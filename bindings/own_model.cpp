// Mirrors core/checkpoint/own_model.h, core/model/save.h, edits/materialise.h and edits/export_llama.h.
#include <map>
#include <optional>

#include <scalevec/core/checkpoint/own_model.h>
#include <scalevec/core/error.h>
#include <scalevec/core/model/save.h>
#include <scalevec/core/model/transformer.h>
#include <scalevec/core/strategy.h>
#include <scalevec/edits/export_llama.h>
#include <scalevec/edits/materialise.h>
#include <scalevec/trainer/init.h>
#include <scalevec/trainer/training_trace.h>

#include "module.h"

namespace scalevec::python {
namespace {

ModelSpec spec_of(std::string_view config) { return spec_from_text(config, "the configuration"); }

std::optional<at::ScalarType> weights_dtype(const std::optional<std::string>& name) {
  if (!name) return std::nullopt;
  if (*name == "float32") return at::kFloat;
  if (*name == "bfloat16") return at::kBFloat16;
  fail(ErrorCode::dtype, "saving a model: no such dtype of weights",
       {.key = "weights", .expected = "float32, bfloat16 or None", .found = *name});
}

}  // namespace

void bind_own_model(py::module_& m) {
  m.def(
      "make_config",
      [](std::string_view strategy, std::string_view preset,
         const std::map<std::string, std::int64_t>& sizes) {
        ModelShape shape = find_preset(preset).shape;
        const std::map<std::string_view, std::int64_t*> fields{
            {"vocabulary", &shape.vocabulary},    {"width", &shape.width},       {"layers", &shape.layers},
            {"head_dim", &shape.head_dim},        {"kv_heads", &shape.kv_heads}, {"inner", &shape.inner},
            {"context", &shape.context},          {"experts", &shape.experts},   {"active", &shape.active},
            {"expert_inner", &shape.expert_inner}};
        for (const auto& [name, size] : sizes) {
          if (name == "tied_head") {
            shape.tied_head = size != 0;
          } else if (const auto found = fields.find(name); found != fields.end()) {
            *found->second = size;
          } else {
            fail(ErrorCode::value, "making a model: no such size", {.key = name});
          }
        }
        return own_config_text(make_spec(shape, Strategy::parse(strategy)));
      },
      "strategy"_a, "preset"_a = "nano", "sizes"_a = std::map<std::string, std::int64_t>(),
      "config.json of a model to train: a preset whose sizes may be changed, and a strategy's words.");
  py::class_<ModelSpec>(m, "ModelSpec", "One transformer, as data.")
      .def(py::init(&spec_of), "config"_a, "From config.json of a model of ours.")
      .def(py::init([](const Checkpoint& checkpoint) { return checkpoint.spec(); }), "checkpoint"_a)
      .def_property_readonly("family", [](const ModelSpec& spec) { return spec.family; })
      .def("config", &own_config_text, "config.json; E_CONFIG for a model that is not ours.")
      .def(
          "draw",
          [](const ModelSpec& spec, std::uint64_t seed) { return draw_tensors(spec, {.seed = seed}); },
          "seed"_a, "Tensors of a new model by slot, float32.")
      .def(
          "transformer",
          [](const ModelSpec& spec, const std::map<std::string, at::Tensor>& tensors) {
            const at::Tensor& embedding = tensors.at("embed.weight");
            return std::make_unique<Transformer>(
                spec, tensors,
                Transformer::Options{.compute = embedding.scalar_type(), .device = embedding.device()});
          },
          "tensors"_a, "Around tensors by slot, shared: what autograd sees, it gives gradients.")
      .def(
          "traced_vectors",
          [](const ModelSpec& spec, const std::map<std::string, at::Tensor>& tensors) {
            return traced_vectors(spec, tensors);
          },
          "tensors"_a);
  m.def(
      "read_tensors",
      [](const Checkpoint& checkpoint, py::object callback) {
        const Progress report = progress(std::move(callback));
        const py::gil_scoped_release unlocked;
        return read_tensors(checkpoint, at::kFloat, report);
      },
      "checkpoint"_a, py::kw_only(), "progress"_a = py::none(), "Every tensor of a file by slot, float32.");
  m.def(
      "tensor_slots", [](std::string_view config) { return spec_of(config).tensor_slots(); }, "config"_a,
      "Names and shapes of the tensors of a model of ours, from its config.json.");
  m.def(
      "save_model",
      [](std::string_view config, const std::map<std::string, at::Tensor>& slots,
         const std::filesystem::path& folder, const std::optional<std::string>& weights,
         const std::vector<std::filesystem::path>& files, const std::map<std::string, std::string>& metadata,
         py::object callback) {
        const ModelSpec spec = spec_of(config);
        const SaveOptions options{.weights = weights_dtype(weights), .files = files, .metadata = metadata};
        const Progress report = progress(std::move(callback));
        const py::gil_scoped_release unlocked;
        save_model(folder, spec, slots, options, report);
      },
      "config"_a, "slots"_a, "folder"_a, py::kw_only(), "weights"_a = py::none(),
      "files"_a = std::vector<std::filesystem::path>(), "metadata"_a = std::map<std::string, std::string>(),
      "progress"_a = py::none(), "Writes a model of ours as a folder, whole or not at all.");

  py::class_<MaterialisedVector>(m, "MaterialisedVector", "A vector that became plain.")
      .def_readonly("address", &MaterialisedVector::address)
      .def_property_readonly(
          "form", [](const MaterialisedVector& v) { return parametrisation_name(v.form); }, "Before.")
      .def_readonly("before", &MaterialisedVector::before, "Its digest.")
      .def_readonly("after", &MaterialisedVector::after)
      .def_readonly("largest_rounding", &MaterialisedVector::largest_rounding,
                    "|effective value - what is stored now|.");
  py::class_<MaterialiseReport>(m, "MaterialiseReport", "What was written.")
      .def_readonly("vectors", &MaterialiseReport::vectors)
      .def_readonly("files", &MaterialiseReport::files)
      .def_readonly("bytes", &MaterialiseReport::bytes);
  m.def(
      "materialise",
      [](const Checkpoint& checkpoint, std::string_view selector, const std::filesystem::path& destination,
         py::object callback) {
        const Progress report = progress(std::move(callback));
        const py::gil_scoped_release unlocked;
        return materialise(checkpoint, selector, destination, report);
      },
      "checkpoint"_a, "selector"_a, "destination"_a, "progress"_a = py::none(),
      "Writes a copy in which the selected vectors with components are plain.");

  py::class_<LlamaReport>(m, "LlamaReport", "What was written.")
      .def_readonly("folded", &LlamaReport::folded, "Linear maps that took a vector into their weights.")
      .def_readonly("largest_rounding", &LlamaReport::largest_rounding,
                    "|float32 - exact| / |exact| over all entries.")
      .def_readonly("rounded_most", &LlamaReport::rounded_most, "The tensor that has it.")
      .def_readonly("files", &LlamaReport::files)
      .def_readonly("bytes", &LlamaReport::bytes);
  m.def(
      "export_llama",
      [](const Checkpoint& checkpoint, const std::filesystem::path& destination, py::object callback) {
        const Progress report = progress(std::move(callback));
        const py::gil_scoped_release unlocked;
        return export_llama(checkpoint, destination, report);
      },
      "checkpoint"_a, "destination"_a, "progress"_a = py::none(),
      "Writes a model of ours as a plain Llama of the same function.");
}

}  // namespace scalevec::python
