#include <scalevec/hooks/watch.h>

#include <utility>

namespace scalevec {

Watch::Watch(SiteProvider& model, std::shared_ptr<NormObserver> observer)
    : list_(&model.observers()), model_alive_(list_->alive()) {
  list_->add(observer.get());
  observer_ = std::move(observer);
}

Watch::Watch(Watch&& other) noexcept
    : observer_(std::exchange(other.observer_, nullptr)),
      list_(std::exchange(other.list_, nullptr)),
      model_alive_(std::move(other.model_alive_)) {}

Watch& Watch::operator=(Watch&& other) noexcept {
  if (this == &other) return *this;
  stop();
  observer_ = std::exchange(other.observer_, nullptr);
  list_ = std::exchange(other.list_, nullptr);
  model_alive_ = std::move(other.model_alive_);
  return *this;
}

void Watch::stop() noexcept {
  if (watching()) list_->remove(observer_.get());
  observer_.reset();
  list_ = nullptr;
}

}  // namespace scalevec
