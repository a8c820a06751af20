// Mirrors edits/edit.h, edits/edit_file.h and edits/describe.h.
#include <scalevec/edits/describe.h>
#include <scalevec/edits/edit.h>
#include <scalevec/edits/edit_file.h>

#include "module.h"

namespace scalevec::python {
namespace {

py::bytes bytes_of(const std::vector<std::byte>& bytes) {
  return py::bytes(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

py::object python_of(const Argument& argument) {
  if (const auto* number = std::get_if<double>(&argument)) return py::float_(*number);
  if (const auto* word = std::get_if<std::string>(&argument)) return py::str(*word);
  if (const auto* numbers = std::get_if<std::vector<double>>(&argument)) return py::cast(*numbers);
  return bytes_of(std::get<std::vector<std::byte>>(argument));
}

Replace replace_of(bool overwrite) { return overwrite ? Replace::files : Replace::no; }

}  // namespace

void bind_edit(py::module_& m) {
  const auto release = py::call_guard<py::gil_scoped_release>();
  py::class_<Operation>(m, "Operation", "A verb, where, and with what; then what it did when it was made.")
      .def_readonly("verb", &Operation::verb)
      .def_readonly("selector", &Operation::selector)
      .def_property_readonly("arguments",
                             [](const Operation& operation) {
                               py::dict arguments;
                               for (const auto& [name, value] : operation.arguments) {
                                 arguments[py::str(name)] = python_of(value);
                               }
                               return arguments;
                             })
      .def_readonly("selected", &Operation::selected, "Channels that the selector named.")
      .def_readonly("changed", &Operation::changed, "Channels whose stored bits it changed.")
      .def_readonly("lost", &Operation::lost, "Channels where the stored dtype could not hold the change.")
      .def("__repr__", [](const Operation& operation) {
        return "Operation(" + operation.verb + " on " + operation.selector + ", " +
               std::to_string(operation.changed) + " of " + std::to_string(operation.selected) +
               " channels changed)";
      });

  py::class_<EditedVector>(m, "EditedVector", "What an edit does to one vector, with all that takes it back.")
      .def_readonly("address", &EditedVector::address)
      .def_readonly("native", &EditedVector::native)
      .def_property_readonly("dtype", [](const EditedVector& vector) { return dtype_name(vector.dtype); })
      .def_readonly("offset", &EditedVector::offset)
      .def_readonly("width", &EditedVector::width)
      .def_readonly("base", &EditedVector::base, "Digest before the first operation.")
      .def_readonly("after", &EditedVector::after, "Digest after the last.")
      .def_readonly("channels", &EditedVector::channels, "Those whose stored bits differ, ascending.")
      .def_property_readonly(
          "old", [](const EditedVector& vector) { return bytes_of(vector.old); },
          "Their stored bytes in the base, little-endian.")
      .def("__repr__", [](const EditedVector& vector) {
        return "EditedVector('" + vector.address + "', " + std::to_string(vector.channels.size()) +
               " channels)";
      });

  py::class_<Edit, std::shared_ptr<Edit>>(
      m, "Edit", "What was done to a model's scale vectors, and how to undo it: a value, good for a file.")
      .def_property_readonly("family", [](const Edit& edit) { return edit.source.family; })
      .def_property_readonly(
          "source", [](const Edit& edit) { return edit.source.file; }, "File it was made on.")
      .def_readonly("tool", &Edit::tool)
      .def_readwrite("note", &Edit::note)
      .def_readonly("operations", &Edit::operations)
      .def_readonly("vectors", &Edit::vectors, "By address; those whose bits did not change are absent.")
      .def("describe", py::overload_cast<const Edit&, bool>(&scalevec::describe), py::kw_only(),
           "short"_a = false, "What it does, for a reviewer. short: the operations only.")
      .def("text", &edit_text, release, "The text of its file: equal edits are equal bytes.")
      .def(
          "to_dict",
          [](const Edit& edit) { return py::module_::import("json").attr("loads")(edit_text(edit)); },
          "The content of its file.")
      .def(
          "save",
          [](const Edit& edit, const std::filesystem::path& path, bool overwrite) {
            write_edit(edit, path, replace_of(overwrite));
          },
          "path"_a, py::kw_only(), "overwrite"_a = false, release,
          "Writes the edit file, whole or not at all. FileError if it exists, unless overwrite.")
      .def("invert", &invert, release, "The edit that takes this one back.")
      .def("then", &compose, "second"_a, release,
           "This edit, then `second`. InvalidError (E_BUNDLE) unless it begins as this one ends.")
      .def("__eq__", [](const Edit& a, const Edit& b) { return edit_text(a) == edit_text(b); })
      .def("__repr__", [](const Edit& edit) {
        std::size_t channels = 0;
        for (const EditedVector& vector : edit.vectors) channels += vector.channels.size();
        return "Edit(" + std::to_string(edit.operations.size()) + " operations, " +
               std::to_string(edit.vectors.size()) + " vectors, " + std::to_string(channels) + " channels)";
      });

  m.def("read_edit", &read_edit, "path"_a, release, "Reads an edit file.");
  m.def("parse_edit", &parse_edit, "text"_a, "source"_a = "text", release,
        "The edit of an edit file's text.");
}

}  // namespace scalevec::python
