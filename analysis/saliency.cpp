#include <scalevec/analysis/saliency.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <scalevec/core/kernels/logits.h>
#include <scalevec/hooks/override.h>
#include <scalevec/hooks/tap.h>

namespace scalevec {
namespace {

constexpr std::int64_t chunk_bytes = std::int64_t{64} << 20;

// The rows' gradients take the place of the logits; returns the sum of the losses.
template <class T>
double loss_gradients(at::Tensor& logits, const at::Tensor& targets, double scale) {
  const std::int64_t vocabulary = logits.size(1);
  T* const rows = logits.mutable_data_ptr<T>();
  const std::int64_t* const wanted = targets.const_data_ptr<std::int64_t>();
  std::vector<double> losses(static_cast<std::size_t>(logits.size(0)));
  at::parallel_for(0, logits.size(0), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      losses[static_cast<std::size_t>(i)] =
          kernels::loss_gradient(rows + i * vocabulary, vocabulary, wanted[i], scale);
    }
  });
  return std::accumulate(losses.begin(), losses.end(), 0.0);
}

// Loss sum of one window; its gradient, times scale, is added to the leaves'.
double backward(Transformer& model, const Window& window, const std::vector<at::Tensor>& leaves,
                double scale) {
  const at::Tensor hidden = model.hidden(window.ids).squeeze(0);
  // The graph is cut here, so that the logits and their gradient exist for a few rows at a time only.
  const at::Tensor cut = hidden.detach().requires_grad_();
  std::vector<at::Tensor> inputs = leaves;
  inputs.push_back(cut);
  const std::int64_t rows = cut.size(0);
  const std::int64_t step = std::max<std::int64_t>(1, chunk_bytes / (8 * model.spec().vocabulary));
  double loss = 0.0;
  for (std::int64_t begin = 0; begin < rows; begin += step) {
    const std::int64_t count = std::min(step, rows - begin);
    const at::Tensor logits = model.head(cut.narrow(0, begin, count));
    at::Tensor gradient = logits.detach().to(at::kCPU).clone();
    const at::Tensor targets = window.targets.narrow(0, begin, count).contiguous();
    loss += gradient.scalar_type() == at::kDouble ? loss_gradients<double>(gradient, targets, scale)
                                                  : loss_gradients<float>(gradient, targets, scale);
    logits.backward(gradient.to(logits.device()), /*retain_graph=*/false, /*create_graph=*/false, inputs);
  }
  hidden.backward(cut.grad(), /*retain_graph=*/false, /*create_graph=*/false, leaves);
  return loss;
}

std::vector<double> values_of(const at::Tensor& vector) {
  const at::Tensor host = vector.detach().to(at::TensorOptions(at::kCPU).dtype(at::kDouble)).contiguous();
  const double* const p = host.const_data_ptr<double>();
  return {p, p + host.numel()};
}

}  // namespace

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
    out.effective.push_back(values_of(leaves.back()));
  }
  const at::AutoGradMode gradients(true);
  const Override lending(model, lent, {.allow_nonfinite = true});
  for (std::size_t i = 0; i < windows.size(); ++i) {
    report(progress, "saliency", i, windows.size());
    out.loss += scale * backward(model, windows[i], leaves, scale);
  }
  report(progress, "saliency", windows.size(), windows.size());
  for (const at::Tensor& leaf : leaves) {
    out.gradient.push_back(leaf.grad().defined()
                               ? values_of(leaf.grad())
                               : std::vector<double>(static_cast<std::size_t>(leaf.numel()), 0.0));
  }
  return out;
}

PerChannel outlier_scores(const ScaleMap& scales) {
  PerChannel out;
  for (const ScaleVector& vector : scales) {
    std::vector<double> g = values_of(vector.effective());
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
