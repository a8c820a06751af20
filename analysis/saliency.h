#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <scalevec/analysis/windows.h>
#include <scalevec/core/model/transformer.h>
#include <scalevec/core/progress.h>

namespace scalevec {

/// Values for every channel of every scale vector: [vector of the map][channel].
using PerChannel = std::vector<std::vector<double>>;

/// First-order view of every entry at once: what a small change of it would do to the loss of a text.
struct Saliency {
  PerChannel effective;  // g
  PerChannel gradient;   // dL / dg, nats per prediction and unit of g
  double loss = 0.0;     // nats per prediction
  std::int64_t predictions = 0;

  /// First-order loss change of setting each entry to zero: -g dL/dg. Large ablations lie far outside of the
  /// first order: it finds candidates, and says nothing sure of their size or sign.
  PerChannel ablation() const;
};

/// One forward and one backward for each window, of the model as it stands. The scale vectors are lent to it
/// as leaves and nothing else requires gradients: no weight gradient is computed, nothing of the model is
/// touched, and afterwards nothing is left, whatever happens. The gradient of the logits is made a few rows
/// at a time. Gradients are of effective values, also where a vector is a function of components.
Saliency saliency(Transformer& model, const Documents& text, const WindowOptions& options = {},
                  const Progress& progress = {});

/// How far each entry lies from its vector's mean: |g - mean| / standard deviation (0 where all are equal).
PerChannel outlier_scores(const ScaleMap& scales);

/// One entry of one vector, with the value it was ranked by.
struct Entry {
  std::size_t vector = 0;
  std::int64_t channel = 0;
  double score = 0.0;
  friend bool operator==(const Entry&, const Entry&) = default;
};

/// The `most` entries with the largest |score|, largest first; of equals the earlier vector and channel
/// first.
std::vector<Entry> top_entries(const PerChannel& scores, std::size_t most);

}  // namespace scalevec
