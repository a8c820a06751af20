#include <scalevec/hooks/override.h>

#include <memory>
#include <utility>

#include <ATen/core/grad_mode.h>
#include <c10/core/ScalarType.h>
#include <fmt/format.h>

#include <scalevec/core/error.h>
#include <scalevec/hooks/tap.h>

namespace scalevec {
namespace {

class Lender final : public NormObserver {
 public:
  explicit Lender(std::vector<at::Tensor> vectors) : vectors_(std::move(vectors)) {}

  unsigned wants(std::size_t) const override { return 0; }
  bool lends() const override { return true; }
  at::Tensor lend(std::size_t site) const override {
    const at::Tensor& vector = vectors_[site];
    // Each forward gets an alias: a hook on it then goes with that forward's graph instead of staying on the
    // leaf.
    if (vector.defined() && vector.requires_grad() && at::GradMode::is_enabled())
      return vector.view(vector.sizes());
    return vector;
  }

 private:
  std::vector<at::Tensor> vectors_;
};

std::string shape_text(const at::Tensor& tensor) {
  if (!tensor.defined()) return "no tensor";
  std::string out;
  for (const std::int64_t size : tensor.sizes()) out += (out.empty() ? "" : ", ") + std::to_string(size);
  return "[" + out + "]";
}

void check(const Site& site, const at::Tensor& vector, const Override::Options& options) {
  const std::string& address = site.address.str();
  if (site.width == 0) {
    fail(ErrorCode::shape,
         fmt::format("'{}' has no vector to override: the norm divides and nothing more", address),
         {.tensor = address});
  }
  if (!vector.defined() || vector.dim() != 1 || vector.size(0) != site.width) {
    const std::string expected = fmt::format("[{}]", site.width);
    fail(ErrorCode::shape,
         fmt::format("the vector for '{}' has shape {}; expected {}, one effective value per channel",
                     address, shape_text(vector), expected),
         {.tensor = address, .expected = expected, .found = shape_text(vector)});
  }
  const at::ScalarType dtype = vector.scalar_type();
  if (dtype != at::kDouble && dtype != at::kFloat && dtype != at::kHalf && dtype != at::kBFloat16) {
    fail(ErrorCode::dtype,
         fmt::format("the vector for '{}' is {}; expected effective values as F64, F32, F16 or BF16", address,
                     c10::toString(dtype)),
         {.tensor = address, .expected = "F64, F32, F16 or BF16", .found = c10::toString(dtype)});
  }
  if (options.allow_nonfinite) return;
  const at::Tensor values = vector.detach().to(at::TensorOptions(at::kCPU).dtype(at::kDouble));
  const at::Tensor nonfinite = values.isfinite().logical_not().nonzero();
  if (nonfinite.size(0) == 0) return;
  const auto channel = nonfinite.select(0, 0).item<std::int64_t>();
  const std::string found = fmt::format("{}", values.select(0, channel).item<double>());
  fail(ErrorCode::value,
       fmt::format("the vector for '{}' is {} at channel {}; set allow_nonfinite if that is meant", address,
                   found, channel),
       {.tensor = address, .index = channel, .expected = "finite values", .found = found});
}

}  // namespace

Override::Override(SiteProvider& model, const Vectors& vectors, Options options) {
  const std::vector<Site>& sites = model.sites();
  std::vector<at::Tensor> lent(sites.size());
  for (const auto& [name, vector] : vectors) {
    const std::size_t index = find_site(sites, name);
    check(sites[index], vector, options);
    if (lent[index].defined()) {
      fail(ErrorCode::addr,
           fmt::format("'{}' is overridden twice, by address and by native name", sites[index].address.str()),
           {.tensor = sites[index].address.str()});
    }
    lent[index] = vector.requires_grad() ? vector : vector.detach().clone();
  }
  for (std::size_t i = 0; i < sites.size(); ++i) {
    if (lent[i].defined()) addresses_.push_back(sites[i].address.str());
  }
  if (!addresses_.empty()) watch_ = Watch(model, std::make_shared<Lender>(std::move(lent)));
}

Override Override::base(SiteProvider& model) {
  const ScaleMap& scales = model.scales();
  Vectors vectors;
  for (std::size_t i = 0; i < scales.size(); ++i) {
    const ScaleVector& vector = scales[i];
    vectors[vector.address()] = scales.base(i).effective();
  }
  // What a file holds is lent as it is, NaN included.
  return {model, vectors, Options{.allow_nonfinite = true}};
}

}  // namespace scalevec
