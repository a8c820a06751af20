#pragma once

#include <ATen/core/Tensor.h>

#include <scalevec/core/model/routing.h>
#include <scalevec/core/model_spec.h>

namespace scalevec {

/// The routed experts of one layer. Each computes its own tokens, so the work is that of the active ones.
struct Mixture {
  MixtureSpec spec;
  Activation activation = Activation::silu;
  at::Tensor router;          // (experts, width)
  at::Tensor gate, up, down;  // (experts, out, in)

  /// What router, gate and up read: (..., width), one shape. Returns the same shape. Probabilities are
  /// float32, or float64 where the inputs are, so that bfloat16 makes no ties. The same bits for the same
  /// input, backward included, on the CPU. Fills `use` where given.
  at::Tensor operator()(const at::Tensor& router_input, const at::Tensor& gate_input,
                        const at::Tensor& up_input, RouterUse* use) const;
};

}  // namespace scalevec
