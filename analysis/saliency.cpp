#include <scalevec/analysis/saliency.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include <ATen/core/grad_mode.h>

#include <scalevec/analysis/doubles.h>
#include <scalevec/analysis/text_loss.h>
#include <scalevec/hooks/override.h>
#include <scalevec/hooks/tap.h>

namespace scalevec {
PerChannel Saliency::ablation() const {
  PerChannel out = gradient;
  for (std::size_t i = 0; i < out.size(); ++i) {
    for (std::size_t j = 0; j < out[i].size(); ++j) out[i][j] *= -effective[i][j];
  }
  return out;
}

Saliency saliency(Transformer& model, const Documents& text, const WindowOptions& options,
                  const Progress& progress) {
  const Windows windows(text, options);
  windows.require_ids_below(model.spec().vocabulary);
  const ScaleMap& scales = model.scales();
  Saliency out;
  out.predictions = windows.predictions();
  const double scale = 1.0 / static_cast<double>(windows.predictions());

  std::vector<at::Tensor> leaves;
  Override::Vectors lent;
  for (const ScaleVector& vector : scales) {
    // As it is: lent by somebody, or stored.
    const std::size_t site = find_site(model.sites(), vector.address());
    const at::Tensor current = model.observers().lent(site);
    const at::Tensor value = current.defined() ? current.detach().to(at::kDouble) : vector.effective();
    leaves.push_back(value.to(model.options().device, at::kDouble, /*non_blocking=*/false, /*copy=*/true)
                         .requires_grad_());
    lent[vector.address()] = leaves.back();
    out.effective.push_back(doubles_of(leaves.back()));
  }
  const at::AutoGradMode gradients(true);
  const Override lending(model, lent, {.allow_nonfinite = true});
  for (std::size_t i = 0; i < windows.size(); ++i) {
    report(progress, "saliency", i, windows.size());
    const Window& window = windows[i];
    out.loss += scale * backward_loss(model, window.ids, window.targets, leaves, scale);
  }
  report(progress, "saliency", windows.size(), windows.size());
  for (const at::Tensor& leaf : leaves) {
    out.gradient.push_back(leaf.grad().defined()
                               ? doubles_of(leaf.grad())
                               : std::vector<double>(static_cast<std::size_t>(leaf.numel()), 0.0));
  }
  return out;
}

PerChannel outlier_scores(const ScaleMap& scales) {
  PerChannel out;
  for (const ScaleVector& vector : scales) {
    std::vector<double> g = doubles_of(vector.effective());
    const auto count = static_cast<double>(g.size());
    const double mean = std::accumulate(g.begin(), g.end(), 0.0) / count;
    double variance = 0.0;
    for (const double v : g) variance += (v - mean) * (v - mean) / count;
    const double deviation = std::sqrt(variance);
    for (double& v : g) v = deviation > 0.0 ? std::fabs(v - mean) / deviation : 0.0;
    out.push_back(std::move(g));
  }
  return out;
}

std::vector<Entry> top_entries(const PerChannel& scores, std::size_t most) {
  std::vector<Entry> entries;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    for (std::size_t j = 0; j < scores[i].size(); ++j) {
      entries.push_back({i, static_cast<std::int64_t>(j), scores[i][j]});
    }
  }
  most = std::min(most, entries.size());
  // NaN last: an order must stay one.
  const auto size = [](const Entry& e) { return std::isnan(e.score) ? -1.0 : std::fabs(e.score); };
  std::stable_sort(entries.begin(), entries.end(),
                   [&](const Entry& a, const Entry& b) { return size(a) > size(b); });
  entries.resize(most);
  return entries;
}

}  // namespace scalevec
