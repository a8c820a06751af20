#include <scalevec/analysis/curvature.h>

#include <cmath>

#include <ATen/core/grad_mode.h>

#include <scalevec/analysis/doubles.h>
#include <scalevec/core/ops.h>

namespace scalevec {
namespace {

at::Tensor joined(const std::vector<at::Tensor>& tensors) {
  std::vector<at::Tensor> flat;
  for (const at::Tensor& t : tensors) flat.push_back(t.detach().reshape({-1}));
  return ops::cat(flat, 0);
}

// Tensors moved along a direction; where they stood when it goes.
class Moved {
 public:
  explicit Moved(const std::vector<at::Tensor>& tensors) : tensors_(tensors) {
    for (const at::Tensor& t : tensors) stood_.push_back(t.detach().clone());
  }
  ~Moved() {
    const at::NoGradGuard no_grad;
    for (std::size_t i = 0; i < tensors_.size(); ++i) tensors_[i].detach().copy_(stood_[i]);
  }
  Moved(const Moved&) = delete;
  Moved& operator=(const Moved&) = delete;

  void to(const at::Tensor& direction, double step) const {
    const at::NoGradGuard no_grad;
    std::int64_t first = 0;
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      const at::Tensor& stood = stood_[i];
      const at::Tensor part = direction.narrow(0, first, stood.numel()).reshape(stood.sizes());
      tensors_[i].detach().copy_(stood.add(part, step));
      first += stood.numel();
    }
  }

 private:
  std::vector<at::Tensor> tensors_, stood_;
};

double length(const at::Tensor& t) { return std::sqrt(t.dot(t).item<double>()); }

Spectrum spectrum_of(const std::vector<at::Tensor>& tensors, const Gradients& gradients,
                     const SpectrumOptions& options) {
  const Moved moved(tensors);
  // float64 leaves some 1e-16 of the gradient, divided by the step, and the third derivative the step's
  // square: both are about 1e-10 of H, but where a mixture's choice of experts changes on the way.
  const at::Tensor stood = joined(tensors);
  const double step = 1e-5 * std::max(1.0, length(stood));
  const auto product = [&](const at::Tensor& v) {
    const double by = step / length(v);
    moved.to(v, by);
    const at::Tensor after = joined(gradients(tensors));
    moved.to(v, -by);
    return after.sub(joined(gradients(tensors))).div(2.0 * by);
  };
  return spectrum(product, stood.numel(), options);
}

}  // namespace

Curvature curvature(const at::Tensor& g, const std::vector<at::Tensor>& maps, const Gradients& gradients,
                    const SpectrumOptions& options) {
  Curvature out;
  out.g = doubles_of(g);
  out.gradient = doubles_of(gradients({g})[0]);
  out.vector = spectrum_of({g}, gradients, options);
  if (maps.empty()) return out;
  out.maps = spectrum_of(maps, gradients, options);
  std::vector<at::Tensor> all{g};
  all.insert(all.end(), maps.begin(), maps.end());
  out.joint = spectrum_of(all, gradients, options);
  return out;
}

void note(Tracer& tracer, std::string_view address, const Curvature& curvature) {
  const auto put = [&](const std::string& column, std::span<const double> values) {
    tracer.note(address, column, values);
  };
  const auto block = [&](const std::string& name, const Spectrum& s) {
    const auto one = [&](const char* what, double value) { put(name + what, {&value, 1}); };
    one("_sharpness", s.largest);
    one("_sharpness_bound", s.bound);
    one("_trace", s.trace);
    one("_trace_error", s.trace_error);
    one("_frobenius", s.frobenius);
  };
  block("vector", curvature.vector);
  if (curvature.maps) block("maps", *curvature.maps);
  if (curvature.joint) block("joint", *curvature.joint);
  std::vector<double> h(curvature.g.size()), error(h.size());
  for (std::size_t j = 0; j < h.size(); ++j) {
    const double g = curvature.g[j];
    h[j] = g * g * curvature.vector.diagonal[j] + g * curvature.gradient[j];
    error[j] = g * g * curvature.vector.diagonal_error[j];
  }
  put("log_curvature", h);
  put("log_curvature_error", error);
}

}  // namespace scalevec
