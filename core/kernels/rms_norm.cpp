#include <scalevec/core/kernels/rms_norm.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include <scalevec/core/kernels/clones.h>

namespace scalevec::kernels {
namespace {

// Sixteen partial sums, whatever the registers hold: the compiler maps them to lanes, and the tree is always
// the same.
constexpr std::int64_t lanes = 16;

template <class V>
[[gnu::always_inline]] inline V fold(V (&sum)[lanes]) {
  for (std::int64_t half = lanes / 2; half > 0; half /= 2) {
    for (std::int64_t l = 0; l < half; ++l) sum[l] += sum[l + half];
  }
  return sum[0];
}

template <class V, class T>
[[gnu::always_inline]] inline V sum_of_squares(const T* __restrict x, std::int64_t n) {
  V sum[lanes] = {};
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    for (std::int64_t l = 0; l < lanes; ++l) {
      const V v = widen(x[i + l]);
      sum[l] += v * v;
    }
  }
  for (std::int64_t l = 0; i < n; ++i, ++l) {
    const V v = widen(x[i]);
    sum[l] += v * v;
  }
  return fold(sum);
}

template <class V, class T>
[[gnu::always_inline]] inline V sum_of_products(const T* __restrict dy, const T* __restrict x,
                                                const V* __restrict g, std::int64_t n) {
  V sum[lanes] = {};
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    for (std::int64_t l = 0; l < lanes; ++l) sum[l] += V(widen(dy[i + l])) * g[i + l] * V(widen(x[i + l]));
  }
  for (std::int64_t l = 0; i < n; ++i, ++l) sum[l] += V(widen(dy[i])) * g[i] * V(widen(x[i]));
  return fold(sum);
}

template <class T, class V>
[[gnu::always_inline]] inline void forward_group(const T* __restrict x, const V* __restrict g,
                                                 T* __restrict y, V* __restrict normalized, V rstd,
                                                 std::int64_t n) {
  if (normalized) {
    for (std::int64_t i = 0; i < n; ++i) normalized[i] = V(widen(x[i])) * rstd;
  }
  if (g) {
    for (std::int64_t i = 0; i < n; ++i) y[i] = narrow<T>(V(widen(x[i])) * rstd * g[i]);
  } else {
    for (std::int64_t i = 0; i < n; ++i) y[i] = narrow<T>(V(widen(x[i])) * rstd);
  }
}

template <class T, class V>
[[gnu::always_inline]] inline void forward(const RmsForward<T, V>& c, std::int64_t begin, std::int64_t end) {
  const std::int64_t groups = c.width / c.group;
  for (std::int64_t row = begin; row < end; ++row) {
    for (std::int64_t k = 0; k < groups; ++k) {
      const std::int64_t at = row * c.width + k * c.group;
      const double mean =
          static_cast<double>(sum_of_squares<V>(c.x + at, c.group)) / static_cast<double>(c.group);
      const V rstd = static_cast<V>(1.0 / std::sqrt(mean + c.eps));
      if (c.rstd) c.rstd[row * groups + k] = rstd;
      forward_group(c.x + at, c.g ? c.g + k * c.group : nullptr, c.y + at,
                    c.normalized ? c.normalized + at : nullptr, rstd, c.group);
    }
  }
}

template <class T, class V>
[[gnu::always_inline]] inline void backward_dx(const T* __restrict dy, const T* __restrict x,
                                               const V* __restrict g, T* __restrict dx, V rstd,
                                               std::int64_t n) {
  // Over x rather than x * rstd: one product less, and its rounding with it.
  const V along = sum_of_products(dy, x, g, n) * rstd * rstd / static_cast<V>(n);
  for (std::int64_t i = 0; i < n; ++i) {
    dx[i] = narrow<T>(rstd * (V(widen(dy[i])) * g[i] - V(widen(x[i])) * along));
  }
}

template <class T, class V>
[[gnu::always_inline]] inline void backward(const RmsBackward<T, V>& c, std::int64_t begin, std::int64_t end,
                                            const V* __restrict g, V* __restrict block) {
  const std::int64_t groups = c.width / c.group;
  // Blocks of rows are summed in V and folded into float64: as exact as float64 throughout, at the speed of
  // V.
  constexpr std::int64_t rows_per_block = 32;
  for (std::int64_t first = begin; first < end; first += rows_per_block) {
    const std::int64_t last = std::min(end, first + rows_per_block);
    for (std::int64_t row = first; row < last; ++row) {
      for (std::int64_t k = 0; k < groups; ++k) {
        const std::int64_t at = row * c.width + k * c.group;
        const V rstd = c.rstd[row * groups + k];
        if (c.dx) backward_dx(c.dy + at, c.x + at, g + k * c.group, c.dx + at, rstd, c.group);
        if (c.dg) {
          V* __restrict sum = block + k * c.group;
          const T* __restrict dy = c.dy + at;
          const T* __restrict x = c.x + at;
          for (std::int64_t i = 0; i < c.group; ++i) sum[i] += V(widen(dy[i])) * (V(widen(x[i])) * rstd);
        }
      }
    }
    if (c.dg) {
      for (std::int64_t i = 0; i < c.width; ++i) {
        c.dg[i] += static_cast<double>(block[i]);
        block[i] = V(0);
      }
    }
  }
}

// target_clones takes no templates: these are the functions that exist several times.
SCALEVEC_CLONES void forward_f32(const RmsForward<float, float>& c, std::int64_t begin, std::int64_t end) {
  forward(c, begin, end);
}
SCALEVEC_CLONES void forward_bf16(const RmsForward<Bfloat16, float>& c, std::int64_t begin,
                                  std::int64_t end) {
  forward(c, begin, end);
}
SCALEVEC_CLONES void forward_f64(const RmsForward<double, double>& c, std::int64_t begin, std::int64_t end) {
  forward(c, begin, end);
}
SCALEVEC_CLONES void backward_f32(const RmsBackward<float, float>& c, std::int64_t begin, std::int64_t end,
                                  const float* g, float* block) {
  backward(c, begin, end, g, block);
}
SCALEVEC_CLONES void backward_bf16(const RmsBackward<Bfloat16, float>& c, std::int64_t begin,
                                   std::int64_t end, const float* g, float* block) {
  backward(c, begin, end, g, block);
}
SCALEVEC_CLONES void backward_f64(const RmsBackward<double, double>& c, std::int64_t begin, std::int64_t end,
                                  const double* g, double* block) {
  backward(c, begin, end, g, block);
}

template <class T, class V, class Run>
void with_workspace(const RmsBackward<T, V>& c, Run&& run) {
  std::vector<V> block(static_cast<std::size_t>(c.dg ? c.width : 0), V(0));
  std::vector<V> ones(static_cast<std::size_t>(c.g ? 0 : c.width), V(1));
  run(c.g ? c.g : ones.data(), block.data());
}

}  // namespace

void rms_norm(const RmsForward<float, float>& call, std::int64_t begin, std::int64_t end) {
  forward_f32(call, begin, end);
}
void rms_norm(const RmsForward<Bfloat16, float>& call, std::int64_t begin, std::int64_t end) {
  forward_bf16(call, begin, end);
}
void rms_norm(const RmsForward<double, double>& call, std::int64_t begin, std::int64_t end) {
  forward_f64(call, begin, end);
}
void rms_norm_backward(const RmsBackward<float, float>& call, std::int64_t begin, std::int64_t end) {
  with_workspace(call, [&](const float* g, float* block) { backward_f32(call, begin, end, g, block); });
}
void rms_norm_backward(const RmsBackward<Bfloat16, float>& call, std::int64_t begin, std::int64_t end) {
  with_workspace(call, [&](const float* g, float* block) { backward_bf16(call, begin, end, g, block); });
}
void rms_norm_backward(const RmsBackward<double, double>& call, std::int64_t begin, std::int64_t end) {
  with_workspace(call, [&](const double* g, double* block) { backward_f64(call, begin, end, g, block); });
}

}  // namespace scalevec::kernels
