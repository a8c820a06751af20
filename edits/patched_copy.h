#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include <scalevec/core/checkpoint/checkpoint.h>
#include <scalevec/core/progress.h>
#include <scalevec/edits/export.h>

namespace scalevec {

/// New bytes for one tensor of a checkpoint: all of it before and after, of which only what differs is
/// written.
struct Patch {
  TensorInfo tensor;
  std::vector<std::byte> before, after;
};

/// Copies the checkpoint to `destination`, as export_edited says, with these tensors changed.
ExportReport write_patched_copy(const Checkpoint& checkpoint, const std::vector<Patch>& patches,
                                const std::filesystem::path& destination, const Progress& progress);

}  // namespace scalevec
