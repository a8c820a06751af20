#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include <scalevec/analysis/tracer.h>
#include <scalevec/trainer/training.h>

namespace scalevec {

/// The scale vectors of a model in training and the maps beside them, as the optimizer holds them. The final
/// norm of a model with a tied head is traced without its reader, whose gradient is the embedding's as well;
/// so is what stands behind a mixture.
std::vector<TracedVector> traced_vectors(const ModelSpec& spec, const Optimizer& optimizer);

/// A Tracer on a Training. Watches until it goes; the weights are the same bits with and without it.
class TrainingTrace final : public StepWatcher {
 public:
  /// header: run and model_config; the rest is the tracer's. The training must outlive it.
  TrainingTrace(Training& training, std::filesystem::path path, TraceHeader header, Tracer::Options options);
  ~TrainingTrace() override;

  void before(const Optimizer& optimizer, double learning_rate) override;
  void after(const Optimizer& optimizer, const StepReport& report) override;
  std::map<std::string, at::Tensor> state() const override { return tracer_.state(); }
  void restore(const std::map<std::string, at::Tensor>& state) override { tracer_.restore(state); }
  Tracer& tracer() { return tracer_; }

 private:
  UpdateView view(const Optimizer& optimizer, double learning_rate, double steps) const;

  class Inputs;

  Training& training_;
  Tracer tracer_;
  std::unique_ptr<Inputs> inputs_;
};

}  // namespace scalevec
