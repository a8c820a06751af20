#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include <scalevec/core/checkpoint/checkpoint.h>
#include <scalevec/core/progress.h>

namespace scalevec {

/// One vector that became plain.
struct MaterialisedVector {
  std::string address;
  Parametrisation form = Parametrisation::plain;  // before
  std::string before, after;                      // digests
  double largest_rounding = 0.0;                  // |effective value - what is stored now|
};

struct MaterialiseReport {
  std::vector<MaterialisedVector> vectors;
  std::uint64_t files = 0, bytes = 0;
};

/// Writes a copy of a model of ours, as the folder `destination`, in which the selected vectors that were
/// functions of components (OR, ER) are plain: their effective values, computed in float64 and rounded once
/// to the dtype of alpha. Edits work on them from then on. Which they were stands in the metadata of the
/// safetensors file, under "scalevec.materialised", as JSON. Builds no model.
///
/// E_ADDR as Selector, for a selector of channels, and for one that names some branches of a norm and not the
/// others, since the form is the norm's. E_NO_EFFECT if none of the selected has components. E_VALUE for an
/// effective value that is not finite or overflows the dtype. E_PATH if the destination is not empty.
MaterialiseReport materialise(const Checkpoint& checkpoint, std::string_view selector,
                              const std::filesystem::path& destination, const Progress& progress = {});

}  // namespace scalevec
