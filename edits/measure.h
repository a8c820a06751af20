#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <scalevec/analysis/windows.h>
#include <scalevec/core/model/transformer.h>
#include <scalevec/core/progress.h>
#include <scalevec/edits/behaviour.h>
#include <scalevec/edits/transaction.h>
#include <scalevec/hooks/override.h>

namespace scalevec {

struct MeasureOptions {
  WindowOptions windows = {};
  std::uint64_t seed = 0;  // of the bootstrap
  std::int64_t resamples = 2000;
  bool per_token = false;
  bool allow_unedited = false;   // measure a model that nobody edited
  bool allow_no_effect = false;  // an edit that moves no logit is a result
  /// Checked before and after: E_STATE if somebody else writes a vector.
  const Journal* journal = nullptr;
};

/// A vector that the edited stream ran with and the base did not.
struct TouchedVector {
  std::string address, native;
  std::string base,
      edited;  // digests (vector_digest); "lent" where an override stands in for the stored vector
};

/// The base sent the way of an edit, against the base: what the measurement itself adds. Zero, or nothing is
/// reported.
struct NoOpControl {
  std::int64_t predictions = 0;
  double largest_difference = 0.0;  // of any two logits
  double loss_change = 0.0, kl = 0.0, flips = 0.0;
};

/// What an edit did to a model over a text, and how that was obtained.
struct Measurement {
  Change change;
  NoOpControl control;
  PerToken per_token;                  // where asked for
  std::vector<std::int64_t> position;  // of each target in its document; with per_token
  std::vector<TouchedVector> touched;  // forward order
  bool reached_output = false;         // whether any logit differs

  std::int64_t windows = 0, documents = 0, context = 0, threads = 0, resamples = 0;
  std::optional<std::int64_t> bos;
  std::uint64_t seed = 0;
  std::string dtype, device, scalevec, torch;
  double seconds = 0.0;
};

/// Measures the model as it stands (edited, or with overrides in force) against its base: the vectors as they
/// were when the map was made, lent for the base stream. The model is never changed.
///
/// E_NO_EFFECT for an unedited model, and for an edit that moves no logit, unless allowed; E_STATE if the
/// no-op control is not exactly zero; E_VALUE for a text or ids that cannot be used, and where logits are not
/// finite.
Measurement measure(Transformer& model, const Documents& text, const MeasureOptions& options = {},
                    const Progress& progress = {});

/// The same for an edit that is not made: the base with `edited` (effective values by address or native name)
/// lent on top. What stands edited in the model plays no part.
Measurement measure(Transformer& model, const Documents& text, const Override::Vectors& edited,
                    const MeasureOptions& options = {}, const Progress& progress = {});

/// "float32", "bfloat16", "float64": the name in results.
std::string dtype_text(at::ScalarType dtype);

}  // namespace scalevec
