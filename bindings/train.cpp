// Mirrors trainer/{experiment,training,run}.h.
#include <array>
#include <optional>
#include <string>

#include <scalevec/trainer/run.h>

#include "module.h"

namespace scalevec::python {
namespace {

py::dict as_dict(const RunEvent& event) {
  const StepReport& report = event.step.report;
  return py::dict("step"_a = event.step.step, "loss"_a = event.step.loss, "balance"_a = event.step.balance,
                  "validation_loss"_a = event.validation_loss, "learning_rate"_a = report.learning_rate,
                  "gradient_norm"_a = report.gradient_norm, "lost"_a = report.lost,
                  "entries"_a = report.entries, "tokens_per_second"_a = event.tokens_per_second,
                  "seconds_left"_a = event.seconds_left);
}

py::dict group_dict(const GroupSettings& settings) {
  return py::dict("name"_a = settings.group.name, "slots"_a = settings.group.slots,
                  "rule"_a = rule_name(settings.rule), "rate"_a = settings.rate,
                  "weight_decay"_a = settings.weight_decay);
}

std::unique_ptr<Training> make_training(const Experiment& experiment, const std::string& device) {
  return std::make_unique<Training>(experiment, corpus_of(experiment),
                                    Training::Options{.device = at::Device(device), .ranks = nullptr});
}

}  // namespace

void bind_train(py::module_& m) {
  const auto release = py::call_guard<py::gil_scoped_release>();

  py::class_<Experiment>(m, "Experiment", "A training run as data: what an experiment file says.")
      .def_static("parse", &Experiment::parse, "toml"_a, "file"_a = "experiment")
      .def_static("read", &Experiment::read, "file"_a)
      .def("toml", &Experiment::toml, "TOML with every field.")
      .def(
          "first_difference",
          [](const Experiment& left, const Experiment& right) -> std::optional<std::array<std::string, 3>> {
            const auto found = first_difference(left, right);
            if (!found) return std::nullopt;
            return std::array{found->key, found->left, found->right};
          },
          "other"_a, "(field, value here, value there) of the first that differs but where the corpus lies.")
      .def_readwrite("name", &Experiment::name)
      .def_readwrite("seed", &Experiment::seed)
      .def_property_readonly("steps", [](const Experiment& e) { return e.train.steps; })
      .def_property_readonly("trace_every", [](const Experiment& e) { return e.trace.every; });
  m.def(
      "experiment_fields",
      [] {
        std::vector<std::array<std::string, 4>> rows;
        for (const ExperimentField& f : experiment_fields())
          rows.push_back({f.key, f.type, f.fallback, f.meaning});
        return rows;
      },
      "(key, type, default, meaning) of every field of an experiment file.");

  py::class_<Training>(m, "Training", "A model in training: tensors, optimizer, data and position.")
      .def(py::init(&make_training), "experiment"_a, "device"_a = "cpu", release)
      .def(
          "advance",
          [](Training& t) {
            RunEvent event;
            {
              const py::gil_scoped_release unlocked;
              event.step = t.advance();
            }
            return as_dict(event);
          },
          "One optimizer step.")
      .def("validate", &Training::validate, release,
           "Mean loss of the validation windows, nats per prediction.")
      .def("next_windows", &Training::next_windows, "windows"_a,
           "Ids of the first windows of the step to come, (windows, context + 1).")
      .def_property_readonly("steps_done", &Training::steps_done)
      .def_property_readonly(
          "model", [](Training& t) -> Transformer& { return t.model(); },
          py::return_value_policy::reference_internal)
      .def_property_readonly(
          "groups",
          [](const Training& t) {
            py::list out;
            for (const GroupSettings& settings : t.optimizer().groups()) out.append(group_dict(settings));
            return out;
          },
          "Named groups: slots, rule, factor of the learning rate, weight decay.")
      .def_property_readonly(
          "tensors", [](const Training& t) { return t.optimizer().tensors(); },
          "Masters and optimizer state by name: shared, do not write.")
      .def_property_readonly(
          "gradients",
          [](const Training& t) {
            std::map<std::string, at::Tensor> out;
            for (const Parameter& p : t.optimizer().parameters()) out[p.slot] = p.gradient;
            return out;
          },
          "Of the last step, clipped, by slot: shared.")
      .def("save", &Training::save, "folder"_a, release)
      .def("restore", &Training::restore, "folder"_a, release)
      .def("save_model", &Training::save_model, "folder"_a, release);

  m.def(
      "run_training",
      [](Training& training, const std::filesystem::path& folder, bool resume, const std::string& command,
         const py::function& on_step, py::object callback, std::optional<py::dict> given) {
        RunResult result;
        const Progress report = progress(std::move(callback));
        py::dict so_far = given.value_or(py::dict());
        const auto fill = [&] {
          py::list faults;
          for (const Tracer::GaugeFault& f : result.gauge_faults) {
            faults.append(py::dict("address"_a = f.address, "identity"_a = f.identity, "step"_a = f.step,
                                   "channel"_a = f.channel, "residual"_a = f.residual));
          }
          so_far["steps"] = result.steps;
          so_far["gauge_faults"] = faults;
          so_far["validation_loss"] = result.validation_loss;
          so_far["finished"] = result.finished;
          so_far["log_error"] = result.log_error;
        };
        const auto told = [&](const RunEvent& event) {
          const py::gil_scoped_acquire lock;
          return on_step(as_dict(event)).cast<bool>();
        };
        try {
          const py::gil_scoped_release unlocked;
          run(training, {.folder = folder,
                         .resume = resume,
                         .command = command,
                         .on_step = told,
                         .progress = report,
                         .so_far = &result});
        } catch (...) {
          fill();
          throw;
        }
        fill();
        return so_far;
      },
      "training"_a, "folder"_a, py::kw_only(), "resume"_a, "command"_a, "on_step"_a,
      "progress"_a = py::none(), "so_far"_a = py::none(),
      "Trains in a folder until done, or until on_step(event) is true.");
}

}  // namespace scalevec::python
