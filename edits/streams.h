#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include <scalevec/analysis/windows.h>
#include <scalevec/core/model/transformer.h>
#include <scalevec/core/progress.h>
#include <scalevec/edits/behaviour.h>
#include <scalevec/hooks/override.h>

namespace scalevec {

/// Vectors of the map that the model does not run with as it stands: edited in place, or lent by somebody.
std::vector<std::size_t> touched_vectors(Transformer& model);

/// The base's effective values of vector `index`.
at::Tensor base_effective(const ScaleMap& scales, std::size_t index);

/// What to lend so that the model runs with its base: the base of every touched vector.
Override::Vectors base_stream(Transformer& model);

/// The base of every plain vector, sent the way of an edit: to effective float64, rounded back into the
/// stored dtype, to effective again. A no-op: the model must answer as with its base, to the bit.
Override::Vectors no_op_stream(Transformer& model);

/// Runs windows [first, last) with the vectors of `base` lent, and with those of each variant, and adds what
/// the logits say to the variant's Behaviour. The base runs once for all, and a variant from the layer where
/// it first differs. Logits exist for a few rows at a time, 64 MB in each stream whatever the text and the
/// vocabulary; hidden states for one window and all variants.
void compare_streams(Transformer& model, const Windows& windows, std::size_t first, std::size_t last,
                     const Override::Vectors& base, std::span<const Override::Vectors> variants,
                     std::span<Behaviour> behaviours, const Progress& progress = {});

}  // namespace scalevec
