#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <ATen/core/Tensor.h>

#include <scalevec/analysis/line_sums.h>
#include <scalevec/core/store/trace_writer.h>

namespace scalevec {

/// A linear map beside a norm: its branch and its weight, (out, in) or (experts, out, in).
struct TracedMap {
  std::string branch;
  at::Tensor weight;
  bool biased = false;  // a bias is added behind it
};

/// A scale vector that learns, with the maps that read its norm's output (consumers) and whose output it
/// scales (producers). The tensors are those that the optimizer moves.
struct TracedVector {
  Site site;
  at::Tensor stored;  // (width,); alpha where the site has components
  at::Tensor beta;    // (1,), or undefined
  std::vector<TracedMap> consumers, producers;

  /// Its readers, or where it has none, what it scales.
  const std::vector<TracedMap>& beside() const { return consumers.empty() ? producers : consumers; }
};

/// How an optimizer moves one tensor in the step at hand. What does not apply stays 0 or undefined.
struct UpdateFacts {
  enum class Rule { sgd, adamw, muon, other };
  Rule rule = Rule::other;
  double rate = 0;                 // learning rate, factors of the group included
  double stretch = 1;              // Muon: what its orthogonal update is multiplied by
  double weight_decay = 0;         // coefficient; NaN: it pulls at no rate that is known
  double momentum = 0;             // SGD, Muon; beta1 of Adam
  double beta2 = 0, eps = 0;       // Adam
  double steps = 0;                // taken before this one
  at::Tensor gradient;             // undefined: none reached the tensor
  at::Tensor exp_avg, exp_avg_sq;  // Adam's state, after the step
  /// Before the step: whether the optimizer will have `sums` after it, so that nothing need be copied.
  bool sums_follow = false;
  const Lines* sums = nullptr;  // column_sums of the step, after it
};
/// Asked once for each tensor of a row.
using UpdateView = std::function<UpdateFacts(const at::Tensor& tensor)>;

/// Writes what scale vectors and the maps beside them do while a model trains: one row of metrics every so
/// many steps (docs/trace_metrics.md lists them with formulas and sources).
///
/// Works for any loop: call `before` when the gradients are there and nothing has moved, and `after` when the
/// optimizer has moved the tensors. It reads, copies and never writes them. Rows go to a TraceWriter, which
/// neither blocks nor ends the training.
class Tracer {
 public:
  struct Options {
    std::int64_t every = 10;  // steps from row to row; 1: all
    /// A residual of an identity above it is a wiring mistake (a wrong reduction, a missed consumer, a
    /// forgotten + 1, a norm's wrong backward): float32 gradients reach 5e-6. What a norm's eps leaves is
    /// allowed for. Lower precisions say nothing; at 0 nothing is judged.
    double gauge_tolerance = 1e-5;
    /// Columns of what the maps behind norms read, from what `see` is given.
    bool inputs = false;
    /// Columns of the loss's curvature, from what `note` is given.
    bool curvature = false;
    TraceWriter::Options writer = {};
  };

  /// E_ADDR if there is no vector; E_SHAPE for a map whose sides do not fit its norm; E_DUP for two readers
  /// of one branch.
  Tracer(std::filesystem::path path, std::vector<TracedVector> vectors, TraceHeader header,
         const Options& options);
  ~Tracer();
  Tracer(const Tracer&) = delete;
  Tracer& operator=(const Tracer&) = delete;

  /// Whether step `step`, counted from 1, will be a row.
  bool due(std::int64_t step) const;
  /// What a norm gave in a forward pass of the step to come, before its vector: (..., width). Of use where
  /// the step is due and inputs are traced; of several passes the mean is kept. E_ADDR for no vector of ours.
  void see(std::string_view address, const at::Tensor& normalized);
  /// S = E[x x^T] of the last row (docs/trace_metrics.md, 33): (width, width), of more than 2,048 channels
  /// its diagonal (width,); float64, on the host. E_STATE without inputs, before the first row, and once a
  /// step after it has been seen; E_ADDR.
  at::Tensor input_moments(std::string_view address) const;
  /// The row that input_moments is of; none where it is E_STATE for every norm.
  std::optional<std::int64_t> inputs_row() const;
  /// A results file of input_moments at every norm that was seen (docs/results_file.md), in the place of an
  /// earlier one. E_STATE where inputs_row is none.
  void save_inputs(const std::filesystem::path& path) const;
  /// What the loop itself has measured of a vector for the step to come: one value, or one for each channel,
  /// as the column has it; the last note counts. Of use where the step is due. E_ADDR for no vector of ours,
  /// E_VALUE for no column of the trace, E_SHAPE.
  void note(std::string_view address, std::string_view column, std::span<const double> values);
  /// Call for every step: decay is summed over all of them.
  void before(std::int64_t step, const UpdateView& view);
  void after(std::int64_t step, const UpdateView& view);

  /// What the next rows depend on beside the tensors (vectors of the last row, sums since the start; under
  /// SGD without momentum, where the next step is a row, the last gradients of the maps), for the checkpoint
  /// of whoever goes on later: by "address/name". E_CONFIG for another model's.
  std::map<std::string, at::Tensor> state() const;
  void restore(const std::map<std::string, at::Tensor>& state);

  /// Sites one of whose identities did not hold in some row, the first of each: the column that tells it, the
  /// step, and the channel, the first row of a group of the map, or 0 for a site. Empty: none so far.
  struct GaugeFault {
    std::string address, identity;
    std::int64_t step = 0, channel = 0;
    double residual = 0;
  };
  const std::vector<GaugeFault>& gauge_faults() const;
  TraceWriter::Status status() const;
  /// Returns when the rows so far are on the disk, or when that has failed: before a checkpoint.
  bool flush();
  /// Makes the results file; what `progress` throws comes back, and leaves the live folder.
  TraceWriter::Status close(const Progress& progress = {});

  /// What a row holds: always; where norms have several readers, of each branch, whose name stands for
  /// BRANCH, a '.' as '_'; where branches of a norm have vectors of their own, of each such branch; with
  /// inputs besides, and with curvature.
  static const std::vector<TraceColumn>& columns();
  static const std::vector<TraceColumn>& branch_columns();
  static const std::vector<TraceColumn>& vector_branch_columns();
  static const std::vector<TraceColumn>& input_columns();
  static const std::vector<TraceColumn>& curvature_columns();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace scalevec
