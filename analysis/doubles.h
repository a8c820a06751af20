#pragma once

#include <vector>

#include <ATen/core/Tensor.h>

namespace scalevec {

/// A tensor's values, row-major, whatever its dtype and device.
std::vector<double> doubles_of(const at::Tensor& tensor);
/// (values.size(),), float64, on the host.
at::Tensor tensor_of(const std::vector<double>& values);

}  // namespace scalevec
