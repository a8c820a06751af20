#include <scalevec/core/observer.h>

#include <algorithm>

namespace scalevec {

/// A place in the list that stays right while observers come and go under a running `show`.
struct ObserverList::Cursor {
  explicit Cursor(const ObserverList& list) : list_(list), outer(list.cursor_) { list.cursor_ = this; }
  ~Cursor() { list_.cursor_ = outer; }
  Cursor(const Cursor&) = delete;
  Cursor& operator=(const Cursor&) = delete;

  const ObserverList& list_;
  Cursor* outer;
  std::size_t next = 0;
};

void ObserverList::add(NormObserver* observer) {
  observers_.push_back(observer);
  if (observer->lends()) ++generation_;
}

void ObserverList::remove(NormObserver* observer) noexcept {
  const auto found = std::find(observers_.rbegin(), observers_.rend(), observer);
  if (found == observers_.rend()) return;
  const auto place = std::prev(found.base());
  const auto index = static_cast<std::size_t>(place - observers_.begin());
  for (Cursor* cursor = cursor_; cursor != nullptr; cursor = cursor->outer) {
    if (index < cursor->next) --cursor->next;
  }
  observers_.erase(place);
  if (observer->lends()) ++generation_;
}

unsigned ObserverList::wanted(std::size_t site) const {
  unsigned wanted = 0;
  for (const NormObserver* observer : observers_) wanted |= observer->wants(site);
  return wanted;
}

void ObserverList::show(const NormEvent& event) const {
  for (Cursor cursor(*this); cursor.next < observers_.size();) {
    NormObserver* observer = observers_[cursor.next++];
    if (observer->wants(event.index) != 0) observer->see(event);
  }
}

at::Tensor ObserverList::lent(std::size_t site) const {
  for (auto observer = observers_.rbegin(); observer != observers_.rend(); ++observer) {
    if (at::Tensor vector = (*observer)->lend(site); vector.defined()) return vector;
  }
  return {};
}

}  // namespace scalevec
