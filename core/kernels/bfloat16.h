#pragma once

#include <bit>
#include <cstdint>

namespace scalevec::kernels {

/// A bfloat16 by its bits: the upper half of a float32.
struct Bfloat16 {
  std::uint16_t bits;
};

inline float widen(Bfloat16 v) { return std::bit_cast<float>(static_cast<std::uint32_t>(v.bits) << 16); }
inline float widen(float v) { return v; }
inline double widen(double v) { return v; }

/// To the nearest, ties to even; a NaN stays one.
template <class T, class V>
inline T narrow(V v) {
  if constexpr (sizeof(T) == sizeof(Bfloat16)) {
    const auto bits = std::bit_cast<std::uint32_t>(v);
    const std::uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    return {static_cast<std::uint16_t>(v != v ? 0x7FC0u : rounded)};
  } else {
    return v;
  }
}

}  // namespace scalevec::kernels
