// Mirrors core/store/results_file.h and edits/record.h.
#include <map>
#include <tuple>
#include <variant>

#include <scalevec/edits/record.h>

#include "module.h"

namespace scalevec::python {

namespace {
using Attributes = std::map<std::string, ResultsFile::Attribute>;
using Values = std::variant<std::vector<std::string>, std::vector<std::int64_t>, std::vector<double>>;
}  // namespace

void bind_results(py::module_& m) {
  const auto release = py::call_guard<py::gil_scoped_release>();
  py::class_<ResultsFile>(m, "ResultsFile",
                          "A results file (HDF5): stands under its name whole, or not at all.")
      .def(py::init([](const std::filesystem::path& path, const Measurement& made, const std::string& command,
                       bool overwrite) {
             return std::make_unique<ResultsFile>(path, results_header(made, command),
                                                  overwrite ? Replace::files : Replace::no);
           }),
           "path"_a, "made"_a, py::kw_only(), "command"_a, "overwrite"_a = false, release,
           "Refuses a path that it could not write, before anything is recorded.")
      .def(py::init([](const std::filesystem::path& path, const std::string& command, std::string torch,
                       std::string device, std::int64_t seed, const Attributes& more, bool overwrite) {
             return std::make_unique<ResultsFile>(path,
                                                  ResultsFile::Header{.command = command,
                                                                      .torch = std::move(torch),
                                                                      .device = std::move(device),
                                                                      .seed = seed,
                                                                      .more = {more.begin(), more.end()}},
                                                  overwrite ? Replace::files : Replace::no);
           }),
           "path"_a, py::kw_only(), "command"_a, "torch"_a, "device"_a, "seed"_a, "more"_a = Attributes(),
           "overwrite"_a = false, release, "The same for what is no measurement.")
      .def(
          "table",
          [](ResultsFile& file, std::string_view group, const std::string& dimension,
             const std::vector<std::tuple<std::string, Values, std::string>>& columns,
             const Attributes& more) {
            std::vector<Column> views;
            for (const auto& [name, values, units] : columns) {
              views.push_back({name,
                               std::visit([](const auto& v) -> hdf5::View { return std::span(v); }, values),
                               units});
            }
            file.table(group, dimension, views, {more.begin(), more.end()});
          },
          "group"_a, "dimension"_a, "columns"_a, "attributes"_a = Attributes(), release,
          "A group of columns (name, values, units) over one dimension.")
      .def("finish", &ResultsFile::finish, release, "Writes the file under its name. Once, last.");

  m.def("record_model", &record_model, "file"_a, "checkpoint"_a, "scales"_a, release, "/model.");
  m.def("record_sites", &record_sites, "file"_a, "scales"_a, release,
        "/sites and /scales, of the vectors as they are now.");
  m.def("record_edit", &record_edit, "file"_a, "edit"_a, release, "/edits.");
  m.def("record_measurement", &record_measurement, "file"_a, "made"_a, "group"_a = "behaviour/measure",
        release, "A table of figures, and its per_token where the measurement has values per token.");
  m.def(
      "record_sweep",
      [](ResultsFile& file, const ScaleMap& scales, const std::vector<Trial>& trials,
         const std::vector<Change>& changes, const std::vector<std::string>& methods,
         std::string_view group) { record_sweep(file, scales, trials, changes, methods, group); },
      "file"_a, "scales"_a, "trials"_a, "changes"_a, "methods"_a, "group"_a = "sweep", release,
      "One row per trial: its Change, and how that was made.");
  m.def("record_saliency", &record_saliency, "file"_a, "saliency"_a, release,
        "/scales/gradient and /scales/ablation, after the sites.");
}

}  // namespace scalevec::python
