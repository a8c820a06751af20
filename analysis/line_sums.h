#pragma once

#include <array>
#include <vector>

#include <ATen/core/Tensor.h>

#include <scalevec/core/kernels/line_sums.h>

namespace scalevec {

/// Sums of each column, or of each row, of a linear map: [LineSums::Which][line].
using Lines = std::array<std::vector<double>, kernels::LineSums::count>;

/// before, after, gradient: (rows, columns), or (experts, rows, columns), whose experts' sums are added
/// for columns and follow one another for rows. Float32 or float64 on the CPU in one pass, anything else
/// converted. The same bits for any number of threads.
Lines column_sums(const at::Tensor& before, const at::Tensor& after, const at::Tensor& gradient);
Lines row_sums(const at::Tensor& before, const at::Tensor& after, const at::Tensor& gradient);

}  // namespace scalevec
