#include <algorithm>

#include <scalevec/core/model/kv_state.h>
#include <scalevec/core/ops.h>

namespace scalevec {

KvCache::KvCache() : state_(std::make_unique<State>()) {}
KvCache::~KvCache() = default;
KvCache::KvCache(KvCache&&) noexcept = default;
KvCache& KvCache::operator=(KvCache&&) noexcept = default;

std::int64_t KvCache::length() const { return state_ ? static_cast<std::int64_t>(state_->ids.size()) : 0; }
void KvCache::clear() { state_ = std::make_unique<State>(); }

std::pair<at::Tensor, at::Tensor> LayerCache::append(const at::Tensor& k, const at::Tensor& v,
                                                     std::int64_t window) {
  const std::int64_t tokens = k.size(1);
  if (window > 0 && rows_ >= 2 * window) {
    // At most once in `window` steps, so a step costs one row on average.
    const std::int64_t keep = window - 1;
    for (at::Tensor* held : {&k_, &v_}) {
      held->narrow(1, 0, keep).copy_(held->narrow(1, rows_ - keep, keep).clone());
    }
    rows_ = keep;
  }
  const std::int64_t needed = rows_ + tokens;
  if (!k_.defined() || k_.size(1) < needed) {
    const std::int64_t capacity =
        std::max({needed, k_.defined() ? 2 * k_.size(1) : std::int64_t{0}, std::int64_t{64}});
    const auto grow = [&](at::Tensor& held, const at::Tensor& like) {
      at::Tensor larger = ops::empty({1, capacity, like.size(2), like.size(3)}, like.options());
      if (rows_ > 0) larger.narrow(1, 0, rows_).copy_(held.narrow(1, 0, rows_));
      held = std::move(larger);
    };
    grow(k_, k);
    grow(v_, v);
  }
  k_.narrow(1, rows_, tokens).copy_(k);
  v_.narrow(1, rows_, tokens).copy_(v);
  return {k_.narrow(1, 0, needed), v_.narrow(1, 0, needed)};
}

}  // namespace scalevec
