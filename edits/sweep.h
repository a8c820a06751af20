#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <scalevec/analysis/windows.h>
#include <scalevec/core/model/transformer.h>
#include <scalevec/core/progress.h>
#include <scalevec/edits/behaviour.h>
#include <scalevec/hooks/override.h>

namespace scalevec {

/// One entry set to another effective value. The vector's dtype holds what is nearest to it.
struct Trial {
  std::size_t vector = 0;  // of the map
  std::int64_t channel = 0;
  double value = 0.0;
};

struct SweepOptions {
  WindowOptions windows = {};
  std::uint64_t seed = 0;
  std::int64_t resamples = 2000;
  std::size_t batch =
      32;  // edits whose hidden states are held at a time; the base's logits are made once for each batch
};

/// Exact loss change, KL and flips of many edits against the model's base, one forward each: the vectors are
/// lent, the model is never changed, and the base's hidden states are computed once for a batch. A short text
/// ranks; 20 chunks of 64 predictions and more give each edit its paired interval. Results in the order of
/// `edits`.
///
/// Each edit is lent on top of the base, so whatever stands edited in the model plays no part. E_VALUE as
/// `measure`.
std::vector<Change> sweep(Transformer& model, const Documents& text, std::span<const Override::Vectors> edits,
                          const SweepOptions& options = {}, const Progress& progress = {});

/// The same for single entries. E_ADDR for a vector or channel that is not there.
std::vector<Change> sweep(Transformer& model, const Documents& text, std::span<const Trial> trials,
                          const SweepOptions& options = {}, const Progress& progress = {});

/// The base of a trial's vector with the one entry changed, rounded as an edit would be: what to lend.
Override::Vectors trial_vectors(const ScaleMap& scales, const Trial& trial);

}  // namespace scalevec
