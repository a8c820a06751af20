#include <c10/util/Exception.h>

#include <scalevec/core/error.h>

#include "module.h"

namespace scalevec::python {
namespace {

// Names of files need be no UTF-8: as Python itself has them.
py::str text(const std::string& bytes) {
  return py::reinterpret_steal<py::str>(
      PyUnicode_DecodeUTF8(bytes.data(), static_cast<Py_ssize_t>(bytes.size()), "surrogateescape"));
}

void raise(const Error& error) {
  const ErrorFields& fields = error.fields();
  const py::object made =
      py::module_::import("scalevec.errors")
          .attr("make_error")(
              std::string(code_name(error.code())), text(error.message()), "file"_a = text(fields.file),
              "tensor"_a = text(fields.tensor), "key"_a = text(fields.key), "offset"_a = fields.offset,
              "index"_a = fields.index, "expected"_a = text(fields.expected), "found"_a = text(fields.found));
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(made.ptr())), made.ptr());
}

}  // namespace

void bind_errors(py::module_&) {
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const Error& error) {
      raise(error);
    } catch (const c10::Error& error) {
      PyErr_SetString(PyExc_RuntimeError, error.what_without_backtrace());
    }
  });
}

}  // namespace scalevec::python
