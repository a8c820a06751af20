// core/ops.h: the ATen functions in use that are no methods of Tensor. ATen's own headers for them bring its
// whole context along, at four CPU-seconds for each source that includes one; only ops.cpp does. Shapes,
// dtypes and errors are torch's.
#pragma once

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include <ATen/core/Tensor.h>

namespace scalevec::ops {

/// torch.empty: the values are whatever was there.
at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options);
/// torch.cat.
at::Tensor cat(const std::vector<at::Tensor>& tensors, std::int64_t dim);
/// torch.nn.functional.linear; `bias` may be undefined. In float32, many rows are multiplied by whichever of
/// MKL and oneDNN is faster on this processor.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);
/// torch.nn.functional.embedding.
at::Tensor embedding(const at::Tensor& table, const at::Tensor& ids);
/// torch.nn.functional.silu, into x itself where `in_place`.
at::Tensor silu(at::Tensor x, bool in_place);
/// torch.nn.functional.gelu(approximate="tanh"), into x itself where `in_place`.
at::Tensor gelu_tanh(at::Tensor x, bool in_place);
/// torch.nn.functional.scaled_dot_product_attention without dropout; q (batch, heads, queries, width), k and
/// v (batch, kv heads, keys, width). `grouped`: fewer key-value heads than heads.
at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const std::optional<at::Tensor>& mask, bool causal, double scale, bool grouped);

/// torch.linalg.eigvalsh: ascending; reads the lower triangle.
at::Tensor symmetric_eigenvalues(const at::Tensor& matrix);
/// torch.linalg.eigh: the same with the vectors, columns of the second.
std::tuple<at::Tensor, at::Tensor> symmetric_eigen(const at::Tensor& matrix);

/// A step of torch.optim.AdamW, by its fused kernel, on many tensors of one device; `step` counts from 1.
/// Unlike the kernel it counts a version of each parameter, by which others tell that what they derived from
/// it is stale.
void adamw(const std::vector<at::Tensor>& parameters, const std::vector<at::Tensor>& gradients,
           const std::vector<at::Tensor>& exp_avg, const std::vector<at::Tensor>& exp_avg_sq, double step,
           double rate, double beta1, double beta2, double eps, double weight_decay);

}  // namespace scalevec::ops
