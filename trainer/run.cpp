#include <scalevec/trainer/run.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <vector>

#include <fmt/format.h>

#include <scalevec/core/atomic_file.h>
#include <scalevec/core/checkpoint/own_model.h>
#include <scalevec/core/error.h>
#include <scalevec/core/store/trace_writer.h>
#include <scalevec/core/torch_version.h>
#include <scalevec/trainer/not_finite.h>
#include <scalevec/trainer/training_trace.h>

namespace scalevec {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

std::vector<fs::path> checkpoints(const fs::path& folder) {
  std::vector<fs::path> found;
  std::error_code none;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder / "checkpoints", none)) {
    if (entry.path().filename().string().starts_with("step-")) found.push_back(entry.path());
  }
  std::sort(found.begin(), found.end());  // steps have leading zeros
  return found;
}

void save_checkpoint(const Training& training, const fs::path& folder) {
  const fs::path target = folder / "checkpoints" / fmt::format("step-{:010}", training.steps_done());
  if (fs::exists(target)) return;
  fs::create_directories(target.parent_path());
  training.save(target);
  std::vector<fs::path> all = checkpoints(folder);
  const auto keep = static_cast<std::size_t>(training.experiment().train.keep);
  for (std::size_t i = 0; i + keep < all.size(); ++i) fs::remove_all(all[i]);
}

TraceHeader header_of(Training& training, const std::string& command) {
  const Experiment& e = training.experiment();
  TraceHeader out;
  out.run = {.command = command,
             .torch = torch_version(),
             .device = training.model().options().device.str(),
             .seed = e.seed,
             .more = {{"experiment", e.toml()}, {"corpus", training.corpus().digest()}}};
  out.model_config = own_config_text(training.model().spec());
  return out;
}

// The numbers of every step.
class Log {
 public:
  static std::vector<TraceColumn> columns() {
    std::vector<TraceColumn> list;
    const auto per_run = [&](const char* name, const char* unit, const char* description) {
      list.push_back({name, unit, description, TraceColumn::Per::run, TraceColumn::Type::f64});
    };
    per_run("loss", "nats / prediction", "mean over the batch, before the step");
    per_run("validation_loss", "nats / prediction", "mean over the validation windows, after the step");
    per_run("learning_rate", "1", "of a group with factor 1");
    per_run("gradient_norm", "nats / prediction", "of all gradients, before clipping");
    per_run("tokens_per_second", "1 / s",
            "predictions trained on; validation and checkpoints take their time");
    per_run("lost_updates", "1", "share of entries with a gradient that did not move; pure bfloat16 only");
    per_run("balance", "1", "balance loss of mixtures, mean over layers");
    return list;
  }

  Log(const fs::path& file, const TraceHeader& header, std::optional<std::int64_t> after)
      : writer_(file, header, {.after = after}), row_(writer_.layout()) {}

  void write(const RunEvent& event) {
    row_.clear();
    const StepReport& report = event.step.report;
    const double lost = report.entries > 0
                            ? static_cast<double>(report.lost) / static_cast<double>(report.entries)
                            : std::numeric_limits<double>::quiet_NaN();
    const double values[] = {event.step.loss,      event.validation_loss,   report.learning_rate,
                             report.gradient_norm, event.tokens_per_second, lost,
                             event.step.balance};
    for (std::size_t i = 0; i < std::size(values); ++i) row_.column<double>(i)[0] = values[i];
    writer_.append(event.step.step, row_.bytes());
  }

  void flush() { writer_.flush(); }
  std::string close() { return writer_.close().error; }

 private:
  TraceWriter writer_;
  TraceRow row_;
};

void prepare(Training& training, const RunOptions& options) {
  const fs::path file = options.folder / "experiment.toml";
  if (options.resume) {
    const std::optional<fs::path> last = last_checkpoint(options.folder);
    if (!last) {
      const char* const why =
          fs::exists(options.folder)
              ? "has no checkpoint, so that nothing in it can be gone on with; remove it, and"
              : "is not there; name another, or";
      fail(ErrorCode::path,
           fmt::format("resuming: the run {} {} start without resuming", options.folder.string(), why),
           {.file = options.folder.string()});
    }
    return training.restore(*last);
  }
  require_free(options.folder, Replace::no);
  fs::create_directories(options.folder);
  write_atomically(file, training.experiment().toml(), Replace::files);
}

}  // namespace

std::optional<fs::path> last_checkpoint(const fs::path& folder) {
  const std::vector<fs::path> all = checkpoints(folder);
  return all.empty() ? std::nullopt : std::optional(all.back());
}

RunResult run(Training& training, const RunOptions& options) {
  prepare(training, options);
  const Experiment& e = training.experiment();
  const std::int64_t first = training.steps_done();
  RunResult own;
  RunResult& result = options.so_far ? *options.so_far : own;
  result = {};
  result.steps = first;
  // A run that goes on makes the rows after its checkpoint again.
  const std::optional<std::int64_t> after = options.resume ? std::optional(first) : std::nullopt;
  TraceHeader header = header_of(training, options.command);
  std::optional<TrainingTrace> trace;
  if (e.trace.every > 0) {
    trace.emplace(training, options.folder / "trace.h5", header, TraceWriter::Options{.after = after},
                  options.progress);
  }
  header.columns = Log::columns();
  Log log(options.folder / "log.h5", header, after);
  // What a run goes on from must not be ahead of its rows.
  const auto checkpoint = [&] {
    log.flush();
    if (trace) trace->tracer().flush();
    save_checkpoint(training, options.folder);
    if (!trace || !trace->tracer().inputs_row()) return;
    try {
      trace->tracer().save_inputs(options.folder / "inputs.h5");
    } catch (const std::exception& error) {  // as what the trace could not keep: it ends no training
      result.log_error = error.what();
    }
  };
  const auto tokens = static_cast<double>(e.data.batch * e.data.context);
  const Clock::time_point start = Clock::now();
  Clock::time_point before = start;
  bool stop = false;
  while (!training.finished() && !stop) {
    RunEvent event;
    const std::int64_t done = training.steps_done();
    bool last = false;
    try {
      event.step = training.advance();
      last = training.finished();
      if (last || (e.train.validate_every > 0 && event.step.step % e.train.validate_every == 0)) {
        event.validation_loss = result.validation_loss = training.validate();
      }
    } catch (...) {
      // Nobody could go on from a step that led nowhere.
      if (training.steps_done() == done && all_finite(training.optimizer())) checkpoint();
      if (trace) result.gauge_faults = trace->tracer().gauge_faults();
      log.close();
      throw;
    }
    const std::int64_t step = event.step.step;
    const Clock::time_point now = Clock::now();
    const auto seconds = [](Clock::duration d) { return std::chrono::duration<double>(d).count(); };
    event.tokens_per_second = tokens / std::max(seconds(now - before), 1e-9);
    event.seconds_left =
        seconds(now - start) / static_cast<double>(step - first) * static_cast<double>(e.train.steps - step);
    before = now;
    log.write(event);
    stop = options.on_step && options.on_step(event);
    const bool due = e.train.checkpoint_every > 0 && step % e.train.checkpoint_every == 0;
    if (due || stop || last) checkpoint();
    result.steps = step;
  }
  result.finished = training.finished();
  if (const std::string error = log.close(); result.log_error.empty()) result.log_error = error;
  if (result.finished && !fs::exists(options.folder / "model")) {
    training.save_model(options.folder / "model");
  }
  if (trace) {
    result.gauge_faults = trace->tracer().gauge_faults();
    const std::string error = trace->tracer().close(options.progress).error;
    if (result.log_error.empty()) result.log_error = error;
  }
  return result;
}

}  // namespace scalevec
