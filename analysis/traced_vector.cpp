#include <scalevec/analysis/traced_vector.h>

#include <cmath>
#include <numeric>

#include <scalevec/core/components.h>

namespace scalevec {
namespace {

using kernels::LineSums;

std::vector<double> doubles(const at::Tensor& t) {
  const at::Tensor host = t.detach().to(at::kCPU, at::kDouble).contiguous();
  const double* const p = host.const_data_ptr<double>();
  return {p, p + host.numel()};
}

double total(const std::vector<double>& v) { return std::accumulate(v.begin(), v.end(), 0.0); }

using Sums = Lines (*)(const at::Tensor&, const at::Tensor&, const at::Tensor&);

MapStep step_of(const std::vector<TracedMap>& maps, const std::vector<at::Tensor>& before,
                const std::vector<at::Tensor>& gradients, Sums sums) {
  MapStep out;
  for (std::size_t i = 0; i < maps.size(); ++i) {
    const at::Tensor after = maps[i].weight.detach();
    const at::Tensor gradient = gradients[i].defined() ? gradients[i] : after.new_zeros(after.sizes());
    const Lines lines = sums(before[i], after, gradient);
    const double ww = total(lines[LineSums::ww]), wd = total(lines[LineSums::wd]),
                 dd = total(lines[LineSums::dd]);
    out.frobenius.push_back(std::sqrt(std::max(0.0, ww + 2 * wd + dd)));
    out.rotation.push_back(std::atan2(std::sqrt(std::max(0.0, ww * dd - wd * wd)), ww + wd));
    for (std::size_t k = 0; k < lines.size(); ++k) {
      out.sums[k].resize(lines[k].size());
      for (std::size_t j = 0; j < lines[k].size(); ++j) out.sums[k][j] += lines[k][j];
    }
    out.outputs += static_cast<double>(after.numel()) / static_cast<double>(lines[0].size());
  }
  return out;
}

}  // namespace

std::vector<double> effective_values(const TracedVector& vector) {
  const at::Tensor stored = vector.stored.detach().to(at::kDouble);
  if (in_one_tensor(vector.site.parametrisation)) return doubles(stored.add(vector.site.offset));
  return doubles(compose(vector.site.parametrisation, stored, vector.beta.detach().to(at::kDouble)));
}

std::vector<double> effective_gradient(const TracedVector& vector, const at::Tensor& d_stored,
                                       const at::Tensor& d_beta) {
  if (!d_stored.defined()) return {};
  std::vector<double> out = doubles(d_stored);
  if (in_one_tensor(vector.site.parametrisation)) return out;
  if (!d_beta.defined()) return {};
  const auto d = static_cast<double>(out.size());
  const double along = doubles(d_beta)[0];
  if (vector.site.parametrisation == Parametrisation::exponential) {
    const std::vector<double> g = effective_values(vector);
    for (std::size_t j = 0; j < out.size(); ++j) out[j] = (out[j] + along / d) / g[j];
    return out;
  }
  const std::vector<double> alpha = doubles(vector.stored);
  const double beta = doubles(vector.beta)[0];
  const double length = std::sqrt(std::inner_product(alpha.begin(), alpha.end(), alpha.begin(), 0.0));
  for (std::size_t j = 0; j < out.size(); ++j) {
    out[j] = out[j] * length / (beta * std::sqrt(d)) + alpha[j] / length * along / std::sqrt(d);
  }
  return out;
}

MapStep step_of_columns(const std::vector<TracedMap>& maps, const std::vector<at::Tensor>& before,
                        const std::vector<at::Tensor>& gradients) {
  return step_of(maps, before, gradients, &column_sums);
}

MapStep step_of_rows(const std::vector<TracedMap>& maps, const std::vector<at::Tensor>& before,
                     const std::vector<at::Tensor>& gradients) {
  return step_of(maps, before, gradients, &row_sums);
}

}  // namespace scalevec
