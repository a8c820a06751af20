// Mirrors edits/transaction.h and edits/file_workspace.h.
#include <scalevec/edits/describe.h>
#include <scalevec/edits/file_workspace.h>
#include <scalevec/edits/transaction.h>

#include "module.h"

namespace scalevec::python {
namespace {

Allow allow_of(bool no_effect, bool non_finite, bool tied) {
  return {.no_effect = no_effect, .non_finite = non_finite, .tied = tied};
}

}  // namespace

void bind_transaction(py::module_& m) {
  const auto release = py::call_guard<py::gil_scoped_release>();
  py::class_<OperationReport>(m, "OperationReport", "What one call did: nothing is dropped silently.")
      .def_property_readonly("vectors", [](const OperationReport& report) { return report.vectors.size(); })
      .def_property_readonly("addresses",
                             [](const OperationReport& report) {
                               std::vector<std::string> out;
                               for (const VectorReport& vector : report.vectors)
                                 out.push_back(vector.address);
                               return out;
                             })
      .def_property_readonly("selected",
                             [](const OperationReport& report) { return report.total().selected; })
      .def_property_readonly("changed", [](const OperationReport& report) { return report.total().changed; })
      .def_property_readonly(
          "lost", [](const OperationReport& report) { return report.total().lost; },
          "Channels where another value was asked for, but the stored dtype keeps the same bits.")
      .def_property_readonly(
          "largest_rounding", [](const OperationReport& report) { return report.total().largest_rounding; },
          "|asked - stored|, largest, effective.")
      .def("__repr__", [](const OperationReport& report) { return scalevec::describe(report); });

  py::class_<Journal, std::shared_ptr<Journal>>(m, "Journal",
                                                "What was done to the scale vectors of one model.")
      .def(py::init([](const ScaleMap& map, const Checkpoint* checkpoint) {
             return std::make_shared<Journal>(map, checkpoint ? source_of(*checkpoint) : EditSource{});
           }),
           "map"_a, "checkpoint"_a = py::none())
      .def("edit", &Journal::edit, "note"_a = "", release)
      .def("check", py::overload_cast<>(&Journal::check, py::const_), release,
           "InvalidError (E_STATE) if somebody else wrote a vector.")
      .def("edited", &Journal::edited, release)
      .def("reset", &Journal::reset, release, "Puts the base back everywhere, and forgets.");

  py::class_<Transaction>(m, "Transaction", "Edits that are taken back at its end, unless committed.")
      .def(py::init<Journal&>(), "journal"_a, py::keep_alive<1, 2>())
      .def(
          "rescale",
          [](Transaction& transaction, const std::string& selector, double factor, bool no_effect,
             bool non_finite, bool tied) {
            return transaction.rescale(selector, factor, allow_of(no_effect, non_finite, tied));
          },
          "selector"_a, "factor"_a, py::kw_only(), "allow_no_effect"_a = false, "allow_non_finite"_a = false,
          "allow_tied"_a = false, release)
      .def(
          "set",
          [](Transaction& transaction, const std::string& selector,
             std::variant<double, std::vector<double>> value, bool no_effect, bool non_finite, bool tied) {
            const Allow allow = allow_of(no_effect, non_finite, tied);
            if (const auto* one = std::get_if<double>(&value)) return transaction.set(selector, *one, allow);
            return transaction.set(selector, std::get<std::vector<double>>(std::move(value)), allow);
          },
          "selector"_a, "value"_a, py::kw_only(), "allow_no_effect"_a = false, "allow_non_finite"_a = false,
          "allow_tied"_a = false, release)
      .def(
          "ablate",
          [](Transaction& transaction, const std::string& selector, const std::string& to, bool no_effect,
             bool non_finite,
             bool tied) { return transaction.ablate(selector, to, allow_of(no_effect, non_finite, tied)); },
          "selector"_a, "to"_a = "zero", py::kw_only(), "allow_no_effect"_a = false,
          "allow_non_finite"_a = false, "allow_tied"_a = false, release)
      .def("apply", &Transaction::apply, "edit"_a, release)
      .def("undo", &Transaction::undo, "edit"_a, release)
      .def("edit", &Transaction::edit, "note"_a = "", release)
      .def("commit", &Transaction::commit, release)
      .def("roll_back", &Transaction::roll_back, release)
      .def_property_readonly("is_open", &Transaction::is_open);

  m.def(
      "rebase",
      [](const Edit& edit, const Checkpoint& target) {
        Rebased made = rebase(edit, target);
        return std::pair(std::move(made.edit), made.largest_difference);
      },
      "edit"_a, "target"_a, release,
      "(edit, largest difference of effective values): the edit made anew for another container of the same "
      "model.");
}

}  // namespace scalevec::python
