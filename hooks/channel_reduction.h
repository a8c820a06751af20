#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

namespace scalevec {

/// Running figures of each channel over all rows that were added: count, sums, extremes. Keeps no rows. A
/// value type.
///
/// All tensors are (channels,), float64, on the device of the first rows. Count and extremes do not depend on
/// how the rows were split or ordered; a sum of n terms moves by at most 2 n 2^-53 times the sum of their
/// magnitudes. A NaN in a channel makes its figures NaN. Every figure is E_STATE before the first row.
class ChannelReduction {
 public:
  /// values: (..., channels), floating. E_SHAPE if the channels are not those of before; E_DTYPE.
  void add(const at::Tensor& values);
  /// Adds values * gradient; both (..., channels).
  void add_product(const at::Tensor& values, const at::Tensor& gradient);
  /// As if the other's rows had been added here.
  void merge(const ChannelReduction& other);

  /// Rows: tokens, times heads for q/k-norm.
  std::int64_t count() const { return count_; }
  at::Tensor sum() const;
  at::Tensor sum_of_squares() const;
  at::Tensor minimum() const;
  at::Tensor maximum() const;
  at::Tensor max_abs() const;
  at::Tensor mean() const;
  at::Tensor mean_square() const;

  /// Sum over rows of value * d loss / d value, and the rows in it. E_STATE if no backward pass brought a
  /// gradient.
  at::Tensor product() const;
  std::int64_t product_count() const { return product_count_; }

 private:
  const at::Tensor& need(const at::Tensor& figure) const;

  std::int64_t count_ = 0, product_count_ = 0;
  at::Tensor sum_, sum_of_squares_, minimum_, maximum_, product_;
};

}  // namespace scalevec
