#include <scalevec/core/kernels/line_sums.h>

#include <algorithm>
#include <cmath>

#include <scalevec/core/kernels/clones.h>

namespace scalevec::kernels {
namespace {

#define SCALEVEC_INLINE __attribute__((always_inline))

constexpr std::int64_t block = 64;  // rows, or entries of a lane, whose sum runs in T
// A group of rows passes through registers, strip by strip: read and written for every row, the sums would
// cost more than their arithmetic. No processor foresees such a walk, so that the next group is asked for
// meanwhile.
constexpr std::int64_t group = 4, strip = 32;
constexpr std::int64_t tile = 2048;  // columns whose sums stand on the stack, 115 KB of doubles
constexpr std::int64_t lanes = 32;   // of the sums over a row

using Sums = LineSums;

template <class T>
SCALEVEC_INLINE inline T inverse(T v, T root, T eps) {
  return T(1) / (root * std::sqrt(v) + eps);
}

// One entry's products, added to a sum of each kind.
template <class T>
SCALEVEC_INLINE inline void add(T w, T after, T g, T* __restrict sums) {
  const T d = after - w, wg = w * g;
  sums[Sums::ww] += w * w;
  sums[Sums::wg] += wg;
  sums[Sums::gg] += g * g;
  sums[Sums::wg_abs] += std::fabs(wg);
  sums[Sums::dd] += d * d;
  sums[Sums::wd] += w * d;
}

// `visit` of entries of `rows` rows and `width` columns from `at` on, with the sums of the column.
template <int rows, std::size_t length, class T, class Visit>
SCALEVEC_INLINE inline void add_strip(std::int64_t at, std::int64_t columns, std::int64_t width,
                                      T (*__restrict sums)[length], const Visit& visit) {
#pragma GCC ivdep
  for (std::int64_t j = 0; j < width; ++j) {
    T column[Sums::count];
    for (int k = 0; k < Sums::count; ++k) column[k] = sums[k][j];
    for (int row = 0; row < rows; ++row) visit(at + row * columns + j, column);
    for (int k = 0; k < Sums::count; ++k) sums[k][j] = column[k];
  }
}

// Asks for a strip of a group of rows.
template <class T, std::size_t count>
SCALEVEC_INLINE inline void ask(const T* const (&matrices)[count], std::int64_t at, std::int64_t columns) {
  for (const T* const matrix : matrices) {
    for (std::int64_t row = 0; row < group; ++row) {
      const T* const begin = matrix + at + row * columns;
      for (std::int64_t j = 0; j < strip; j += static_cast<std::int64_t>(64 / sizeof(T)))
        __builtin_prefetch(begin + j, 0, 2);
    }
  }
}

// Sums over the rows of each column; matrices: what `visit` reads.
template <class T, std::size_t count, class Visit>
SCALEVEC_INLINE inline void by_column(std::int64_t columns, std::int64_t begin, std::int64_t end, double* out,
                                      const T* const (&matrices)[count], const Visit& visit) {
  T sums[tile / strip][Sums::count][strip];
  for (std::int64_t first = begin; first < end; first += block) {
    const std::int64_t last = std::min(end, first + block);
    for (std::int64_t left = 0; left < columns; left += tile) {
      const std::int64_t width = std::min(tile, columns - left);
      std::fill_n(&sums[0][0][0], (width + strip - 1) / strip * Sums::count * strip, T(0));
      std::int64_t i = first;
      for (; i + group <= last; i += group) {
        const bool more = i + 2 * group <= end;
        for (std::int64_t j = 0; j + strip <= width; j += strip) {
          if (more) ask(matrices, (i + group) * columns + left + j, columns);
          add_strip<group>(i * columns + left + j, columns, strip, sums[j / strip], visit);
        }
        const std::int64_t j = width / strip * strip;
        if (j < width) add_strip<group>(i * columns + left + j, columns, width - j, sums[j / strip], visit);
      }
      for (; i < last; ++i) {
        for (std::int64_t j = 0; j < width; j += strip)
          add_strip<1>(i * columns + left + j, columns, std::min(strip, width - j), sums[j / strip], visit);
      }
      for (std::int64_t j = 0; j < width; j += strip) {
        for (int k = 0; k < Sums::count; ++k) {
          double* const __restrict to = out + k * columns + left + j;
          const T* const from = sums[j / strip][k];
          for (std::int64_t of = 0; of < std::min(strip, width - j); ++of)
            to[of] += static_cast<double>(from[of]);
        }
      }
    }
  }
}

template <class T>
SCALEVEC_INLINE inline void columns(const LineSumsCall<T>& call, std::int64_t begin, std::int64_t end,
                                    double* out) {
  const T *const w = call.w, *const after = call.after, *const g = call.g, *const v = call.v;
  const T root = call.root, eps = call.eps;
  if (v) {
    by_column<T>(call.columns, begin, end, out, {w, after, g, v},
                 [=](std::int64_t at, T* column) SCALEVEC_INLINE {
                   add(w[at], after[at], g[at], column);
                   column[Sums::inverse_root] += inverse(v[at], root, eps);
                 });
  } else {
    by_column<T>(call.columns, begin, end, out, {w, after, g},
                 [=](std::int64_t at, T* column) SCALEVEC_INLINE { add(w[at], after[at], g[at], column); });
  }
}

// Moves one entry.
struct Moved {
  float before, after, gradient, by;
};
SCALEVEC_INLINE inline Moved move(const AdamwCall& call, std::int64_t at) {
  const float before = call.w[at], gradient = call.g[at];
  const float first = call.m[at] + call.rest1 * (gradient - call.m[at]);
  const float second = call.beta2 * call.v[at] + call.rest2 * (gradient * gradient);
  const float by = inverse(second, call.root, call.eps);
  const float after = before * call.keep - call.rate * (first * by);
  call.m[at] = first;
  call.v[at] = second;
  call.w[at] = after;
  return {before, after, gradient, by};
}

template <class T>
SCALEVEC_INLINE inline void rows(const LineSumsCall<T>& call, std::int64_t begin, std::int64_t end,
                                 std::int64_t count, double* out) {
  const T *const w = call.w, *const after = call.after, *const g = call.g;
  const auto visit = [=](std::int64_t at, T* column)
                         SCALEVEC_INLINE { add(w[at], after[at], g[at], column); };
  T sums[Sums::count][lanes];
  for (std::int64_t i = begin; i < end; ++i) {
    double totals[Sums::count]{};
    for (std::int64_t left = 0; left < call.columns; left += block * lanes) {
      std::fill_n(&sums[0][0], Sums::count * lanes, T(0));
      std::int64_t at = i * call.columns + left;
      const std::int64_t last = std::min(at + block * lanes, (i + 1) * call.columns);
      for (; at + group * lanes <= last; at += group * lanes) add_strip<group>(at, lanes, lanes, sums, visit);
      for (; at < last; at += lanes) add_strip<1>(at, lanes, std::min(lanes, last - at), sums, visit);
      for (int k = 0; k < Sums::count; ++k) {
        double parts[8]{};
        for (std::int64_t j = 0; j < lanes; ++j) parts[j % 8] += static_cast<double>(sums[k][j]);
        for (const double part : parts) totals[k] += part;
      }
    }
    for (int k = 0; k < Sums::count; ++k) out[k * count + i] = totals[k];
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

SCALEVEC_CLONES void adamw(const AdamwCall& given, std::int64_t begin, std::int64_t end) {
  const AdamwCall call = given;  // which nothing that is written could be a part of
#pragma GCC ivdep
  for (std::int64_t at = begin * call.columns; at < end * call.columns; ++at) move(call, at);
}
SCALEVEC_CLONES void adamw_column_sums(const AdamwCall& given, std::int64_t begin, std::int64_t end,
                                       double* out) {
  const AdamwCall call = given;
  by_column<float>(call.columns, begin, end, out, {call.w, call.m, call.v, call.g},
                   [=](std::int64_t at, float* column) SCALEVEC_INLINE {
                     const Moved moved = move(call, at);
                     add(moved.before, moved.after, moved.gradient, column);
                     column[Sums::inverse_root] += moved.by;
                   });
}

}  // namespace scalevec::kernels
