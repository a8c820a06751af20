#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include <scalevec/core/checkpoint/checkpoint.h>
#include <scalevec/core/progress.h>
#include <scalevec/edits/edit.h>

namespace scalevec {

/// What was written.
struct ExportReport {
  std::uint64_t files = 0;          // made in the destination
  std::uint64_t bytes = 0;          // in them
  std::uint64_t vectors = 0;        // edited
  std::uint64_t bytes_changed = 0;  // that differ from the source
  std::vector<std::string> warnings;
};

/// Writes a copy of the model in which only the edited bytes differ; builds no model, and of the tensors
/// reads only the vectors that the edit selects. The copy appears whole or not at all, and is read back
/// before it gets its name.
///
/// A GGUF or .safetensors file becomes the file `destination`, or, where that ends in a slash or is an empty
/// folder, a file of the same name in it (beside a .safetensors file its config.json). A folder becomes a
/// folder, with all its files except .git and .cache; links become files.
///
/// E_PATH: the destination exists and is not empty, is the source or inside it, or cannot be written.
/// E_BUNDLE: the edit was made on another base; E_STATE: it is applied there already, or the source changed.
/// E_QUANT: a vector is stored quantised. E_IO: the system refused, nothing was made.
ExportReport export_edited(const Checkpoint& checkpoint, const Edit& edit,
                           const std::filesystem::path& destination, const Progress& progress = {});

/// Writes a copy of an exported model with the old bytes put back: the same SHA-256 as the model that was
/// exported. Errors as above, with the edit's end in place of its base.
ExportReport revert_export(const Checkpoint& exported, const Edit& edit,
                           const std::filesystem::path& destination, const Progress& progress = {});

}  // namespace scalevec
