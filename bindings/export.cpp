// Mirrors edits/export.h.
#include <fmt/format.h>

#include <scalevec/edits/export.h>

#include "module.h"

namespace scalevec::python {
namespace {

using Write = ExportReport (*)(const Checkpoint&, const Edit&, const std::filesystem::path&, const Progress&);

template <Write write>
ExportReport run(const Checkpoint& checkpoint, const Edit& edit, const std::filesystem::path& destination,
                 py::object callback) {
  const Progress report = progress(std::move(callback));
  const py::gil_scoped_release unlocked;
  return write(checkpoint, edit, destination, report);
}

}  // namespace

void bind_export(py::module_& m) {
  py::class_<ExportReport>(m, "ExportReport", "What was written.")
      .def_readonly("files", &ExportReport::files, "Made in the destination.")
      .def_readonly("bytes", &ExportReport::bytes, "In them.")
      .def_readonly("vectors", &ExportReport::vectors, "Edited.")
      .def_readonly("bytes_changed", &ExportReport::bytes_changed, "That differ from the source.")
      .def_readonly("warnings", &ExportReport::warnings)
      .def("__repr__", [](const ExportReport& report) {
        return fmt::format("ExportReport({} files, {} bytes, of which {} differ, in {} vectors)",
                           report.files, report.bytes, report.bytes_changed, report.vectors);
      });
  m.def("export_edited", &run<export_edited>, "checkpoint"_a, "edit"_a, "destination"_a,
        "progress"_a = py::none(), "Writes a copy of the model in which only the edited bytes differ.");
  m.def("revert_export", &run<revert_export>, "exported"_a, "edit"_a, "destination"_a,
        "progress"_a = py::none(), "Writes a copy of an exported model with the old bytes put back.");
}

}  // namespace scalevec::python
