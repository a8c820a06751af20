#include <scalevec/analysis/input_moments.h>

#include <cmath>
#include <limits>

#include <scalevec/analysis/doubles.h>
#include <scalevec/analysis/vector_figures.h>
#include <scalevec/core/ops.h>

namespace scalevec {
namespace {

// Of a symmetric matrix without negative eigenvalues but for rounding, which is `width` of float64's units.
double condition_of(const at::Tensor& matrix) {
  // LAPACK refuses these; a trace must not end a training that goes on with them.
  if (!matrix.isfinite().all().item<bool>()) return std::numeric_limits<double>::quiet_NaN();
  const at::Tensor values = ops::symmetric_eigenvalues(matrix);  // ascending
  const double* v = values.const_data_ptr<double>();
  const std::int64_t width = values.size(0);
  const double smallest = v[0], largest = v[width - 1];
  const double rounding = static_cast<double>(width) * std::numeric_limits<double>::epsilon() * largest;
  return smallest > rounding ? largest / smallest : std::numeric_limits<double>::infinity();
}

}  // namespace

void InputMoments::add(const at::Tensor& normalized) {
  const at::Tensor x = normalized.detach().reshape({-1, normalized.size(-1)}).to(at::kDouble);
  const at::Tensor sum = x.size(-1) <= widest ? x.t().mm(x) : x.square().sum(0);
  sum_ = sum_.defined() ? sum_.add_(sum) : sum;
  rows_ += x.size(0);
}

at::Tensor InputMoments::mean() const { return sum_.div(static_cast<double>(rows_)).to(at::kCPU); }

InputFigures input_figures(const InputMoments& inputs, std::span<const double> g) {
  InputFigures out;
  const at::Tensor s = inputs.mean();
  const bool whole = s.dim() == 2;
  const at::Tensor diagonal = (whole ? s.diagonal() : s).contiguous();
  out.moment = doubles_of(diagonal);
  std::vector<double> scaled(g.size());
  for (std::size_t j = 0; j < g.size(); ++j) scaled[j] = std::sqrt(out.moment[j]) * g[j];
  out.jacobi_gap = 2.0 * vector_figures(scaled).log_spread;
  out.condition = out.condition_scaled = std::numeric_limits<double>::quiet_NaN();
  if (whole) {
    const at::Tensor d = tensor_of({g.begin(), g.end()});
    out.condition = condition_of(s);
    out.condition_scaled = condition_of(s.mul(d).mul(d.unsqueeze(1)));
  }
  return out;
}

}  // namespace scalevec
