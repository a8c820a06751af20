// Mirrors core/store/results_file.h and edits/record.h.
#include <scalevec/edits/record.h>

#include "module.h"

namespace scalevec::python {

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
