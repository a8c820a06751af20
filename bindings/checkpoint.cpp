// Mirrors core/checkpoint/checkpoint.h.
#include <optional>
#include <tuple>

#include <scalevec/core/checkpoint/checkpoint.h>
#include <scalevec/core/checkpoint/hf_folder.h>

#include "module.h"

namespace scalevec::python {

void bind_checkpoint(py::module_& m) {
  const auto release = py::call_guard<py::gil_scoped_release>();
  py::class_<Checkpoint, std::shared_ptr<Checkpoint>>(
      m, "Checkpoint", "A model on disk: headers read and checked, of the data nothing until asked.")
      .def(py::init([](const std::filesystem::path& path, bool allow_links) {
             const py::gil_scoped_release unlocked;
             return std::make_shared<Checkpoint>(Checkpoint::open(path, {.allow_links = allow_links}));
           }),
           "path"_a, py::kw_only(), "allow_links"_a = false,
           "A GGUF file, a .safetensors file with config.json beside it, or a Hugging Face folder.")
      .def_property_readonly("path", &Checkpoint::path)
      .def_property_readonly(
          "container",
          [](const Checkpoint& checkpoint) {
            return checkpoint.container() == Container::gguf ? "gguf" : "safetensors";
          },
          "'gguf' or 'safetensors'.")
      .def_property_readonly("family", &Checkpoint::family)
      .def_property_readonly("vocabulary",
                             [](const Checkpoint& checkpoint) { return checkpoint.spec().vocabulary; })
      .def_property_readonly(
          "context", [](const Checkpoint& checkpoint) { return checkpoint.spec().context; },
          "Positions that the model was made for.")
      .def_property_readonly("layers",
                             [](const Checkpoint& checkpoint) { return checkpoint.spec().layers.size(); })
      .def_property_readonly("width", [](const Checkpoint& checkpoint) { return checkpoint.spec().width; })
      .def_property_readonly("files", &Checkpoint::files, "Every file that holds tensors, in shard order.")
      .def_property_readonly(
          "parameters",
          [](const Checkpoint& checkpoint) {
            std::uint64_t sum = 0;
            for (const TensorInfo& tensor : checkpoint.tensors()) sum += tensor.elements();
            return sum;
          },
          "Elements of all tensors in the files.")
      .def_property_readonly("sites", &Checkpoint::sites,
                             "Sites whose vectors the file holds, forward order.")
      .def("effective", &Checkpoint::effective, "site"_a, release,
           "Effective values of a site's vector, float64.")
      .def("digest", &Checkpoint::digest, "site"_a, release, "Identity of a site's vector: 'sha256:...'.")
      .def(
          "place",
          [](const Checkpoint& checkpoint, const Site& site) {
            const TensorInfo& tensor = checkpoint.tensor(site.native);
            return std::tuple(checkpoint.files().at(tensor.file), tensor.begin, tensor.bytes);
          },
          "site"_a, "Where a site's vector lies: the file, its first byte there, and how many bytes.")
      .def("config_json", &Checkpoint::config_json)
      .def("tokenizer_json", &Checkpoint::tokenizer_json, release,
           "GGUF metadata for the tokenizer as JSON text; 'null' for other containers.")
      .def_property_readonly("warnings", &Checkpoint::warnings);
  m.def(
      "read_beside",
      [](const std::filesystem::path& folder, std::string_view name, std::uint64_t most, bool allow_links) {
        const std::optional<std::string> text = read_beside(folder, name, most, allow_links);
        return text ? std::optional(py::bytes(*text)) : std::nullopt;
      },
      "folder"_a, "name"_a, py::kw_only(), "most"_a, "allow_links"_a = false,
      "The bytes of one more file of a model's folder, opened as its shards are; None if there is none.");
}

}  // namespace scalevec::python
