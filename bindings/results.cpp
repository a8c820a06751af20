// Mirrors core/store/results_file.h.
#include <scalevec/core/store/results_file.h>

#include <scalevec/core/checkpoint/checkpoint.h>
#include <scalevec/core/dtype.h>
#include <scalevec/core/scale_map.h>

#include "module.h"

namespace scalevec::python {
namespace {

// A column's values, and what they are made of.
struct Held {
  std::string name, units;
  hdf5::Values values;
};

hdf5::View view_of(const hdf5::Values& values) {
  return std::visit([](const auto& list) { return hdf5::View(std::span(list)); }, values);
}

template <class Element>
std::vector<Element> elements_of(const at::Tensor& tensor) {
  const at::Tensor plain = tensor.cpu().contiguous();
  const auto* first = static_cast<const Element*>(plain.const_data_ptr());
  return {first, first + plain.numel()};
}

// A torch tensor (float64, float32, int64, uint8), or a list of text.
hdf5::Values values_of(const py::object& object) {
  if (!is_tensor(object.ptr())) return object.cast<std::vector<std::string>>();
  const at::Tensor& tensor = unwrap(object.ptr());
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return elements_of<double>(tensor);
    case at::kFloat:
      return elements_of<float>(tensor);
    case at::kLong:
      return elements_of<std::int64_t>(tensor);
    case at::kByte:
      return elements_of<std::uint8_t>(tensor);
    default:
      throw py::type_error("a column holds float64, float32, int64, uint8 or text");
  }
}

ResultsFile::Attributes attributes_of(const py::dict& given) {
  ResultsFile::Attributes out;
  for (const auto& [name, value] : given) {
    const auto key = name.cast<std::string>();
    if (py::isinstance<py::str>(value)) {
      out.emplace_back(key, value.cast<std::string>());
    } else if (py::isinstance<py::int_>(value)) {  // bool too
      out.emplace_back(key, value.cast<std::int64_t>());
    } else {
      out.emplace_back(key, value.cast<double>());
    }
  }
  return out;
}

}  // namespace

void bind_results(py::module_& m) {
  const auto release = py::call_guard<py::gil_scoped_release>();
  py::class_<ResultsFile>(m, "ResultsFile",
                          "A results file (HDF5): stands under its name whole, or not at all.")
      .def(
          py::init([](const std::filesystem::path& path, const std::string& command, const std::string& torch,
                      const std::string& device, std::int64_t seed, const py::dict& more, bool overwrite) {
            return std::make_unique<ResultsFile>(path,
                                                 ResultsFile::Header{.command = command,
                                                                     .torch = torch,
                                                                     .device = device,
                                                                     .seed = seed,
                                                                     .more = attributes_of(more)},
                                                 overwrite ? Replace::files : Replace::no);
          }),
          "path"_a, py::kw_only(), "command"_a, "torch"_a, "device"_a, "seed"_a, "more"_a = py::dict(),
          "overwrite"_a = false)
      .def(
          "model",
          [](ResultsFile& file, const Checkpoint& checkpoint, const ScaleMap& scales) {
            std::vector<std::string> digests;
            for (std::size_t i = 0; i < scales.size(); ++i) digests.push_back(scales.base_digest(i));
            file.model(checkpoint.family(), checkpoint.path().filename().string(), checkpoint.config_json(),
                       digests);
          },
          "checkpoint"_a, "scales"_a, release)
      .def(
          "sites",
          [](ResultsFile& file, const ScaleMap& scales) {
            std::vector<double> stored, effective;
            bool narrow = true;
            for (const ScaleVector& vector : scales) {
              narrow = narrow && vector.dtype() != DType::f64;
              const std::vector<double> one = decode(vector.dtype(), vector.bytes());
              for (const double value : one) {
                stored.push_back(value);
                effective.push_back(value + vector.offset());
              }
            }
            if (narrow) {
              const std::vector<float> floats(stored.begin(), stored.end());
              file.sites(scales.sites(), std::span(floats), effective);
            } else {
              file.sites(scales.sites(), std::span<const double>(stored), effective);
            }
          },
          "scales"_a, release, "/sites and /scales, of the vectors as they are now.")
      .def(
          "channels",
          [](ResultsFile& file, const std::string& name, const py::object& values, const std::string& units) {
            const hdf5::Values held = values_of(values);
            file.channels({name, view_of(held), units});
          },
          "name"_a, "values"_a, "units"_a = "", "/scales/<name>: one more value per channel.")
      .def(
          "table",
          [](ResultsFile& file, const std::string& group, const std::string& dimension,
             const py::dict& columns, const py::dict& units, const py::dict& attributes) {
            std::vector<Held> held;
            for (const auto& [name, values] : columns) {
              const auto key = name.cast<std::string>();
              held.push_back({key, units.contains(name) ? units[name].cast<std::string>() : "",
                              values_of(py::reinterpret_borrow<py::object>(values))});
            }
            std::vector<Column> views;
            for (const Held& column : held)
              views.push_back({column.name, view_of(column.values), column.units});
            file.table(group, dimension, views, attributes_of(attributes));
          },
          "group"_a, "dimension"_a, "columns"_a, py::kw_only(), "units"_a = py::dict(),
          "attributes"_a = py::dict())
      .def("finish", &ResultsFile::finish, release, "Writes the file under its name. Once, last.");
}

}  // namespace scalevec::python
