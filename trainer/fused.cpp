#include <scalevec/trainer/fused.h>

#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/full.h>

namespace scalevec::fused {

void adamw(const std::vector<at::Tensor>& parameters, const std::vector<at::Tensor>& gradients,
           const std::vector<at::Tensor>& exp_avg, const std::vector<at::Tensor>& exp_avg_sq, double step,
           double rate, double beta1, double beta2, double eps, double weight_decay) {
  const std::vector<at::Tensor> steps(
      parameters.size(), at::full({}, step, at::TensorOptions(parameters[0].device()).dtype(at::kFloat)));
  at::_fused_adamw_(parameters, gradients, exp_avg, exp_avg_sq, {}, steps, rate, beta1, beta2, weight_decay,
                    eps, /*amsgrad=*/false, /*maximize=*/false);
  // The kernel counts no version, by which others tell that what they derived from a tensor is stale.
  for (const at::Tensor& parameter : parameters) parameter.unsafeGetTensorImpl()->bump_version();
}

}  // namespace scalevec::fused
