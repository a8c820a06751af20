#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <scalevec/core/progress.h>

#include "tensor_caster.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace scalevec {
class SiteProvider;
}

namespace scalevec::python {

/// Python's callback(what, done, total), or None, as a Progress for work that runs without the interpreter
/// lock. Takes the lock at most 20 times a second, and there lets Ctrl-C stop the work, with or without a
/// callback.
Progress progress(py::object callback);

/// Lets Ctrl-C stop a forward between two norm sites for as long as it lives.
class Interruptible {
 public:
  explicit Interruptible(SiteProvider& model);
  ~Interruptible();
  Interruptible(const Interruptible&) = delete;
  Interruptible& operator=(const Interruptible&) = delete;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

void bind_errors(py::module_& m);
void bind_sites(py::module_& m);
void bind_checkpoint(py::module_& m);
void bind_scale_map(py::module_& m);
void bind_transformer(py::module_& m);
void bind_hooks(py::module_& m);
void bind_edit(py::module_& m);
void bind_transaction(py::module_& m);
void bind_export(py::module_& m);
void bind_measure(py::module_& m);
void bind_generate(py::module_& m);
void bind_screen(py::module_& m);
void bind_results(py::module_& m);
void bind_trace_file(py::module_& m);
void bind_corpus(py::module_& m);
void bind_own_model(py::module_& m);
void bind_train(py::module_& m);
void bind_tracer(py::module_& m);

}  // namespace scalevec::python
