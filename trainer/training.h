#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include <scalevec/core/model/transformer.h>
#include <scalevec/trainer/collective.h>
#include <scalevec/trainer/corpus.h>
#include <scalevec/trainer/experiment.h>
#include <scalevec/trainer/optimizer.h>
#include <scalevec/trainer/window_order.h>

namespace scalevec {

/// One optimizer step.
struct TrainingStep {
  std::int64_t step = 0;  // counted from 1
  double loss = 0.0;      // nats per prediction, before the step
  double balance = 0.0;   // of mixtures, mean over layers; 0 without
  StepReport report;
};

/// A model in training: experiment, data, tensors, optimizer and position. The same experiment gives the same
/// bits on one machine with the same number of threads, also when it is saved and restored on the way.
class Training {
 public:
  struct Options {
    at::Device device = at::kCPU;
    Collective* ranks = nullptr;  // null: alone; they divide the batch
  };

  /// The corpus is the experiment's unless one is given. E_VALUE if it has fewer windows than a batch, or
  /// none to validate on, or if the ranks do not divide the batch.
  Training(Experiment experiment, Corpus corpus, const Options& options);
  explicit Training(const Experiment& experiment);

  /// One step: forward and backward of the batch, then the optimizer. Watchers see both sides of the move.
  /// Where the loss or a gradient is not finite, E_VALUE names the first tensor that is not (see
  /// not_finite.h), and everything is as it was.
  TrainingStep advance();
  /// Mean loss, nats per prediction, of the first windows of the validation split. E_VALUE as of advance().
  double validate();

  std::int64_t steps_done() const { return optimizer_->steps(); }
  bool finished() const { return steps_done() >= experiment_.train.steps; }
  const Experiment& experiment() const { return experiment_; }
  const Corpus& corpus() const { return corpus_; }
  Transformer& model() { return *model_; }
  const Optimizer& optimizer() const { return *optimizer_; }
  /// Ids of the first windows of the step to come, (windows, context + 1).
  at::Tensor next_windows(std::int64_t windows) const;
  /// Null: nobody. Whoever comes after restore() is given back what was saved of the watcher then.
  void watch(StepWatcher* watcher);

  /// Everything that a later advance() depends on, as a folder, whole or not at all. E_VALUE where a
  /// parameter is not finite, here and of save_model().
  void save(const std::filesystem::path& folder) const;
  /// Puts back what save() wrote. E_CONFIG if it is of another experiment or corpus, naming the field.
  void restore(const std::filesystem::path& folder);
  /// The model as a MODEL for every command: masters, in float32 unless the run is pure bfloat16.
  void save_model(const std::filesystem::path& folder) const;

 private:
  std::int64_t validation_windows() const;
  at::Tensor batch(std::int64_t first, std::int64_t count) const;
  Collective& ranks() const;

  Experiment experiment_;
  Corpus corpus_;
  Options options_;
  std::unique_ptr<Transformer> model_;
  std::unique_ptr<Optimizer> optimizer_;
  std::vector<at::Tensor> leaves_;
  WindowOrder order_;
  StepWatcher* watcher_ = nullptr;
  std::map<std::string, at::Tensor> watched_;  // of the checkpoint that was restored
};

/// The corpus that an experiment names.
Corpus corpus_of(const Experiment& experiment);

}  // namespace scalevec
