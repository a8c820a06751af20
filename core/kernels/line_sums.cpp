#include <scalevec/core/kernels/line_sums.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include <scalevec/core/kernels/clones.h>

namespace scalevec::kernels {
namespace {

#define SCALEVEC_INLINE __attribute__((always_inline))

constexpr std::int64_t block = 128;  // rows, or entries of a lane, whose sum runs in T
constexpr std::int64_t tile = 2048;  // columns whose sums stand on the stack, 115 KB of doubles
// Bytes before they are needed: what a processor asks for by itself comes too late, where it computes this
// much besides.
constexpr std::int64_t ahead = 8 << 10;

// Not wider, where wider ones are: memory is what it waits for, and each line is asked for twice, which loses
// fewer. Loops over rows and columns that a compiler makes vectors of are a fifth slower.
template <class T>
using Vector [[gnu::vector_size(32)]] = T;
template <class T>
constexpr std::int64_t lanes = sizeof(Vector<T>) / sizeof(T);

using Sums = LineSums;

// The first `count` lanes; the others are 0.
template <class V, class T>
SCALEVEC_INLINE inline void load(V& to, const T* from, std::int64_t count) {
  const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
  if (bytes < sizeof to) to = V{};
  std::memcpy(&to, from, bytes);
}
template <class V, class T>
SCALEVEC_INLINE inline void store(T* to, const V& from, std::int64_t count) {
  std::memcpy(to, &from, static_cast<std::size_t>(count) * sizeof(T));
}

// 1 / (root sqrt(of) + eps)
template <class V, class T>
SCALEVEC_INLINE inline void invert(V& of, T root, T eps) {
  if constexpr (std::is_same_v<V, T>) {
    of = std::sqrt(of);
  } else {
    for (std::int64_t i = 0; i < lanes<T>; ++i) of[i] = std::sqrt(of[i]);
  }
  of = T(1) / (root * of + eps);
}

// Products of entries, added to a sum of each kind.
template <class T>
SCALEVEC_INLINE inline void add(const Vector<T>& w, const Vector<T>& after, const Vector<T>& g,
                                Vector<T>* sums) {
  const Vector<T> d = after - w, wg = w * g;
  Vector<T> wg_abs;
  for (std::int64_t i = 0; i < lanes<T>; ++i) wg_abs[i] = std::fabs(wg[i]);
  sums[Sums::ww] += w * w;
  sums[Sums::wg] += wg;
  sums[Sums::gg] += g * g;
  sums[Sums::wg_abs] += wg_abs;
  sums[Sums::dd] += d * d;
  sums[Sums::wd] += w * d;
}

// Sums over the rows of each column; matrices: what `visit` reads.
template <class T, std::size_t count, class Visit>
SCALEVEC_INLINE inline void by_column(std::int64_t columns, std::int64_t begin, std::int64_t end, double* out,
                                      const T* const (&matrices)[count], const Visit& visit) {
  Vector<T> sums[tile / lanes<T>][Sums::count];
  for (std::int64_t first = begin; first < end; first += block) {
    const std::int64_t last = std::min(end, first + block);
    for (std::int64_t left = 0; left < columns; left += tile) {
      const std::int64_t width = std::min(tile, columns - left);
      std::memset(sums, 0, static_cast<std::size_t>((width + lanes<T> - 1) / lanes<T>) * sizeof sums[0]);
      for (std::int64_t i = first; i < last; ++i) {
        const std::int64_t row = i * columns + left;
        std::int64_t j = 0;
        for (; j + lanes<T> <= width; j += lanes<T>) {
          for (const T* const matrix : matrices)
            __builtin_prefetch(reinterpret_cast<const char*>(matrix + row + j) + ahead, 0, 2);
          // Read before what `visit` writes, with which their addresses may agree in the bits first compared.
          Vector<T> column[Sums::count];
          for (int k = 0; k < Sums::count; ++k) column[k] = sums[j / lanes<T>][k];
          visit(row + j, lanes<T>, column);
          for (int k = 0; k < Sums::count; ++k) sums[j / lanes<T>][k] = column[k];
        }
        if (j < width) visit(row + j, width - j, sums[j / lanes<T>]);
      }
      for (std::int64_t j = 0; j < width; j += lanes<T>) {
        for (int k = 0; k < Sums::count; ++k) {
          double* const __restrict to = out + k * columns + left + j;
          const T* const from = reinterpret_cast<const T*>(&sums[j / lanes<T>][k]);
          for (std::int64_t of = 0; of < std::min(lanes<T>, width - j); ++of)
            to[of] += static_cast<double>(from[of]);
        }
      }
    }
  }
}

// `visit` of a matrix before and after a step and of its gradient.
template <class T>
SCALEVEC_INLINE inline auto products(const LineSumsCall<T>& call) {
  return [w = call.w, after = call.after, g = call.g](std::int64_t at, std::int64_t width, Vector<T>* sums)
             SCALEVEC_INLINE {
               Vector<T> before, behind, gradient;
               load(before, w + at, width);
               load(behind, after + at, width);
               load(gradient, g + at, width);
               add<T>(before, behind, gradient, sums);
             };
}

template <class T>
SCALEVEC_INLINE inline void columns(const LineSumsCall<T>& call, std::int64_t begin, std::int64_t end,
                                    double* out) {
  const auto visit = products(call);
  if (!call.v) {
    by_column<T>(call.columns, begin, end, out, {call.w, call.after, call.g}, visit);
    return;
  }
  by_column<T>(call.columns, begin, end, out, {call.w, call.after, call.g, call.v},
               [visit, v = call.v, root = call.root, eps = call.eps](std::int64_t at, std::int64_t width,
                                                                     Vector<T>* sums) SCALEVEC_INLINE {
                 visit(at, width, sums);
                 Vector<T> by;
                 load(by, v + at, width);
                 invert(by, root, eps);
                 sums[Sums::inverse_root] += by;
               });
}

// Moves an entry, or a vector of them.
template <class V>
struct Moved {
  V before, after, gradient, by;
};
template <class V>
SCALEVEC_INLINE inline void move(const AdamwCall& call, std::int64_t at, std::int64_t width, Moved<V>& out) {
  V first, second;
  load(out.before, call.w + at, width);
  load(out.gradient, call.g + at, width);
  load(first, call.m + at, width);
  load(second, call.v + at, width);
  first += call.rest1 * (out.gradient - first);
  second = call.beta2 * second + call.rest2 * (out.gradient * out.gradient);
  out.by = second;
  invert(out.by, call.root, call.eps);
  out.after = out.before * call.keep - call.rate * (first * out.by);
  store(call.m + at, first, width);
  store(call.v + at, second, width);
  store(call.w + at, out.after, width);
}

template <class T>
SCALEVEC_INLINE inline void rows(const LineSumsCall<T>& call, std::int64_t begin, std::int64_t end,
                                 std::int64_t count, double* out) {
  const auto visit = products(call);
  for (std::int64_t i = begin; i < end; ++i) {
    double totals[Sums::count]{};
    for (std::int64_t left = 0; left < call.columns; left += block * lanes<T>) {
      Vector<T> sums[Sums::count]{};
      std::int64_t at = i * call.columns + left;
      const std::int64_t last = std::min(at + block * lanes<T>, (i + 1) * call.columns);
      for (; at + lanes<T> <= last; at += lanes<T>) visit(at, lanes<T>, sums);
      if (at < last) visit(at, last - at, sums);
      for (int k = 0; k < Sums::count; ++k) {
        double parts[8]{};
        for (std::int64_t j = 0; j < lanes<T>; ++j) parts[j % 8] += static_cast<double>(sums[k][j]);
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
  Moved<float> moved;
#pragma GCC ivdep
  for (std::int64_t at = begin * call.columns; at < end * call.columns; ++at) move(call, at, 1, moved);
}
SCALEVEC_CLONES void adamw_column_sums(const AdamwCall& given, std::int64_t begin, std::int64_t end,
                                       double* out) {
  const AdamwCall call = given;
  by_column<float>(call.columns, begin, end, out, {call.w, call.m, call.v, call.g},
                   [=](std::int64_t at, std::int64_t width, Vector<float>* sums) SCALEVEC_INLINE {
                     Moved<Vector<float>> moved;
                     move(call, at, width, moved);
                     add<float>(moved.before, moved.after, moved.gradient, sums);
                     sums[Sums::inverse_root] += moved.by;
                   });
}

}  // namespace scalevec::kernels
