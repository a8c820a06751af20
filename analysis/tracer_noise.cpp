// The balance of noise and decay (metric 20): what it needs of two steps in a row.
#include <limits>

#include <scalevec/analysis/doubles.h>
#include <scalevec/analysis/tracer_state.h>

namespace scalevec {

bool is_plain_sgd(const UpdateFacts& vector, const UpdateFacts& map, const Site& site) {
  return map.rule == UpdateFacts::Rule::sgd && vector.rule == UpdateFacts::Rule::sgd && map.momentum == 0.0 &&
         map.rate == vector.rate && in_one_tensor(site.parametrisation) && site.offset == 0.0;
}

void Tracer::State::remember_noise(std::size_t i, bool wanted, const UpdateView& view) {
  Past& p = past[i];
  p.noise_g.clear();
  p.noise_dw.clear();
  const TracedVector& v = vectors[i];
  if (!wanted || !has_lines(v)) return;
  const UpdateFacts by_vector = view(v.stored);
  if (!is_plain_sgd(by_vector, view(v.beside().front().weight), v.site)) return;
  for (const TracedMap& map : v.beside()) {
    const at::Tensor gradient = view(map.weight).gradient;
    if (!gradient.defined()) return p.noise_dw.clear();
    p.noise_dw.push_back(gradient.clone());
  }
  p.noise_g = effective_values(v);
}

// Of two steps' gradients half the squared difference: what changes from batch to batch, the little that the
// step itself changes included. dL/dA is dL/dW over g, but where g is 0.
double Tracer::State::noise_of(std::size_t i, const Step& begun) const {
  const Past& p = past[i];
  const bool reads = !vectors[i].consumers.empty();
  if (p.noise_g.empty() || !begun.complete()) return std::numeric_limits<double>::quiet_NaN();
  const auto of_effective = [&](const at::Tensor& dw, const Values& g) {
    const at::Tensor by = tensor_of(g).to(dw.device());
    const at::Tensor wide = dw.detach().to(at::kDouble);
    return wide.div(reads ? by : by.unsqueeze(-1));
  };
  double squares = 0, entries = 0;
  for (std::size_t k = 0; k < begun.maps.size(); ++k) {
    const at::Tensor before = of_effective(p.noise_dw[k], p.noise_g);
    const at::Tensor now = of_effective(begun.maps[k].then.gradient, begun.g);
    const Lines sums = reads ? column_sums(before, now, now) : row_sums(before, now, now);
    const auto dd = sums[kernels::LineSums::dd];
    for (std::size_t j = 0; j < dd.size(); ++j) {
      if (begun.g[j] == 0.0 || p.noise_g[j] == 0.0) continue;
      squares += dd[j];
      entries += static_cast<double>(now.numel()) / static_cast<double>(dd.size());
    }
  }
  return squares / (2 * entries);
}

}  // namespace scalevec
