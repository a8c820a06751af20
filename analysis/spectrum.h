#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include <ATen/core/Tensor.h>

namespace scalevec {

/// A symmetric matrix, known by its products with vectors: (n,) to (n,), float64, on the host.
using SymmetricProduct = std::function<at::Tensor(const at::Tensor& vector)>;

/// What a few products tell of a symmetric matrix.
struct Spectrum {
  double largest = 0;  // Lanczos's estimate of the largest eigenvalue, from below
  double bound = 0;    // an eigenvalue is within this of it; 0: the matrix's own up to rounding
  // Hutchinson's estimates from random signs, each with its standard error (NaN of a single sample).
  double trace = 0, trace_error = 0;
  double frobenius = 0;  // root of the mean of |H z|^2
  std::vector<double> diagonal, diagonal_error;
};

struct SpectrumOptions {
  int iterations = 12;     // of Lanczos
  int probes = 8;          // of Hutchinson; the first of them begins Lanczos
  std::uint64_t seed = 0;  // the same one, the same probes
};

/// iterations + probes - 1 products, fewer where `size` is below `iterations`. Lanczos (1950) with all
/// vectors made orthogonal again, its bound |beta_m s_m| (Paige, 1971); traces as in Hutchinson (1989),
/// diagonals as in Bekas, Kokiopoulou and Saad (2007).
Spectrum spectrum(const SymmetricProduct& product, std::int64_t size, const SpectrumOptions& options = {});

}  // namespace scalevec
