#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include <scalevec/core/checkpoint/write_model.h>
#include <scalevec/core/model_spec.h>
#include <scalevec/core/progress.h>

namespace scalevec {

struct SaveOptions {
  /// What linear maps and embeddings are rounded to, kFloat or kBFloat16; as they are by default.
  /// Scale vectors always keep their dtype.
  std::optional<at::ScalarType> weights = {};
  std::vector<std::filesystem::path> files = {};     // copied under their own names, as tokenizer.json
  std::map<std::string, std::string> metadata = {};  // of the safetensors file
};

/// A tensor on its way to a file, F64, F32, F16 or BF16 (E_DTYPE), any device; `as`: rounded to.
NewTensor new_tensor(const std::string& name, const at::Tensor& tensor,
                     std::optional<at::ScalarType> as = {});

/// Writes a model of ours (core/checkpoint/own_model.h) as the folder `folder`, whole or not at all.
///
/// slots: exactly those of spec.tensor_slots(), F64, F32, F16 or BF16, any device; one is on the host at a
/// time. E_PATH if the folder exists and is not empty; E_CONFIG, E_SHAPE, E_DTYPE as the Transformer's, and
/// for a spec that is not of family scalevec.
void save_model(const std::filesystem::path& folder, const ModelSpec& spec,
                const std::map<std::string, at::Tensor>& slots, const SaveOptions& options = {},
                const Progress& progress = {});

}  // namespace scalevec
