#pragma once

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <support/tensors.h>

#include <scalevec/core/observer.h>

/// A model small enough to know by heart: norm, map, a norm without a vector, map, norm with offset 1.
/// Composite operators of LibTorch, so that autograd's gradients are not ours.
class TwoNorms final : public scalevec::SiteProvider {
 public:
  static constexpr std::int64_t width = 5;

  explicit TwoNorms(at::ScalarType dtype = at::kDouble)
      : first(normal({width}, 1, dtype, 1.0, 0.3)), last(normal({width}, 2, dtype, 0.0, 0.3)), dtype_(dtype) {
    sites_ = {site("layers.0.attn.input_norm", "blk.0.attn_norm.weight", width, 0.0),
              site("layers.0.mlp.input_norm", "", 0, 0.0),
              site("final_norm", "output_norm.weight", width, 1.0)};
    scales_ = std::make_unique<scalevec::ScaleMap>(
        std::vector<scalevec::ScaleVector>{{sites_[0], first}, {sites_[2], last}});
  }

  const std::vector<scalevec::Site>& sites() const override { return sites_; }
  scalevec::ScaleMap& scales() override { return *scales_; }
  scalevec::ObserverList& observers() override { return observers_; }

  /// x: (batch, tokens, width).
  at::Tensor operator()(const at::Tensor& x) const {
    at::Tensor h = norm(0, x, first);
    h = norm(1, h.matmul(a_), {});
    return norm(2, h.matmul(b_), last.add(1.0));
  }

  at::Tensor first, last;  // stored

 private:
  static scalevec::Site site(const char* address, const char* native, std::int64_t entries, double offset) {
    scalevec::Site s;
    s.address = scalevec::Address::parse(address);
    s.native = native;
    s.width = entries;
    s.group = width;
    s.eps = 1e-6;
    s.offset = offset;
    if (offset != 0.0) s.parametrisation = scalevec::Parametrisation::offset;
    return s;
  }

  at::Tensor norm(std::size_t site, const at::Tensor& x, at::Tensor g) const {
    if (const at::Tensor lent = observers_.lent(site); lent.defined()) g = lent.to(dtype_);
    const unsigned wanted = observers_.wanted(site);
    if (g.defined() && g.is_leaf() && g.requires_grad() && at::GradMode::is_enabled()) g = g.view(g.sizes());
    const at::Tensor rms = x.mul(x).mean({-1}, true).add(1e-6).sqrt();
    const at::Tensor normalized = x.div(rms);
    const at::Tensor scaled = g.defined() ? normalized.mul(g) : normalized;
    if (wanted != 0) observers_.show({sites_[site], site, x, rms, normalized, scaled, g});
    return scaled;
  }

  at::ScalarType dtype_;
  at::Tensor a_ = normal({width, width}, 3, dtype_), b_ = normal({width, width}, 4, dtype_);
  std::vector<scalevec::Site> sites_;
  std::unique_ptr<scalevec::ScaleMap> scales_;
  scalevec::ObserverList observers_;
};
