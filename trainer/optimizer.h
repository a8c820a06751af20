#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <ATen/core/Tensor.h>

#include <scalevec/analysis/line_sums.h>
#include <scalevec/trainer/collective.h>
#include <scalevec/trainer/groups.h>

namespace scalevec {

/// How a tensor moves: as torch.optim's AdamW, SGD and Muon do, to their rounding.
///
/// AdamW and Muon decay beside the update, p <- p (1 - rate decay) - rate update; SGD adds decay * p to the
/// gradient. Muon's update is orthogonalise(g (1 - momentum) + momentum b) * 0.2 sqrt(max(rows, columns))
/// with b <- momentum b + (1 - momentum) g (Liu et al., 2502.16982), in float32 where torch rounds to
/// bfloat16.
enum class Rule { adamw, sgd, muon };
/// "adamw", "sgd", "muon"; E_VALUE.
Rule parse_rule(std::string_view text);
std::string_view rule_name(Rule rule);

struct OptimizerOptions {
  /// "muon": linear maps of the blocks by Muon, all others by AdamW.
  Rule rule = Rule::adamw;
  double learning_rate = 1e-3;
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;  // AdamW
  double momentum = 0.9;                         // SGD
  double muon_momentum = 0.95;                   // with Nesterov's look ahead
  double weight_decay = 0.1;
  VectorDecay decay_vectors = VectorDecay::input_norms;
  std::map<std::string, double> decay;  // by group, see group_decay
  std::map<std::string, double> rates;  // by group, see group_rates
  double clip = 1.0;                    // of the norm of all gradients; 0: not
};

/// E_VALUE for a number that is out of range whatever the model.
void check(const OptimizerOptions& options);

/// One tensor that learns.
struct Parameter {
  std::string slot;
  at::Tensor leaf;      // what the model reads; backward passes add to its gradient
  at::Tensor master;    // what the optimizer moves: float32 beside a bfloat16 leaf, else the leaf itself
  at::Tensor gradient;  // of the last step, in the master's dtype, clipped; undefined before it
  std::map<std::string, at::Tensor> state;  // "exp_avg", "exp_avg_sq"; "momentum"
  std::optional<Lines> sums;                // column sums of the last step, where its watcher wanted them
};

/// A group with what was decided for it.
struct GroupSettings {
  ParameterGroup group;
  Rule rule;
  double rate;  // factor of the learning rate
  double weight_decay;
};

/// What one step did.
struct StepReport {
  double gradient_norm = 0.0;  // before clipping
  double learning_rate = 0.0;
  std::int64_t lost = 0;     // entries with a gradient that did not move: updates below half an ulp
  std::int64_t entries = 0;  // with a gradient; 0 where they were not counted
};

class Optimizer;

/// Whoever looks at a step from both sides of the move. `before`: gradients are those of the step, clipped;
/// masters and state are still those of the last one.
class StepWatcher {
 public:
  virtual ~StepWatcher() = default;
  virtual void before(const Optimizer& optimizer, double learning_rate) = 0;
  virtual void after(const Optimizer& optimizer, const StepReport& report) = 0;
  /// Whether the move is to take column sums of this parameter on its way, where it can (`takes_sums`). Asked
  /// after `before`.
  virtual bool wants_sums(const Parameter& /*parameter*/) const { return false; }
  /// What it goes on from, kept in the run's checkpoints.
  virtual std::map<std::string, at::Tensor> state() const { return {}; }
  virtual void restore(const std::map<std::string, at::Tensor>& /*state*/) {}
};

/// Moves the tensors of one model by their gradients, group by group. Leaves are written in place; what reads
/// them sees their versions change.
class Optimizer {
 public:
  /// leaves: by slot of the spec, every one that requires a gradient; bfloat16 leaves get float32 masters
  /// unless `pure`, which moves them as they are and counts what is lost. E_VALUE for options out of range.
  Optimizer(const ModelSpec& spec, const std::map<std::string, at::Tensor>& leaves,
            const OptimizerOptions& options, bool pure = false);

  /// Adds the leaves' gradients, times `factor`, to the step's and clears them: after each backward pass.
  void accumulate(double factor = 1.0);
  /// Moves every parameter by the gradients since the last step, with `share` of the learning rate. Where a
  /// gradient is not finite nothing moves, and E_VALUE names the first tensor of the backward pass with one.
  StepReport step(double share, StepWatcher* watcher = nullptr);
  /// Drops the gradients since the last step.
  void forget() { pending_.clear(); }
  /// The step's gradients, summed over ranks.
  void sum_over(Collective& ranks);

  std::int64_t steps() const { return steps_; }
  const OptimizerOptions& options() const { return options_; }
  const std::vector<GroupSettings>& groups() const { return groups_; }
  const std::vector<Parameter>& parameters() const { return parameters_; }
  const Parameter& parameter(std::string_view slot) const;  // E_ADDR
  const GroupSettings& group_of(const Parameter& parameter) const;
  /// Whether a parameter's move passes through memory once, with column sums or without: AdamW's of float32
  /// matrices on the CPU.
  bool takes_sums(const Parameter& parameter) const;

  /// Masters by slot; shared.
  std::map<std::string, at::Tensor> masters() const;
  /// Masters and state by name, "layers.0.attn.q.weight/exp_avg"; shared, for a checkpoint.
  std::map<std::string, at::Tensor> tensors() const;
  /// Puts back what tensors() and steps() gave. E_CONFIG, E_SHAPE for what does not fit.
  void restore(const std::map<std::string, at::Tensor>& tensors, std::int64_t steps);

 private:
  double clip();
  void move(const GroupSettings& group, const std::vector<Parameter*>& members, double rate,
            const StepWatcher* watcher);
  void copy_to_leaf(Parameter& parameter) const;

  OptimizerOptions options_;
  bool pure_;
  std::vector<GroupSettings> groups_;
  std::vector<Parameter> parameters_;               // by slot
  std::map<std::string, std::size_t> group_index_;  // of a slot
  std::set<std::string> pending_;                   // slots with a gradient since the last step
  std::int64_t steps_ = 0;
};

/// The orthogonal factor of a matrix, nearly: five Newton-Schulz steps with Keller Jordan's coefficients,
/// whose singular values end in about [0.7, 1.2]. (..., rows, columns), floating; the iteration runs in
/// float32.
at::Tensor orthogonalise(const at::Tensor& matrix);
/// 0.2 sqrt(max(rows, columns)): gives Muon's update the root mean square of AdamW's.
double muon_stretch(const at::Tensor& matrix);

}  // namespace scalevec
