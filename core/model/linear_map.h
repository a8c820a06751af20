#pragma once

#include <optional>

#include <ATen/core/Tensor.h>

#include <scalevec/core/model/norm_layer.h>

namespace scalevec {

/// y = W x (+ b), and the norm or bare scale on its output where the spec has one.
struct LinearMap {
  at::Tensor weight;  // (out, in)
  at::Tensor bias;    // (out,), or undefined
  std::optional<NormLayer> output;

  /// x: (..., in). Returns (..., out). A vector shorter than `out` is one that heads share: it meets each in
  /// turn.
  at::Tensor operator()(const at::Tensor& x, const Watchers& watch) const;
};

}  // namespace scalevec
