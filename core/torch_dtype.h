#pragma once

#include <optional>

#include <c10/core/ScalarType.h>

#include <scalevec/core/dtype.h>

namespace scalevec {

/// F64, F32, F16 and BF16 in files, and as torch calls them; nothing for any other.
inline std::optional<DType> file_dtype(c10::ScalarType dtype) {
  switch (dtype) {
    case c10::ScalarType::Double:
      return DType::f64;
    case c10::ScalarType::Float:
      return DType::f32;
    case c10::ScalarType::Half:
      return DType::f16;
    case c10::ScalarType::BFloat16:
      return DType::bf16;
    default:
      return std::nullopt;
  }
}

inline std::optional<c10::ScalarType> torch_dtype(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return c10::ScalarType::Double;
    case DType::f32:
      return c10::ScalarType::Float;
    case DType::f16:
      return c10::ScalarType::Half;
    case DType::bf16:
      return c10::ScalarType::BFloat16;
    default:
      return std::nullopt;
  }
}

}  // namespace scalevec
