#pragma once

#include <filesystem>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include <scalevec/analysis/tracer.h>
#include <scalevec/trainer/training.h>

namespace scalevec {

/// What the loop tells after each step.
struct RunEvent {
  TrainingStep step;
  double validation_loss = std::numeric_limits<double>::quiet_NaN();  // where this step was validated
  double tokens_per_second = 0.0;                                     // since the last event
  double seconds_left = 0.0;                                          // at the pace of this session
};

struct RunResult {
  std::int64_t steps = 0;
  double validation_loss = std::numeric_limits<double>::quiet_NaN();
  bool finished = false;
  std::string log_error;                         // what the log or the trace could not keep, empty: nothing
  std::vector<Tracer::GaugeFault> gauge_faults;  // of the trace
};

struct RunOptions {
  std::filesystem::path folder;  // "run/"
  bool resume = false;           // go on from the last checkpoint there
  std::string command;           // as the user gave it, for the log
  /// After every step; true: stop with a checkpoint.
  std::function<bool(const RunEvent&)> on_step = {};
  /// Of what takes long besides steps: rows of curvature, and merging the trace behind everything else. What
  /// it throws comes back, after a checkpoint, and leaves the trace's live folder.
  Progress progress = {};
  /// Filled as the run goes, also of one that throws.
  RunResult* so_far = nullptr;
};

/// Trains to the end, or until told to stop, in a folder: experiment.toml (every field), log.h5 (a trace:
/// loss, learning rate, gradient norm of every step), trace.h5 where the experiment asks for one,
/// checkpoints/step-0000000100, at the end model/. A run that is stopped, killed or out of power goes on with
/// `resume` from its last checkpoint, to the same bits.
///
/// E_PATH if the folder holds something and `resume` was not asked for, or has nothing to resume; E_CONFIG if
/// it is of another experiment. What advance() throws ends the run after a checkpoint of the last good step.
RunResult run(Training& training, const RunOptions& options);

/// The last whole checkpoint of a run's folder, if there is one.
std::optional<std::filesystem::path> last_checkpoint(const std::filesystem::path& folder);

}  // namespace scalevec
