#include <scalevec/core/kernels/rope.h>

#include <scalevec/core/kernels/clones.h>

namespace scalevec::kernels {
namespace {

template <class T>
using Arithmetic = decltype(widen(T{}));

template <class T>
[[gnu::always_inline]] inline void halves(T* __restrict first, T* __restrict second,
                                          const float* __restrict cos, const float* __restrict sin,
                                          Arithmetic<T> sign, std::int64_t pairs) {
  for (std::int64_t i = 0; i < pairs; ++i) {
    const Arithmetic<T> a = widen(first[i]), b = widen(second[i]), c = cos[i], s = sin[i] * sign;
    first[i] = narrow<T>(a * c - b * s);
    second[i] = narrow<T>(b * c + a * s);
  }
}

template <class T>
[[gnu::always_inline]] inline void interleaved(T* __restrict x, const float* __restrict cos,
                                               const float* __restrict sin, Arithmetic<T> sign,
                                               std::int64_t pairs) {
  for (std::int64_t i = 0; i < pairs; ++i) {
    const Arithmetic<T> a = widen(x[2 * i]), b = widen(x[2 * i + 1]), c = cos[i], s = sin[i] * sign;
    x[2 * i] = narrow<T>(a * c - b * s);
    x[2 * i + 1] = narrow<T>(b * c + a * s);
  }
}

template <class T>
[[gnu::always_inline]] inline void rotate_rows(const Rotation<T>& r, std::int64_t begin, std::int64_t end) {
  const std::int64_t pairs = r.dimensions / 2;
  const Arithmetic<T> sign = r.inverse ? -1 : 1;
  for (std::int64_t row = begin; row < end; ++row) {
    const float* cos = r.cos + (row % r.tokens) * pairs;
    const float* sin = r.sin + (row % r.tokens) * pairs;
    T* head = r.x + row * r.heads * r.head_dim;
    for (std::int64_t h = 0; h < r.heads; ++h, head += r.head_dim) {
      if (r.interleaved) {
        interleaved(head, cos, sin, sign, pairs);
      } else {
        halves(head, head + pairs, cos, sin, sign, pairs);
      }
    }
  }
}

SCALEVEC_CLONES void rotate_f32(const Rotation<float>& r, std::int64_t begin, std::int64_t end) {
  rotate_rows(r, begin, end);
}
SCALEVEC_CLONES void rotate_bf16(const Rotation<Bfloat16>& r, std::int64_t begin, std::int64_t end) {
  rotate_rows(r, begin, end);
}
SCALEVEC_CLONES void rotate_f64(const Rotation<double>& r, std::int64_t begin, std::int64_t end) {
  rotate_rows(r, begin, end);
}

}  // namespace

void rotate(const Rotation<float>& call, std::int64_t begin, std::int64_t end) {
  rotate_f32(call, begin, end);
}
void rotate(const Rotation<Bfloat16>& call, std::int64_t begin, std::int64_t end) {
  rotate_bf16(call, begin, end);
}
void rotate(const Rotation<double>& call, std::int64_t begin, std::int64_t end) {
  rotate_f64(call, begin, end);
}

}  // namespace scalevec::kernels
