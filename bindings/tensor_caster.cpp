#include "tensor_caster.h"

#include <ATen/core/TensorBase.h>

// What torch/csrc/autograd/python_variable.h declares. That header costs 640 MB to compile, and drags in all
// of autograd; `check_layout` in module.cpp proves these three at import.
extern PyObject* THPVariableClass;
PyObject* THPVariable_Wrap(const at::TensorBase& tensor);
struct THPVariable {
  PyObject_HEAD at::Tensor cdata;
};

namespace scalevec::python {

bool is_tensor(PyObject* object) {
  const int found = PyObject_IsInstance(object, THPVariableClass);
  if (found < 0) throw pybind11::error_already_set();
  return found == 1;
}

const at::Tensor& unwrap(PyObject* object) { return reinterpret_cast<THPVariable*>(object)->cdata; }

PyObject* wrap(const at::Tensor& tensor) {
  PyObject* object = THPVariable_Wrap(tensor);
  if (object == nullptr) throw pybind11::error_already_set();
  return object;
}

}  // namespace scalevec::python
