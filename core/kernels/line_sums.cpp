#include <scalevec/core/kernels/line_sums.h>

#include <algorithm>
#include <cmath>

#include <scalevec/core/kernels/clones.h>

namespace scalevec::kernels {
namespace {

// Sums of a tile stay in the first cache while rows stream past; shorter pieces of rows would defeat
// prefetching.
constexpr std::int64_t tile = 640, block = 64;
constexpr std::int64_t lanes = 128;  // of the sums over a row

using Sums = LineSums;

template <class T>
inline __attribute__((always_inline)) T inverse(T v, T root, T eps) {
  return T(1) / (root * std::sqrt(v) + eps);
}

// One product of each kind for entry j, added to rows of sums.
template <std::size_t length, class T>
inline __attribute__((always_inline)) void add(T w, T after, T g, std::int64_t j,
                                               T (*__restrict sums)[length]) {
  const T d = after - w, wg = w * g;
  sums[Sums::ww][j] += w * w;
  sums[Sums::wg][j] += wg;
  sums[Sums::gg][j] += g * g;
  sums[Sums::wg_abs][j] += std::fabs(wg);
  sums[Sums::dd][j] += d * d;
  sums[Sums::wd][j] += w * d;
}

template <std::size_t length, class T>
inline __attribute__((always_inline)) void add_row(const T* __restrict w, const T* __restrict after,
                                                   const T* __restrict g, std::int64_t width,
                                                   T (*__restrict sums)[length]) {
  for (std::int64_t j = 0; j < width; ++j) add(w[j], after[j], g[j], j, sums);
}

template <class T>
inline __attribute__((always_inline)) void add_inverse_roots(const T* __restrict v, T root, T eps,
                                                             std::int64_t width, T* __restrict sums) {
  for (std::int64_t j = 0; j < width; ++j) sums[j] += inverse(v[j], root, eps);
}

// Sums of blocks of rows and tiles of columns: `add_row` adds those of one row from an entry on.
template <class T, class AddRow>
inline __attribute__((always_inline)) void by_blocks(std::int64_t columns, std::int64_t begin,
                                                     std::int64_t end, double* out, AddRow&& add_row) {
  T sums[Sums::count][tile];
  for (std::int64_t first = begin; first < end; first += block) {
    for (std::int64_t left = 0; left < columns; left += tile) {
      const std::int64_t width = std::min(tile, columns - left);
      for (auto& row : sums) std::fill(row, row + tile, T(0));
      for (std::int64_t i = first; i < std::min(end, first + block); ++i)
        add_row(i * columns + left, width, sums);
      for (int k = 0; k < Sums::count; ++k) {
        for (std::int64_t j = 0; j < width; ++j) {
          out[k * columns + left + j] += static_cast<double>(sums[k][j]);
        }
      }
    }
  }
}

template <class T>
inline __attribute__((always_inline)) void columns(const LineSumsCall<T>& call, std::int64_t begin,
                                                   std::int64_t end, double* out) {
  by_blocks<T>(call.columns, begin, end, out, [&](std::int64_t at, std::int64_t width, auto& sums) {
    add_row(call.w + at, call.after + at, call.g + at, width, sums);
    if (call.v) add_inverse_roots(call.v + at, call.root, call.eps, width, sums[Sums::inverse_root]);
  });
}

// Moves `width` entries from `at` on; their products go to `sums` where there are any.
template <bool with_sums>
inline __attribute__((always_inline)) void move_row(const AdamwCall& call, std::int64_t at,
                                                    std::int64_t width, float (*__restrict sums)[tile]) {
  float* __restrict w = call.w + at;
  float* __restrict m = call.m + at;
  float* __restrict v = call.v + at;
  const float* __restrict g = call.g + at;
  const float keep = call.keep, rest1 = call.rest1, beta2 = call.beta2, rest2 = call.rest2;
  const float rate = call.rate, root = call.root, eps = call.eps;
  for (std::int64_t j = 0; j < width; ++j) {
    const float before = w[j], gradient = g[j];
    const float first = m[j] + rest1 * (gradient - m[j]);
    const float second = beta2 * v[j] + rest2 * (gradient * gradient);
    const float by = inverse(second, root, eps);
    const float after = before * keep - rate * (first * by);
    m[j] = first;
    v[j] = second;
    w[j] = after;
    if constexpr (with_sums) {
      add(before, after, gradient, j, sums);
      sums[Sums::inverse_root][j] += by;
    }
  }
}

template <class T>
inline __attribute__((always_inline)) void rows(const LineSumsCall<T>& call, std::int64_t begin,
                                                std::int64_t end, std::int64_t count, double* out) {
  T sums[Sums::count][lanes];
  for (std::int64_t i = begin; i < end; ++i) {
    for (auto& row : sums) std::fill(row, row + lanes, T(0));
    for (std::int64_t left = 0; left < call.columns; left += lanes) {
      const std::int64_t width = std::min(lanes, call.columns - left), at = i * call.columns + left;
      add_row(call.w + at, call.after + at, call.g + at, width, sums);
    }
    for (int k = 0; k < Sums::count; ++k) {
      double sum = 0.0;
      for (std::int64_t j = 0; j < lanes; ++j) sum += static_cast<double>(sums[k][j]);
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

SCALEVEC_CLONES void adamw(const AdamwCall& call, std::int64_t begin, std::int64_t end) {
  move_row<false>(call, begin * call.columns, (end - begin) * call.columns, nullptr);
}
SCALEVEC_CLONES void adamw_column_sums(const AdamwCall& call, std::int64_t begin, std::int64_t end,
                                       double* out) {
  by_blocks<float>(call.columns, begin, end, out, [&](std::int64_t at, std::int64_t width, auto& sums) {
    move_row<true>(call, at, width, sums);
  });
}

}  // namespace scalevec::kernels
