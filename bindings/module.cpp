#include "module.h"

#include <scalevec/core/ops.h>
#include <scalevec/core/torch_version.h>

namespace {

// The layout that tensor_caster.cpp takes for granted.
void check_layout() {
  const at::Tensor tensor = scalevec::ops::empty({0}, {});
  const auto object = py::reinterpret_steal<py::object>(scalevec::python::wrap(tensor));
  if (!scalevec::python::is_tensor(object.ptr()) || !scalevec::python::unwrap(object.ptr()).is_same(tensor)) {
    throw py::import_error(
        "scalevec was built for another torch: build it against the one that is installed");
  }
}

}  // namespace

PYBIND11_MODULE(_scalevec, m) {
  using namespace scalevec::python;
  m.doc() = "The C++ library of scalevec, header by header. Import scalevec instead.";
  m.attr("version") = SCALEVEC_VERSION;
  m.attr("built_for_torch") = SCALEVEC_TORCH_VERSION;
  scalevec::set_torch_version(py::str(py::module_::import("torch").attr("__version__")));
  check_layout();
  bind_errors(m);
  bind_sites(m);
  bind_checkpoint(m);
  bind_scale_map(m);
  bind_transformer(m);
  bind_hooks(m);
  bind_edit(m);
  bind_transaction(m);
  bind_export(m);
  bind_measure(m);
  bind_generate(m);
  bind_screen(m);
  bind_results(m);
  bind_trace_file(m);
  bind_corpus(m);
  bind_own_model(m);
  bind_train(m);
  bind_tracer(m);
}
