#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

namespace scalevec {

/// Second moments of what linear maps read behind a norm, before its vector: S = E[x x^T] over tokens
/// (docs/trace_metrics.md, 33). A value type; keeps no activations.
class InputMoments {
 public:
  /// Of wider inputs only the diagonal is kept.
  static constexpr std::int64_t widest = 2048;

  /// normalized: (..., width), floating; its width is that of the first. Sums are float64.
  void add(const at::Tensor& normalized);
  void clear() { *this = {}; }
  bool empty() const { return rows_ == 0; }
  /// S, (width, width) or, of wider inputs, its diagonal (width,); float64, on the host.
  at::Tensor mean() const;

 private:
  std::int64_t rows_ = 0;
  at::Tensor sum_;
};

/// What a vector g makes of such inputs: with D = diag(g), how far D S D is from round.
struct InputFigures {
  std::vector<double> moment;   // S_jj
  double condition = 0;         // largest over smallest eigenvalue of S; infinite: singular in float64
  double condition_scaled = 0;  // of D S D; both NaN where inputs are not finite or S is only its diagonal
  double jacobi_gap = 0;        // standard deviation of log(g_j^2 S_jj): 0 is Jacobi's scaling
};
InputFigures input_figures(const InputMoments& inputs, std::span<const double> g);

}  // namespace scalevec
