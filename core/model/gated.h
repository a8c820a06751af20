#pragma once

#include <ATen/core/Tensor.h>

#include <scalevec/core/model_spec.h>

namespace scalevec {

/// activation(gate) * up, into `gate` itself where `in_place`.
at::Tensor gated(Activation activation, at::Tensor gate, const at::Tensor& up, bool in_place);

}  // namespace scalevec
