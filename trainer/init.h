#pragma once

#include <cstdint>
#include <map>
#include <string>

#include <ATen/core/Tensor.h>

#include <scalevec/core/model_spec.h>

namespace scalevec {

struct InitOptions {
  std::uint64_t seed = 0;
  double std = 0.02;           // of weights and embedding
  bool scale_residual = true;  // o and down by 1 / sqrt(2 layers)
};

/// Tensors of a new model by slot, float32 on the CPU: weights normal, scale vectors effectively 1 (OR: alpha
/// 1, beta 1; ER: 0, 0), biases 0. A weight is a function of seed, slot and shape alone: models of two
/// strategies begin with the same maps.
std::map<std::string, at::Tensor> draw_tensors(const ModelSpec& spec, const InitOptions& options);

}  // namespace scalevec
