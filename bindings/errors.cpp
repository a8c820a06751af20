#include <c10/util/Exception.h>

#include <scalevec/core/error.h>

#include "module.h"

namespace scalevec::python {
namespace {

void raise(const Error& error) {
  const ErrorFields& fields = error.fields();
  const py::object made =
      py::module_::import("scalevec.errors")
          .attr("make_error")(std::string(code_name(error.code())), error.message(), "file"_a = fields.file,
                              "tensor"_a = fields.tensor, "key"_a = fields.key, "offset"_a = fields.offset,
                              "index"_a = fields.index, "expected"_a = fields.expected,
                              "found"_a = fields.found);
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
