#include <scalevec/trainer/training.h>

#include <cmath>
#include <numeric>
#include <utility>

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <scalevec/analysis/doubles.h>
#include <scalevec/analysis/text_loss.h>
#include <scalevec/core/error.h>
#include <scalevec/core/model/save.h>
#include <scalevec/trainer/init.h>
#include <scalevec/trainer/not_finite.h>
#include <scalevec/trainer/schedule.h>
#include <scalevec/trainer/state_file.h>

namespace scalevec {
namespace {

Schedule schedule_of(const Experiment& e) {
  return {.kind = parse_schedule(e.schedule.kind),
          .steps = e.train.steps,
          .warmup = e.schedule.warmup,
          .floor = e.schedule.floor,
          .stable = e.schedule.stable};
}

std::int64_t micro_batch(const Experiment& e) {
  return e.data.micro_batch > 0 ? e.data.micro_batch : e.data.batch;
}

// What the model computes with: vectors stay float32 unless the run is pure.
std::map<std::string, at::Tensor> leaves_of(const ModelSpec& spec, const Experiment& e, at::Device device) {
  std::map<std::string, at::Tensor> leaves = draw_tensors(spec, {.seed = static_cast<std::uint64_t>(e.seed),
                                                                 .std = e.model.init_std,
                                                                 .scale_residual = e.model.scale_residual});
  const bool low = e.train.precision != "float32", pure = e.train.precision == "pure-bfloat16";
  for (auto& [slot, tensor] : leaves) {
    tensor = tensor.to(device, low && (pure || tensor.dim() > 1) ? at::kBFloat16 : at::kFloat);
  }
  return leaves;
}

std::int64_t train_windows(const Experiment& e, const Corpus& corpus) {
  const std::int64_t windows = corpus.windows(Split::train, e.data.context);
  if (windows >= e.data.batch) return windows;
  fail(ErrorCode::value,
       fmt::format(
           "training: the corpus has {} windows of {} predictions, fewer than one batch of {}; give more "
           "text, or lower data.context or data.batch",
           windows, e.data.context, e.data.batch),
       {.key = "data.batch"});
}

}  // namespace

Corpus corpus_of(const Experiment& e) {
  if (!e.data.corpus.empty()) return Corpus::open(e.data.corpus);
  return Corpus::synthetic({.vocabulary = e.data.vocabulary,
                            .order = e.data.order,
                            .concentration = e.data.concentration,
                            .seed = static_cast<std::uint64_t>(e.data.seed)});
}

Training::Training(const Experiment& experiment) : Training(experiment, corpus_of(experiment), {}) {}

Training::Training(Experiment experiment, Corpus corpus, const Options& options)
    : experiment_(std::move(experiment)),
      corpus_(std::move(corpus)),
      options_(options),
      order_(train_windows(experiment_, corpus_), static_cast<std::uint64_t>(experiment_.seed)) {
  if (experiment_.data.batch % ranks().size() != 0) {
    fail(ErrorCode::value,
         fmt::format(
             "training: {} ranks do not divide a batch of {} windows; choose data.batch so that they do",
             ranks().size(), experiment_.data.batch),
         {.key = "data.batch"});
  }
  validation_windows();  // not only when the first one ends
  const ModelSpec spec = experiment_.spec(corpus_.vocabulary());
  const std::map<std::string, at::Tensor> leaves = leaves_of(spec, experiment_, options.device);
  const bool low = experiment_.train.precision != "float32";
  model_ = std::make_unique<Transformer>(
      spec, leaves,
      Transformer::Options{.compute = low ? at::kBFloat16 : at::kFloat, .device = options.device});
  for (const auto& [slot, leaf] : leaves) leaves_.push_back(leaf.requires_grad_());
  optimizer_ = std::make_unique<Optimizer>(spec, leaves, experiment_.optimizer_options(),
                                           experiment_.train.precision == "pure-bfloat16");
}

Collective& Training::ranks() const {
  static Collective alone;
  return options_.ranks ? *options_.ranks : alone;
}

at::Tensor Training::batch(std::int64_t first, std::int64_t count) const {
  std::vector<std::int64_t> windows;
  for (std::int64_t i = 0; i < count; ++i) windows.push_back(order_.at(first + i));
  return corpus_.read(Split::train, windows, experiment_.data.context);
}

at::Tensor Training::next_windows(std::int64_t windows) const {
  return batch(steps_done() * experiment_.data.batch, windows);
}

TrainingStep Training::advance() {
  optimizer_->forget();  // what a step has left that did not end
  const at::AutoGradMode gradients(true);
  const std::int64_t rows = experiment_.data.batch, mine = rows / ranks().size();
  const std::int64_t part = std::min(micro_batch(experiment_), mine), context = experiment_.data.context;
  const std::int64_t begin = steps_done() * rows + ranks().rank() * mine;
  const double share = 1.0 / static_cast<double>(rows * context);
  TrainingStep out;
  out.step = steps_done() + 1;
  for (std::int64_t done = 0; done < mine; done += part) {
    const at::Tensor ids = batch(begin + done, std::min(part, mine - done));
    const double of_batch = static_cast<double>(ids.size(0)) / static_cast<double>(rows);
    Balance balance{.weight = experiment_.train.balance * of_batch};
    out.loss += share * backward_loss(*model_, ids.narrow(1, 0, context),
                                      ids.narrow(1, 1, context).contiguous(), leaves_, share, &balance);
    out.balance += balance.value * of_batch;
    optimizer_->accumulate();
  }
  const bool finite_here = std::isfinite(out.loss);
  at::Tensor sums = tensor_of({out.loss, out.balance}).to(options_.device);
  ranks().sum(sums);
  out.loss = doubles_of(sums)[0];
  out.balance = doubles_of(sums)[1];
  if (!std::isfinite(out.loss)) {  // on every rank, so that none waits for another
    if (finite_here) {
      fail(ErrorCode::value,
           fmt::format("training step {}: the loss of another rank is not finite; what that rank says names "
                       "the tensor",
                       out.step),
           {.expected = "a finite loss", .found = fmt::format("{}", out.loss)});
    }
    std::vector<at::Tensor> parts;
    for (std::int64_t done = 0; done < mine; done += part) {
      parts.push_back(batch(begin + done, std::min(part, mine - done)).narrow(1, 0, context));
    }
    fail_for_loss(fmt::format("training step {}", out.step), out.loss, *optimizer_, *model_, parts);
  }
  optimizer_->sum_over(ranks());
  out.report = optimizer_->step(schedule_of(experiment_).at(steps_done()), watcher_);
  return out;
}

std::int64_t Training::validation_windows() const {
  const std::int64_t context = experiment_.data.context;
  const std::int64_t windows =
      std::min(corpus_.windows(Split::validation, context), experiment_.train.validation_windows);
  if (windows >= 1) return windows;
  fail(ErrorCode::value,
       fmt::format("training: the corpus has no window of {} predictions to validate on; build it of more "
                   "documents or with a larger share (`data build --validation`), or lower data.context",
                   context),
       {.key = "data.corpus"});
}

double Training::validate() {
  const std::int64_t context = experiment_.data.context, windows = validation_windows();
  double sum = 0.0;
  for (std::int64_t first = 0; first < windows; first += micro_batch(experiment_)) {
    std::vector<std::int64_t> some(
        static_cast<std::size_t>(std::min(micro_batch(experiment_), windows - first)));
    std::iota(some.begin(), some.end(), first);
    const at::Tensor ids = corpus_.read(Split::validation, some, context);
    const double loss =
        sum_losses(*model_, ids.narrow(1, 0, context), ids.narrow(1, 1, context).contiguous());
    if (!std::isfinite(loss)) {
      fail_for_loss(fmt::format("validating after step {}", steps_done()), loss, *optimizer_, *model_,
                    {ids.narrow(1, 0, context)});
    }
    sum += loss;
  }
  return sum / static_cast<double>(windows * context);
}

void Training::watch(StepWatcher* watcher) {
  if (watcher && !watched_.empty()) watcher->restore(watched_);
  watcher_ = watcher;  // not one that could not go on
}

void Training::save(const std::filesystem::path& folder) const {
  check_finite(*optimizer_);
  write_state(folder, {.tensors = optimizer_->tensors(),
                       .watched = watcher_ ? watcher_->state() : watched_,
                       .step = steps_done(),
                       .experiment = experiment_.toml(),
                       .corpus = corpus_.digest()});
}

void Training::restore(const std::filesystem::path& folder) {
  const TrainingState state = read_state(folder);
  const auto refuse = [&](const char* what, const std::string& expected, const std::string& found) {
    fail(ErrorCode::config,
         fmt::format("resuming: the checkpoint was made with another {}; make a new run instead", what),
         {.file = folder.string(), .key = what, .expected = expected, .found = found});
  };
  if (state.corpus != corpus_.digest()) refuse("corpus", corpus_.digest(), state.corpus);
  if (const auto other = first_difference(experiment_, Experiment::parse(state.experiment))) {
    refuse(other->key.c_str(), other->left, other->right);
  }
  optimizer_->restore(state.tensors, state.step);
  watched_ = state.watched;
  if (watcher_ && !watched_.empty()) watcher_->restore(watched_);
}

void Training::save_model(const std::filesystem::path& folder) const {
  check_finite(*optimizer_);
  SaveOptions options;
  options.metadata = {{"experiment", experiment_.toml()}, {"steps", std::to_string(steps_done())}};
  const std::filesystem::path tokenizer = std::filesystem::path(experiment_.data.corpus) / "tokenizer.json";
  if (!experiment_.data.corpus.empty()) options.files.push_back(tokenizer);
  scalevec::save_model(folder, model_->spec(), optimizer_->masters(), options);
}

}  // namespace scalevec
