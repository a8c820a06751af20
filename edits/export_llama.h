#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include <scalevec/core/checkpoint/checkpoint.h>
#include <scalevec/core/progress.h>

namespace scalevec {

struct LlamaReport {
  std::uint64_t folded = 0;       // linear maps that took a vector into their weights
  double largest_rounding = 0.0;  // |float32 - exact| / |exact| over all entries written
  std::string rounded_most;       // the native name of the tensor that has it; empty if nothing was rounded
  std::uint64_t files = 0, bytes = 0;
};

/// Writes a model of ours as the Hugging Face folder of a plain Llama of the same function, in float32.
///
/// Vectors that all readers of a norm share stay the norm's, as their effective values. Branch vectors go
/// into the columns of the maps that read them, and the norm gets ones; output scales go into rows. Products
/// are of float64 and rounded once. Builds no model; a piece of a tensor is in memory at a time.
///
/// E_CONFIG, naming the address, the reason and the way out, where no plain Llama has the same function:
/// norms behind linear maps, sandwich norms, mixtures of experts, a scaled head that is the embedding,
/// biases, windows. E_VALUE for a weight that is not finite. E_PATH if the destination is not empty.
LlamaReport export_llama(const Checkpoint& checkpoint, const std::filesystem::path& destination,
                         const Progress& progress = {});

}  // namespace scalevec
