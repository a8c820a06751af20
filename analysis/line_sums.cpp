#include <scalevec/analysis/line_sums.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include <scalevec/core/parallel.h>

namespace scalevec {
namespace {

using kernels::LineSums;
constexpr std::int64_t chunk = rows_of_a_task;

at::Tensor on_host(const at::Tensor& t, at::ScalarType dtype) {
  return t.detach().to(at::kCPU, dtype).reshape({-1, t.size(-1)}).contiguous();
}

at::ScalarType sum_dtype(const at::Tensor& t) {
  return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

Lines split(const std::vector<double>& sums, std::int64_t lines) {
  Lines out;
  for (std::size_t k = 0; k < out.size(); ++k) {
    const auto first = sums.begin() + static_cast<std::ptrdiff_t>(k) * lines;
    out[k].assign(first, first + lines);
  }
  return out;
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
  const auto size = static_cast<std::size_t>(LineSums::count * columns);
  std::vector<double> parts(size * static_cast<std::size_t>(tasks));
  at::parallel_for(0, tasks, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      kernels::column_sums(call, i * chunk, std::min(rows, (i + 1) * chunk),
                           parts.data() + static_cast<std::size_t>(i) * size);
    }
  });
  return added(std::move(parts), columns);
}

template <class T>
Lines by_row(const at::Tensor& w, const at::Tensor& after, const at::Tensor& g) {
  const std::int64_t rows = w.size(0);
  const kernels::LineSumsCall<T> call{w.const_data_ptr<T>(), after.const_data_ptr<T>(), g.const_data_ptr<T>(),
                                      w.size(1)};
  std::vector<double> sums(static_cast<std::size_t>(LineSums::count * rows));
  at::parallel_for(0, rows, 64, [&](std::int64_t begin, std::int64_t end) {
    kernels::row_sums(call, begin, end, rows, sums.data());
  });
  return split(sums, rows);
}

}  // namespace

Lines added(std::vector<double> parts, std::int64_t columns) {
  const auto size = static_cast<std::size_t>(LineSums::count * columns);
  parts.resize(std::max(parts.size(), size));  // of no rows
  for (std::size_t part = size; part < parts.size(); part += size) {
    for (std::size_t i = 0; i < size; ++i) parts[i] += parts[part + i];
  }
  return split(parts, columns);
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
