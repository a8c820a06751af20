#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

#include <ATen/core/Tensor.h>

namespace scalevec {

/// What a training run goes on from.
struct TrainingState {
  std::map<std::string, at::Tensor> tensors;  // the optimizer's, F64, F32 or BF16
  std::map<std::string, at::Tensor> watched;  // the watcher's
  std::int64_t step = 0;
  std::string experiment;  // TOML
  std::string corpus;      // digest
};

/// Makes `folder`, whole or not at all: state.safetensors, whose metadata has the rest. E_PATH if it exists.
void write_state(const std::filesystem::path& folder, const TrainingState& state);
/// E_PATH, and the errors of a damaged safetensors file; E_SCHEMA for metadata that are not of a run.
TrainingState read_state(const std::filesystem::path& folder);

}  // namespace scalevec
