#pragma once

#include <cstdint>

#include <scalevec/core/kernels/bfloat16.h>

namespace scalevec::kernels {

/// RMSNorm of rows of `width` entries, each `group` of which share one root mean square; group divides width.
///
///   rstd = 1 / sqrt(mean(x^2) + eps)    normalized = x * rstd    y = normalized * g, rounded to T
///
/// T: element type of activations; V: of the vector and the arithmetic (float; double for T = double). Raw
/// pointers, row-major, nothing overlaps. Rows are independent, so callers share them among threads without
/// changing a bit.
template <class T, class V>
struct RmsForward {
  const T* x;     // (rows, width)
  const V* g;     // (width), or null: all ones
  T* y;           // (rows, width)
  V* rstd;        // (rows, width / group), or null
  V* normalized;  // (rows, width), or null
  std::int64_t width, group;
  double eps;
};

/// Gradients of the above for the gradient `dy` of y:
///
///   dx = rstd * (g * dy - normalized * mean(g * dy * normalized))    dg = sum over rows of dy * normalized
template <class T, class V>
struct RmsBackward {
  const T* dy;    // (rows, width)
  const T* x;     // (rows, width)
  const V* g;     // (width), or null
  const V* rstd;  // (rows, width / group)
  T* dx;          // (rows, width), or null
  double* dg;     // (width), added to; or null
  std::int64_t width, group;
};

/// Rows [begin, end), on the calling thread.
void rms_norm(const RmsForward<float, float>& call, std::int64_t begin, std::int64_t end);
void rms_norm(const RmsForward<Bfloat16, float>& call, std::int64_t begin, std::int64_t end);
void rms_norm(const RmsForward<double, double>& call, std::int64_t begin, std::int64_t end);
void rms_norm_backward(const RmsBackward<float, float>& call, std::int64_t begin, std::int64_t end);
void rms_norm_backward(const RmsBackward<Bfloat16, float>& call, std::int64_t begin, std::int64_t end);
void rms_norm_backward(const RmsBackward<double, double>& call, std::int64_t begin, std::int64_t end);

/// The forward on the current CUDA device, all pointers there, queued on `stream` (a cudaStream_t). E_DEVICE
/// where the library was built without CUDA, or the launch is refused.
void rms_norm_cuda(const RmsForward<float, float>& call, std::int64_t rows, void* stream);
void rms_norm_cuda(const RmsForward<Bfloat16, float>& call, std::int64_t rows, void* stream);

/// How many CUDA devices can be used. E_DEVICE, saying why, if none: built without CUDA, no driver, no
/// device.
int require_cuda_device();

}  // namespace scalevec::kernels
