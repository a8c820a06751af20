#include <scalevec/edits/measure.h>

#include <chrono>
#include <utility>

#include <ATen/Parallel.h>
#include <c10/core/ScalarType.h>
#include <fmt/format.h>

#include <scalevec/core/error.h>
#include <scalevec/core/torch_version.h>
#include <scalevec/edits/edit.h>
#include <scalevec/edits/streams.h>
#include <scalevec/hooks/tap.h>

namespace scalevec {
namespace {

NoOpControl run_control(Transformer& model, const Windows& windows, const Override::Vectors& base) {
  Behaviour behaviour;
  const Override::Vectors no_op = no_op_stream(model);
  // The first and the last, which may be cut: what differs between windows is their length.
  compare_streams(model, windows, 0, 1, base, {&no_op, 1}, {&behaviour, 1});
  if (const std::size_t last = windows.size() - 1; windows.size() > 1)
    compare_streams(model, windows, last, windows.size(), base, {&no_op, 1}, {&behaviour, 1});
  const Change change = behaviour.result();
  if (behaviour.largest_difference() != 0.0) {
    fail(ErrorCode::state,
         fmt::format(
             "measure: the no-op control is not zero: the base sent the way of an edit moves logits by up to "
             "{:.3g} (KL {:.3g}), so no effect could be told from the measurement's own. The model may not "
             "repeat its own results: run on one thread, or report this",
             behaviour.largest_difference(), change.kl.value));
  }
  return {.predictions = change.predictions,
          .largest_difference = change.largest_difference,
          .loss_change = change.loss_change.value,
          .kl = change.kl.value,
          .flips = change.flips.value};
}

Measurement run(Transformer& model, const Documents& text, const Override::Vectors& base,
                const Override::Vectors& edited, std::vector<TouchedVector> touched,
                const MeasureOptions& options, const Progress& progress) {
  const auto begin = std::chrono::steady_clock::now();
  const Windows windows(text, options.windows);
  windows.require_ids_below(model.spec().vocabulary);
  if (options.journal != nullptr) options.journal->check();
  if (touched.empty() && !options.allow_unedited) {
    fail(ErrorCode::no_effect,
         "measure: every scale vector is as the file holds it, so there is nothing to measure. Make an edit "
         "first and "
         "measure while it is in force, or allow an unedited model");
  }
  Measurement out;
  out.control = run_control(model, windows, base);
  Behaviour behaviour({.per_token = options.per_token});
  compare_streams(model, windows, 0, windows.size(), base, {&edited, 1}, {&behaviour, 1}, progress);
  if (options.journal != nullptr) options.journal->check();

  out.change = behaviour.result(options.seed, options.resamples);
  out.reached_output = behaviour.largest_difference() != 0.0;
  if (!out.reached_output && !touched.empty() && !options.allow_no_effect) {
    fail(ErrorCode::no_effect,
         fmt::format(
             "measure: the edit did not reach the output: {} differs from its base, and not one logit of {} "
             "predictions moves. Check that the edit is in force and that its channels matter, or allow an "
             "edit without effect",
             touched.size() == 1 ? "'" + touched.front().address + "'"
                                 : fmt::format("{} vectors", touched.size()),
             out.change.predictions),
         {.tensor = touched.front().address});
  }
  if (options.per_token) {
    out.per_token = behaviour.per_token();
    for (std::size_t w = 0; w < windows.size(); ++w) {
      const Window window = windows[w];
      for (std::int64_t i = 0; i < window.targets.size(0); ++i) out.position.push_back(window.first + i);
    }
  }
  out.touched = std::move(touched);
  out.windows = static_cast<std::int64_t>(windows.size());
  out.documents = windows.documents();
  out.context = options.windows.context;
  out.bos = options.windows.bos;
  out.threads = at::get_num_threads();
  out.resamples = options.resamples;
  out.seed = options.seed;
  out.dtype = dtype_text(model.options().compute);
  out.device = model.options().device.str();
  out.scalevec = tool_name();
  out.torch = torch_version();
  out.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return out;
}

}  // namespace

Measurement measure(Transformer& model, const Documents& text, const MeasureOptions& options,
                    const Progress& progress) {
  const ScaleMap& scales = model.scales();
  std::vector<TouchedVector> touched;
  for (const std::size_t i : touched_vectors(model)) {
    const ScaleVector& vector = scales[i];
    const bool lent = model.observers().lent(find_site(model.sites(), vector.address())).defined();
    touched.push_back({.address = vector.address(),
                       .native = vector.site().native,
                       .base = scales.base_digest(i),
                       .edited = lent ? "lent" : vector.digest()});
  }
  return run(model, text, base_stream(model), {}, std::move(touched), options, progress);
}

Measurement measure(Transformer& model, const Documents& text, const Override::Vectors& edited,
                    const MeasureOptions& options, const Progress& progress) {
  const Override::Vectors base = base_stream(model);
  Override::Vectors stream = base;
  std::vector<TouchedVector> touched;
  for (const auto& [name, vector] : edited) {
    const std::size_t i = model.scales().index_of(name);
    const ScaleVector& own = model.scales()[i];
    stream[own.address()] = vector;
    touched.push_back({.address = own.address(),
                       .native = own.site().native,
                       .base = model.scales().base_digest(i),
                       .edited = "lent"});
  }
  return run(model, text, base, stream, std::move(touched), options, progress);
}

std::string dtype_text(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return "float32";
    case at::kDouble:
      return "float64";
    case at::kBFloat16:
      return "bfloat16";
    case at::kHalf:
      return "float16";
    default:
      return c10::toString(dtype);
  }
}

}  // namespace scalevec
