#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include <ATen/core/Tensor.h>

#include <scalevec/core/scale_map.h>
#include <scalevec/core/site.h>

namespace scalevec {

/// What one norm site did in one forward. The tensors are the model's own; whoever keeps them keeps memory,
/// whoever writes them breaks the model. The model writes none of them in place later. Where a graph is
/// recorded, input, scaled and vector are part of it; rms and normalized need not be. Only the parts that
/// some observer wants are defined.
struct NormEvent {
  const Site& site;
  std::size_t index;      // into SiteProvider::sites()
  at::Tensor input;       // (batch, tokens, width), or (batch, tokens, heads, head_dim) for q/k-norm
  at::Tensor rms;         // input's shape with the last dimension replaced by the number of groups
  at::Tensor normalized;  // input / rms: before the vector
  at::Tensor scaled;      // what the site's consumers read
  at::Tensor vector;  // (width,), the effective vector in use, undefined where there is none; with gradients
                      // on an alias of this forward's own, no leaf: a hook on it goes when the graph goes
};

/// Parts of a NormEvent, as bits.
namespace parts {
inline constexpr unsigned input = 1, rms = 2, normalized = 4, scaled = 8, vector = 16;
}

/// Something that looks at norm sites while a model runs, and may lend another vector for one forward. Core
/// knows that it is watched, never by whom.
class NormObserver {
 public:
  virtual ~NormObserver() = default;
  /// The parts wanted at a site (bits of `parts`); 0 for none. Asked before and after each site runs.
  virtual unsigned wants(std::size_t site) const = 0;
  virtual void see(const NormEvent&) {}
  /// (width,), effective values of any floating dtype, in place of the stored vector; undefined for none.
  virtual at::Tensor lend(std::size_t /*site*/) const { return {}; }
  /// Whether `lend` ever returns a vector: such an observer makes key-value caches filled without it stale.
  virtual bool lends() const { return false; }
};

/// The observers of one model, innermost last. Watching changes no bit of the output: the same kernels run.
/// Observers may be added and removed while they are being shown an event. Belongs to one model and, like it,
/// to one thread at a time.
class ObserverList {
 public:
  ObserverList() = default;
  ObserverList(const ObserverList&) = delete;
  ObserverList& operator=(const ObserverList&) = delete;

  void add(NormObserver* observer);
  void remove(NormObserver* observer) noexcept;
  bool empty() const { return observers_.empty(); }
  const std::vector<NormObserver*>& all() const { return observers_; }

  /// The parts that any observer wants at a site: what the model must put into the event. 0: no event is
  /// needed.
  unsigned wanted(std::size_t site) const;
  /// Shows the event to every observer that wants a part of its site, outermost first. What an observer
  /// throws reaches the caller.
  void show(const NormEvent& event) const;
  /// The innermost vector lent for a site, or undefined.
  at::Tensor lent(std::size_t site) const;
  /// Changes whenever a lending observer comes or goes.
  std::uint64_t lending_generation() const { return generation_; }
  /// Expires with the list: whoever may outlive the model asks this before removing an observer.
  std::weak_ptr<const void> alive() const { return alive_; }

 private:
  struct Cursor;

  std::vector<NormObserver*> observers_;
  std::uint64_t generation_ = 0;
  mutable Cursor* cursor_ = nullptr;
  std::shared_ptr<const void> alive_ = std::make_shared<char>();
};

/// Whatever has norm sites and runs: our transformer, or a foreign module.
class SiteProvider {
 public:
  virtual ~SiteProvider() = default;
  /// Every norm site in forward order, those without a vector included.
  virtual const std::vector<Site>& sites() const = 0;
  virtual ScaleMap& scales() = 0;
  virtual ObserverList& observers() = 0;
};

}  // namespace scalevec
