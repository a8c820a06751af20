#pragma once

#include <functional>
#include <vector>

#include <ATen/core/Tensor.h>

namespace scalevec {

/// Gradients of an operation's inputs for the gradient of its output. `saved`: as given to `differentiable`;
/// `wanted[i]`: whether input i needs one (others may stay undefined).
///
/// Runs with grad mode on when the caller differentiates again (create_graph): a kernel on raw pointers must
/// then give way to differentiable operators.
using Backward = std::function<std::vector<at::Tensor>(
    const at::Tensor& grad, const std::vector<at::Tensor>& saved, const std::vector<bool>& wanted)>;

/// Makes `output`, computed from `inputs` outside autograd, part of their graph. Returns it unchanged, and
/// forgets `saved`, where no gradient is being recorded. `saved` tensors that are written before the backward
/// pass are detected, as autograd does for its own operators. `name` is what print(tensor.grad_fn) shows.
at::Tensor differentiable(const char* name, at::Tensor output, const std::vector<at::Tensor>& inputs,
                          const std::vector<at::Tensor>& saved, Backward backward);

}  // namespace scalevec
