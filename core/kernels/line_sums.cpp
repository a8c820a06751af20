#include <scalevec/core/kernels/line_sums.h>

#include <algorithm>
#include <cmath>

#include <scalevec/core/kernels/clones.h>

namespace scalevec::kernels {
namespace {

constexpr std::int64_t tile = 128, block = 64;

// One product of each kind for entry j of a row, added to six rows of sums.
template <class T>
inline __attribute__((always_inline)) void add_row(const T* __restrict w, const T* __restrict after,
                                                   const T* __restrict g, std::int64_t width,
                                                   T (*__restrict sums)[tile]) {
  for (std::int64_t j = 0; j < width; ++j) {
    const T d = after[j] - w[j], wg = w[j] * g[j];
    sums[LineSums::ww][j] += w[j] * w[j];
    sums[LineSums::wg][j] += wg;
    sums[LineSums::gg][j] += g[j] * g[j];
    sums[LineSums::wg_abs][j] += wg < T(0) ? -wg : wg;
    sums[LineSums::dd][j] += d * d;
    sums[LineSums::wd][j] += w[j] * d;
  }
}

template <class T>
inline __attribute__((always_inline)) void columns(const LineSumsCall<T>& call, std::int64_t begin,
                                                   std::int64_t end, double* out) {
  T sums[LineSums::count][tile];
  for (std::int64_t left = 0; left < call.columns; left += tile) {
    const std::int64_t width = std::min(tile, call.columns - left);
    for (std::int64_t first = begin; first < end; first += block) {
      for (auto& row : sums) std::fill(row, row + tile, T(0));
      for (std::int64_t i = first; i < std::min(end, first + block); ++i) {
        const std::int64_t at = i * call.columns + left;
        add_row(call.w + at, call.after + at, call.g + at, width, sums);
      }
      for (int k = 0; k < LineSums::count; ++k) {
        for (std::int64_t j = 0; j < width; ++j) {
          out[k * call.columns + left + j] += static_cast<double>(sums[k][j]);
        }
      }
    }
  }
}

template <class T>
inline __attribute__((always_inline)) void rows(const LineSumsCall<T>& call, std::int64_t begin,
                                                std::int64_t end, std::int64_t count, double* out) {
  T sums[LineSums::count][tile];
  for (std::int64_t i = begin; i < end; ++i) {
    for (auto& row : sums) std::fill(row, row + tile, T(0));
    for (std::int64_t left = 0; left < call.columns; left += tile) {
      const std::int64_t width = std::min(tile, call.columns - left), at = i * call.columns + left;
      add_row(call.w + at, call.after + at, call.g + at, width, sums);
    }
    for (int k = 0; k < LineSums::count; ++k) {
      double sum = 0.0;
      for (std::int64_t j = 0; j < tile; ++j) sum += static_cast<double>(sums[k][j]);
      out[k * count + i] = sum;
    }
  }
}

}  // namespace

SCALEVEC_CLONES void column_sums(const LineSumsCall<float>& call, std::int64_t begin, std::int64_t end,
                                 double* out) {
  columns(call, begin, end, out);
}
SCALEVEC_CLONES void column_sums(const LineSumsCall<double>& call, std::int64_t begin, std::int64_t end,
                                 double* out) {
  columns(call, begin, end, out);
}
SCALEVEC_CLONES void row_sums(const LineSumsCall<float>& call, std::int64_t begin, std::int64_t end,
                              std::int64_t count, double* out) {
  rows(call, begin, end, count, out);
}
SCALEVEC_CLONES void row_sums(const LineSumsCall<double>& call, std::int64_t begin, std::int64_t end,
                              std::int64_t count, double* out) {
  rows(call, begin, end, count, out);
}

}  // namespace scalevec::kernels
