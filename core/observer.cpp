#include <scalevec/core/observer.h>

#include <algorithm>

namespace scalevec {

void ObserverList::add(NormObserver* observer) {
  observers_.push_back(observer);
  if (observer->lends()) ++generation_;
}

void ObserverList::remove(NormObserver* observer) noexcept {
  const auto found = std::find(observers_.rbegin(), observers_.rend(), observer);
  if (found == observers_.rend()) return;
  observers_.erase(std::next(found).base());
  if (observer->lends()) ++generation_;
}

at::Tensor ObserverList::lent(std::size_t site) const {
  for (auto observer = observers_.rbegin(); observer != observers_.rend(); ++observer) {
    if (at::Tensor vector = (*observer)->lend(site); vector.defined()) return vector;
  }
  return {};
}

}  // namespace scalevec
