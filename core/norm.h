#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

#include <scalevec/core/site.h>

namespace scalevec {

/// Parts of a norm's work that a watcher may ask for; detached from autograd's graph.
struct NormParts {
  bool want_rms = false, want_normalized = false;
  at::Tensor rms = {};         // (..., groups): the denominator; ones where Statistics::none
  at::Tensor normalized = {};  // x's shape: before vector and bias
};

/// The dtype in which norms of activations of `activation` dtype are computed: float64 for float64, else
/// float32.
at::ScalarType norm_dtype(at::ScalarType activation);

/// x / sqrt(mean(x^2) + eps) * g, the mean over each `group` entries of the last dimension (0: all of it).
///
/// x: (..., width), F32, BF16 or F64. g: (width,) in norm_dtype(x), or undefined for none; broadcast over the
/// leading dimensions. Returns x's shape and dtype, rounded once. Differentiable twice in x and g; one fused
/// pass over memory, whether parts are wanted or not. E_SHAPE, E_DTYPE.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& g, double eps, std::int64_t group = 0,
                    NormParts* parts = nullptr);

/// Any norm of this library: `statistics`, then the factor g, then the bias, both (width,) or undefined.
///
/// `parts`, where given, receives what it wants. In the dtype of norms, normalized * g (+ bias) is the result
/// before its one rounding, bit for bit.
at::Tensor apply_norm(Statistics statistics, const at::Tensor& x, const at::Tensor& g, const at::Tensor& bias,
                      double eps, std::int64_t group = 0, NormParts* parts = nullptr);

}  // namespace scalevec
