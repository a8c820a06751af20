#include <scalevec/core/ops.h>

#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/linalg_eigh.h>
#include <ATen/ops/linalg_eigvalsh.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/silu.h>

namespace scalevec::ops {

at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  return at::empty(sizes, options);
}

at::Tensor cat(const std::vector<at::Tensor>& tensors, std::int64_t dim) { return at::cat(tensors, dim); }

at::Tensor embedding(const at::Tensor& table, const at::Tensor& ids) { return at::embedding(table, ids); }

at::Tensor silu(at::Tensor x, bool in_place) { return in_place ? at::silu_(x) : at::silu(x); }

at::Tensor gelu_tanh(at::Tensor x, bool in_place) {
  return in_place ? at::gelu_(x, "tanh") : at::gelu(x, "tanh");
}

at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const std::optional<at::Tensor>& mask, bool causal, double scale, bool grouped) {
  return at::scaled_dot_product_attention(q, k, v, mask, /*dropout_p=*/0.0, causal, scale, grouped);
}

at::Tensor symmetric_eigenvalues(const at::Tensor& matrix) { return at::linalg_eigvalsh(matrix, "L"); }

std::tuple<at::Tensor, at::Tensor> symmetric_eigen(const at::Tensor& matrix) {
  return at::linalg_eigh(matrix, "L");
}

void adamw(const std::vector<at::Tensor>& parameters, const std::vector<at::Tensor>& gradients,
           const std::vector<at::Tensor>& exp_avg, const std::vector<at::Tensor>& exp_avg_sq, double step,
           double rate, double beta1, double beta2, double eps, double weight_decay) {
  const at::Tensor count = empty({}, at::TensorOptions(parameters[0].device()).dtype(at::kFloat)).fill_(step);
  const std::vector<at::Tensor> steps(parameters.size(), count);
  at::_fused_adamw_(parameters, gradients, exp_avg, exp_avg_sq, {}, steps, rate, beta1, beta2, weight_decay,
                    eps, /*amsgrad=*/false, /*maximize=*/false);
  for (const at::Tensor& parameter : parameters) parameter.unsafeGetTensorImpl()->bump_version();
}

}  // namespace scalevec::ops
