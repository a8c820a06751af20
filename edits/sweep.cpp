#include <scalevec/edits/sweep.h>

#include <algorithm>
#include <string_view>

#include <ATen/ops/tensor.h>
#include <fmt/format.h>

#include <scalevec/core/error.h>
#include <scalevec/edits/streams.h>
#include <scalevec/edits/verb.h>

namespace scalevec {

Override::Vectors trial_vectors(const ScaleMap& scales, const Trial& trial) {
  if (trial.vector >= scales.size() || trial.channel < 0 || trial.channel >= scales[trial.vector].width()) {
    fail(ErrorCode::addr,
         fmt::format("sweep: vector {}, channel {} is not in this model of {} vectors", trial.vector,
                     trial.channel, scales.size()),
         {.index = trial.channel});
  }
  const ScaleVector& vector = scales[trial.vector];
  require_one_tensor(vector.site());
  StoredVector stored{vector.dtype(), vector.offset(), scales.base_bytes(trial.vector)};
  write_effective(stored, {&trial.channel, 1}, {&trial.value, 1}, vector.address(), {.no_effect = true});
  return {{vector.address(), at::tensor(stored.effective(), at::TensorOptions().dtype(at::kDouble))}};
}

std::vector<Change> sweep(Transformer& model, const Documents& text, std::span<const Override::Vectors> edits,
                          const SweepOptions& options, const Progress& progress) {
  const Windows windows(text, options.windows);
  windows.require_ids_below(model.spec().vocabulary);
  const Override::Vectors base = base_stream(model);
  const std::size_t batch = std::max<std::size_t>(1, options.batch);
  const std::uint64_t total = edits.size() * windows.size();

  std::vector<Change> changes;
  for (std::size_t begin = 0; begin < edits.size(); begin += batch) {
    const std::size_t count = std::min(batch, edits.size() - begin);
    std::vector<Override::Vectors> streams(count, base);
    for (std::size_t i = 0; i < count; ++i) {
      for (const auto& [name, vector] : edits[begin + i]) {
        streams[i][model.scales().at(name).address()] = vector;  // by address: it takes the base's place
      }
    }
    std::vector<Behaviour> behaviours(count);
    // Counted over the whole sweep; the base's forwards are the batch's overhead.
    const Progress counted = [&](std::string_view, std::uint64_t done, std::uint64_t of) {
      const std::uint64_t part = of == 0 ? 0 : done * count * windows.size() / of;
      report(progress, "sweep", begin * windows.size() + part, total);
    };
    compare_streams(model, windows, 0, windows.size(), base, streams, behaviours, counted);
    for (const Behaviour& behaviour : behaviours) {
      changes.push_back(behaviour.result(options.seed, options.resamples));
    }
  }
  return changes;
}

std::vector<Change> sweep(Transformer& model, const Documents& text, std::span<const Trial> trials,
                          const SweepOptions& options, const Progress& progress) {
  std::vector<Override::Vectors> edits;
  for (const Trial& trial : trials) edits.push_back(trial_vectors(model.scales(), trial));
  return sweep(model, text, edits, options, progress);
}

}  // namespace scalevec
