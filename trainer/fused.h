#pragma once

#include <vector>

#include <ATen/core/Tensor.h>

namespace scalevec::fused {

/// torch.optim.AdamW's and SGD's own kernels, over many tensors at once. `step` counts from 1.
void adamw(const std::vector<at::Tensor>& parameters, const std::vector<at::Tensor>& gradients,
           const std::vector<at::Tensor>& exp_avg, const std::vector<at::Tensor>& exp_avg_sq, double step,
           double rate, double beta1, double beta2, double eps, double weight_decay);

}  // namespace scalevec::fused
