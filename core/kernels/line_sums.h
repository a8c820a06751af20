#pragma once

#include <cstdint>

namespace scalevec::kernels {

/// What the tracer needs of a weight before (w) and after (w + d) a step with gradient g: sums of products
/// over the rows of each column, or over the columns of each row.
struct LineSums {
  static constexpr int count = 6;
  enum Which { ww, wg, gg, wg_abs, dd, wd };  // wg_abs: of |w g|
};

/// The matrices, row-major; none is null.
template <class T>
struct LineSumsCall {
  const T* w;
  const T* after;  // w + d
  const T* g;
  std::int64_t columns;
};

/// Adds rows [begin, end) to out, [count][columns]. Sums of up to 64 rows run in T, their sum in double.
void column_sums(const LineSumsCall<float>& call, std::int64_t begin, std::int64_t end, double* out);
void column_sums(const LineSumsCall<double>& call, std::int64_t begin, std::int64_t end, double* out);

/// Writes rows [begin, end) of out, [count][rows].
void row_sums(const LineSumsCall<float>& call, std::int64_t begin, std::int64_t end, std::int64_t rows,
              double* out);
void row_sums(const LineSumsCall<double>& call, std::int64_t begin, std::int64_t end, std::int64_t rows,
              double* out);

}  // namespace scalevec::kernels
