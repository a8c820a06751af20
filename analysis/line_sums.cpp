#include <scalevec/analysis/line_sums.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include <scalevec/core/parallel.h>

namespace scalevec {
namespace {

using kernels::LineSums;
constexpr std::int64_t chunk = ColumnSums::rows_of_a_task;

at::Tensor on_host(const at::Tensor& t, at::ScalarType dtype) {
  return t.detach().to(at::kCPU, dtype).reshape({-1, t.size(-1)}).contiguous();
}

at::ScalarType sum_dtype(const at::Tensor& t) {
  return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

template <class T>
Lines by_column(const at::Tensor& w, const at::Tensor& after, const at::Tensor& g,
                const SecondMoments& moments) {
  const at::Tensor v = moments.v.defined() ? on_host(moments.v, w.scalar_type()) : at::Tensor();
  const std::int64_t rows = w.size(0), columns = w.size(1), tasks = (rows + chunk - 1) / chunk;
  const kernels::LineSumsCall<T> call{w.const_data_ptr<T>(),
                                      after.const_data_ptr<T>(),
                                      g.const_data_ptr<T>(),
                                      columns,
                                      v.defined() ? v.const_data_ptr<T>() : nullptr,
                                      static_cast<T>(1.0 / std::sqrt(moments.correction)),
                                      static_cast<T>(moments.eps)};
  ColumnSums sums(rows, columns);
  at::parallel_for(0, tasks, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      kernels::column_sums(call, i * chunk, std::min(rows, (i + 1) * chunk), sums.place(i));
    }
  });
  return std::move(sums).total();
}

template <class T>
Lines by_row(const at::Tensor& w, const at::Tensor& after, const at::Tensor& g) {
  const std::int64_t rows = w.size(0);
  const kernels::LineSumsCall<T> call{w.const_data_ptr<T>(), after.const_data_ptr<T>(), g.const_data_ptr<T>(),
                                      w.size(1)};
  Lines sums(rows);
  at::parallel_for(0, rows, 64, [&](std::int64_t begin, std::int64_t end) {
    kernels::row_sums(call, begin, end, rows, sums.data());
  });
  return sums;
}

}  // namespace

Lines& Lines::operator+=(std::span<const double> values) {
  for (std::size_t i = 0; i < values_.size(); ++i) values_[i] += values[i];
  return *this;
}

ColumnSums::ColumnSums(std::int64_t rows, std::int64_t columns)
    : first_(columns), further_(std::max<std::int64_t>(0, (rows - 1) / rows_of_a_task)) {
  if (further_ > 0)
    parts_ =
        std::make_unique_for_overwrite<double[]>(static_cast<std::size_t>(further_) * first_.values().size());
}

double* ColumnSums::place(std::int64_t i) {
  if (i == 0) return first_.data();
  const std::size_t size = first_.values().size();
  double* const out = parts_.get() + static_cast<std::size_t>(i - 1) * size;
  std::fill_n(out, size, 0.0);
  return out;
}

Lines ColumnSums::total() && {
  const std::size_t size = first_.values().size();
  for (std::int64_t i = 0; i < further_; ++i)
    first_ += std::span(parts_.get() + static_cast<std::size_t>(i) * size, size);
  return std::move(first_);
}

Lines column_sums(const at::Tensor& before, const at::Tensor& after, const at::Tensor& gradient,
                  const SecondMoments& moments) {
  const at::ScalarType dtype = sum_dtype(before);
  const at::Tensor w = on_host(before, dtype), a = on_host(after, dtype), g = on_host(gradient, dtype);
  return dtype == at::kDouble ? by_column<double>(w, a, g, moments) : by_column<float>(w, a, g, moments);
}

Lines row_sums(const at::Tensor& before, const at::Tensor& after, const at::Tensor& gradient) {
  const at::ScalarType dtype = sum_dtype(before);
  const at::Tensor w = on_host(before, dtype), a = on_host(after, dtype), g = on_host(gradient, dtype);
  return dtype == at::kDouble ? by_row<double>(w, a, g) : by_row<float>(w, a, g);
}

}  // namespace scalevec
