#include <scalevec/analysis/doubles.h>

#include <algorithm>

#include <scalevec/core/ops.h>

namespace scalevec {

std::vector<double> doubles_of(const at::Tensor& tensor) {
  if (tensor.is_cpu() && tensor.scalar_type() == at::kFloat && tensor.is_contiguous()) {
    const float* const p = tensor.const_data_ptr<float>();
    return {p, p + tensor.numel()};
  }
  const at::Tensor host = tensor.detach().to(at::TensorOptions(at::kCPU).dtype(at::kDouble)).contiguous();
  const double* const p = host.const_data_ptr<double>();
  return {p, p + host.numel()};
}

at::Tensor tensor_of(const std::vector<double>& values) {
  at::Tensor out = ops::empty({static_cast<std::int64_t>(values.size())}, at::kDouble);
  std::copy(values.begin(), values.end(), out.mutable_data_ptr<double>());
  return out;
}

}  // namespace scalevec
