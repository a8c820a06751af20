#include <scalevec/core/model/norm_layer.h>

#include <string>
#include <utility>

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <scalevec/core/components.h>
#include <scalevec/core/error.h>
#include <scalevec/core/norm.h>

namespace scalevec {
namespace {

at::Tensor check_lent(const at::Tensor& lent, const Site& site, std::int64_t width) {
  if (width == 0) {
    fail(ErrorCode::config,
         fmt::format("'{}' has no scale vector, so none can be lent to it", site.address.str()),
         {.tensor = site.address.str()});
  }
  if (lent.dim() != 1 || lent.size(0) != width) {
    fail(ErrorCode::shape,
         fmt::format("the vector lent to '{}' has {} entries in {} dimensions", site.address.str(),
                     lent.numel(), lent.dim()),
         {.tensor = site.address.str(), .expected = fmt::format("({},)", width)});
  }
  if (!lent.is_floating_point()) {
    fail(ErrorCode::dtype,
         fmt::format("the vector lent to '{}' is {}", site.address.str(), c10::toString(lent.scalar_type())),
         {.tensor = site.address.str(), .expected = "a floating dtype"});
  }
  return lent;
}

}  // namespace

NormLayer::NormLayer(std::size_t site, const NormSpec& spec, at::Tensor stored, at::Tensor bias,
                     at::Tensor beta)
    : site_(site), spec_(spec), stored_(std::move(stored)), bias_(std::move(bias)), beta_(std::move(beta)) {}

at::Tensor NormLayer::vector(const at::Tensor& x, const Watchers& watch) const {
  const at::ScalarType dtype = norm_dtype(x.scalar_type());
  if (!watch.observers.empty()) {
    if (const at::Tensor lent = watch.observers.lent(site_); lent.defined()) {
      return check_lent(lent, watch.sites[site_], spec_.width).to(x.device(), dtype);
    }
  }
  if (!stored_.defined()) return {};
  const double offset = spec_.offset;
  const bool one_tensor = in_one_tensor(spec_.parametrisation);
  if (one_tensor && offset == 0.0 && stored_.scalar_type() == dtype) return stored_;
  // A float64 vector is added to before it is rounded, others after they are widened: one rounding in both.
  const auto convert = [&] {
    if (!one_tensor) return compose(spec_.parametrisation, stored_.to(dtype), beta_.to(dtype));
    const at::Tensor wide = stored_.scalar_type() == at::kDouble ? stored_ : stored_.to(dtype);
    return (offset == 0.0 ? wide : wide.add(offset)).to(dtype);
  };
  const auto learns = [](const at::Tensor& t) { return t.defined() && t.requires_grad(); };
  if (stored_.is_inference() || (at::GradMode::is_enabled() && (learns(stored_) || learns(beta_))))
    return convert();
  const auto count = [](const at::Tensor& t) { return static_cast<std::uint64_t>(t._version()); };
  if (const std::uint64_t version = count(stored_) + (one_tensor ? 0 : count(beta_));
      !converted_.defined() || converted_.scalar_type() != dtype || converted_.is_inference() ||
      version_ != version) {
    const at::NoGradGuard no_grad;
    converted_ = convert();
    version_ = version;
  }
  return converted_;
}

at::Tensor NormLayer::operator()(const at::Tensor& x, const Watchers& watch) const {
  at::Tensor g = vector(x, watch);
  const at::Tensor bias = bias_.defined() ? bias_.to(norm_dtype(x.scalar_type())) : bias_;
  const unsigned wanted = watch.wanted(site_);
  // Hooks on a leaf would outlive this forward: watchers see an alias.
  if ((wanted & parts::vector) && g.defined() && g.requires_grad() && g.is_leaf() &&
      at::GradMode::is_enabled()) {
    g = g.view(g.sizes());
  }
  if (wanted == 0) return apply_norm(spec_.statistics, x, g, bias, spec_.eps, spec_.group);

  NormParts computed{.want_rms = (wanted & parts::rms) != 0,
                     .want_normalized = (wanted & parts::normalized) != 0};
  at::Tensor y = apply_norm(spec_.statistics, x, g, bias, spec_.eps, spec_.group, &computed);
  const auto part = [wanted](unsigned bit, const at::Tensor& tensor) {
    return (wanted & bit) ? tensor : at::Tensor();
  };
  watch.show({.site = watch.sites[site_],
              .index = site_,
              .input = part(parts::input, x),
              .rms = part(parts::rms, computed.rms),
              .normalized = part(parts::normalized, computed.normalized),
              .scaled = part(parts::scaled, y),
              .vector = part(parts::vector, g)});
  return y;
}

std::vector<at::Tensor> InputNorm::operator()(const at::Tensor& x, const Watchers& watch) const {
  const at::Tensor common = shared ? (*shared)(x, watch) : x;
  std::vector<at::Tensor> out;
  out.reserve(branches.size());
  for (const auto& branch : branches) out.push_back(branch ? (*branch)(x, watch) : common);
  return out;
}

}  // namespace scalevec
