#pragma once

#include <pybind11/numpy.h>

#include <scalevec/analysis/windows.h>

#include "module.h"

namespace scalevec::python {

/// Token ids as Python gives them, an array for each document; TypeError for what is no int64 without loss.
using IdArrays = std::vector<py::array_t<std::int64_t, py::array::c_style>>;

inline Documents documents_of(const IdArrays& arrays) {
  Documents out;
  for (const auto& ids : arrays) out.emplace_back(ids.data(), ids.data() + ids.size());
  return out;
}

}  // namespace scalevec::python
