#include <scalevec/core/model/linear_map.h>

#include <vector>

#include <scalevec/core/ops.h>

namespace scalevec {

at::Tensor LinearMap::operator()(const at::Tensor& x, const Watchers& watch) const {
  at::Tensor y = ops::linear(x, weight, bias);
  if (!output) return y;
  const std::int64_t width = output->width();
  if (width == 0 || width == y.size(-1)) return (*output)(y, watch);
  std::vector<std::int64_t> heads(y.sizes().begin(), y.sizes().end());
  heads.back() /= width;
  heads.push_back(width);
  return (*output)(y.view(heads), watch).view(y.sizes());
}

}  // namespace scalevec
