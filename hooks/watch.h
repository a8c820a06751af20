#pragma once

#include <memory>

#include <scalevec/core/observer.h>

namespace scalevec {

/// Lets an observer watch a model for as long as this object lives.
///
/// Watches nest and end in any order, by any exit from their scope. One that outlives its model does nothing
/// more. Movable; what is moved from watches nothing. Shares the observer, so that it cannot dangle.
class Watch {
 public:
  /// Watches nothing.
  Watch() = default;
  Watch(SiteProvider& model, std::shared_ptr<NormObserver> observer);
  ~Watch() { stop(); }
  Watch(Watch&& other) noexcept;
  Watch& operator=(Watch&& other) noexcept;

  /// Ends it early. Does nothing the second time.
  void stop() noexcept;
  /// False after stop(), after a move, and once the model is gone.
  bool watching() const { return observer_ != nullptr && !model_alive_.expired(); }

 private:
  std::shared_ptr<NormObserver> observer_;
  ObserverList* list_ = nullptr;
  std::weak_ptr<const void> model_alive_;
};

}  // namespace scalevec
