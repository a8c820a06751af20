#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>

namespace scalevec::python {

/// Whether `object` is a torch.Tensor (or a subclass, as Parameter).
bool is_tensor(PyObject* object);
/// The tensor that a torch.Tensor holds. Shares storage.
const at::Tensor& unwrap(PyObject* object);
/// A new reference to the torch.Tensor of `tensor`: the one that it has already, where it has one.
PyObject* wrap(const at::Tensor& tensor);

}  // namespace scalevec::python

namespace pybind11::detail {

/// torch.Tensor <-> at::Tensor; None <-> an undefined tensor.
template <>
struct type_caster<at::Tensor> {
  PYBIND11_TYPE_CASTER(at::Tensor, const_name("torch.Tensor"));

  bool load(handle source, bool) {
    if (source.is_none()) return true;
    if (!scalevec::python::is_tensor(source.ptr())) return false;
    value = scalevec::python::unwrap(source.ptr());
    return true;
  }

  static handle cast(const at::Tensor& source, return_value_policy, handle) {
    if (!source.defined()) return none().release();
    return scalevec::python::wrap(source);
  }
};

}  // namespace pybind11::detail
