#pragma once

#include <cstdint>
#include <initializer_list>
#include <random>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>

/// Small tensors without ATen's function headers, which cost four CPU seconds each.
inline at::Tensor tensor(std::vector<double> values, at::IntArrayRef shape,
                         at::ScalarType dtype = at::kDouble) {
  return at::from_blob(values.data(), shape, at::TensorOptions(at::kDouble))
      .to(at::TensorOptions(dtype), /*non_blocking=*/false, /*copy=*/true);
}

inline at::Tensor vector_of(std::initializer_list<double> values, at::ScalarType dtype = at::kDouble) {
  return tensor(values, {static_cast<std::int64_t>(values.size())}, dtype);
}

/// Normal values from a seed, the same on every machine.
inline at::Tensor normal(at::IntArrayRef shape, unsigned seed, at::ScalarType dtype = at::kDouble,
                         double mean = 0.0, double deviation = 1.0) {
  std::mt19937 source(seed);
  std::int64_t count = 1;
  for (const std::int64_t size : shape) count *= size;
  std::vector<double> values(static_cast<std::size_t>(count));
  // The sum of twelve uniform numbers: std::normal_distribution differs between standard libraries.
  for (double& value : values) {
    double sum = -6.0;
    for (int i = 0; i < 12; ++i) sum += static_cast<double>(source()) / 4294967296.0;
    value = mean + deviation * sum;
  }
  return tensor(std::move(values), shape, dtype);
}
