#pragma once

#include <filesystem>
#include <map>
#include <set>
#include <string>

#include <scalevec/analysis/tracer.h>
#include <scalevec/hooks/watch.h>
#include <scalevec/trainer/training.h>

namespace scalevec {

/// The scale vectors of a model in training and the maps beside them, as the optimizer holds them. The final
/// norm of a model with a tied head is traced without its reader, whose gradient is the embedding's as well;
/// so is what stands behind a mixture.
std::vector<TracedVector> traced_vectors(const ModelSpec& spec, const Optimizer& optimizer);
/// The same of tensors by canonical slot.
std::vector<TracedVector> traced_vectors(const ModelSpec& spec,
                                         const std::map<std::string, at::Tensor>& tensors);

/// A Tracer on a Training. Watches until it goes; the weights are the same bits with and without it.
class TrainingTrace final : public StepWatcher {
 public:
  /// What is traced, and how often, is the experiment's. header: run and model_config; the rest is the
  /// tracer's. The training must outlive it. E_VALUE if the experiment asks for no trace. `progress` counts
  /// the sites of rows of curvature, which take long; what it throws ends the step before anything has moved.
  TrainingTrace(Training& training, std::filesystem::path path, TraceHeader header,
                TraceWriter::Options writer = {}, Progress progress = {});
  ~TrainingTrace() override;

  void before(const Optimizer& optimizer, double learning_rate) override;
  void after(const Optimizer& optimizer, const StepReport& report) override;
  bool wants_sums(const Parameter& parameter) const override;
  std::map<std::string, at::Tensor> state() const override { return tracer_.state(); }
  void restore(const std::map<std::string, at::Tensor>& state) override { tracer_.restore(state); }
  Tracer& tracer() { return tracer_; }

 private:
  void note_curvature();
  UpdateView view(const Optimizer& optimizer, double learning_rate, double steps) const;

  Training& training_;
  Progress progress_;
  Tracer tracer_;
  Watch forward_;
  std::set<const void*> read_;  // masters of maps that read a traced norm
};

}  // namespace scalevec
