#pragma once

#include <cstdint>

#include <scalevec/core/kernels/bfloat16.h>

namespace scalevec::kernels {

/// Rotates pairs of every head of `x` in place: (a, b) becomes (a cos - b sin, b cos + a sin).
///
/// Token t of a sequence takes row t of the tables. A bfloat16 is widened, rotated in float32 and rounded
/// once.
template <class T>
struct Rotation {
  T* x;              // (sequences * tokens, heads, head_dim)
  const float* cos;  // (tokens, dimensions / 2)
  const float* sin;  // same
  std::int64_t tokens, heads, head_dim;
  std::int64_t dimensions;  // rotated entries of a head; the others stay
  bool interleaved;         // pairs are (2i, 2i + 1), else (i, i + dimensions / 2)
  bool inverse;             // turn back: the gradient
};

/// Rows [begin, end) of sequences * tokens, on the calling thread.
void rotate(const Rotation<float>& call, std::int64_t begin, std::int64_t end);
void rotate(const Rotation<Bfloat16>& call, std::int64_t begin, std::int64_t end);
void rotate(const Rotation<double>& call, std::int64_t begin, std::int64_t end);

}  // namespace scalevec::kernels
