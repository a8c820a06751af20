#pragma once

#include <array>
#include <vector>

#include <ATen/core/Tensor.h>

#include <scalevec/core/kernels/line_sums.h>

namespace scalevec {

/// Sums of each column, or of each row, of a linear map: [LineSums::Which][line].
using Lines = std::array<std::vector<double>, kernels::LineSums::count>;

/// Adam's second moments of a map after a step, v / correction; undefined: none.
struct SecondMoments {
  at::Tensor v;
  double correction = 1, eps = 0;
};

/// before, after, gradient: (rows, columns), or (experts, rows, columns), whose experts' sums are added
/// for columns and follow one another for rows. Float32 or float64 on the CPU in one pass, anything else
/// converted. The same bits for any number of threads.
Lines column_sums(const at::Tensor& before, const at::Tensor& after, const at::Tensor& gradient,
                  const SecondMoments& moments = {});
Lines row_sums(const at::Tensor& before, const at::Tensor& after, const at::Tensor& gradient);

/// Rows that one task sums: what tasks have found is added in their order.
inline constexpr std::int64_t rows_of_a_task = 512;
/// Of what tasks have summed, [task][LineSums::Which][column].
Lines added(std::vector<double> parts, std::int64_t columns);

}  // namespace scalevec
