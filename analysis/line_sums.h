#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

#include <scalevec/core/kernels/line_sums.h>

namespace scalevec {

/// Sums of each column, or of each row, of a linear map: [LineSums::Which][line].
class Lines {
 public:
  Lines() = default;
  explicit Lines(std::int64_t lines) : values_(kernels::LineSums::count * static_cast<std::size_t>(lines)) {}

  std::size_t size() const { return values_.size() / kernels::LineSums::count; }
  std::span<const double> operator[](std::size_t which) const {
    return values().subspan(which * size(), size());
  }
  std::span<const double> values() const { return values_; }
  double* data() { return values_.data(); }
  /// Entry by entry, of as many lines.
  Lines& operator+=(std::span<const double> values);
  bool operator==(const Lines&) const = default;

 private:
  std::vector<double> values_;
};

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

/// The column sums of a map, by tasks that may run at once: each has a place of its own, and they are added
/// in their order.
class ColumnSums {
 public:
  static constexpr std::int64_t rows_of_a_task = 1024;

  ColumnSums(std::int64_t rows, std::int64_t columns);
  /// Where task i adds its rows' sums, zeros until then: by the task itself, which has the memory at hand
  /// then.
  double* place(std::int64_t i);
  /// When all are done.
  Lines total() &&;

 private:
  Lines first_;  // of the first task, and then of all: most maps have one
  std::int64_t further_;
  std::unique_ptr<double[]> parts_;  // of the further ones
};

}  // namespace scalevec
