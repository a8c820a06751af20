#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <scalevec/core/observer.h>
#include <scalevec/core/selector.h>
#include <scalevec/hooks/channel_reduction.h>
#include <scalevec/hooks/tap.h>
#include <scalevec/hooks/watch.h>

namespace scalevec {

/// Reduces what selected norm sites do, in every forward while it lives, to figures per channel: a text of
/// any length costs the memory of a few vectors.
///
/// Taps are reduced over all dimensions but the last: of `input`, `normalized` and `scaled` the channels of a
/// token (of a head for q/k-norm), of `rms` the groups. With `products` also sum over tokens of t * d loss /
/// d t, through hooks that hold an activation as long as its autograd graph does and know this object only
/// weakly. For `scaled` this is the saliency of the scale vector, g * d loss / d g.
class Reductions {
 public:
  /// taps: bits of input, rms, normalized and scaled; E_VALUE otherwise. E_ADDR if nothing is selected.
  Reductions(SiteProvider& model, const Selector& selector, unsigned taps, bool products = false);
  Reductions(Reductions&&) noexcept = default;
  Reductions& operator=(Reductions&&) noexcept = default;
  ~Reductions();

  /// Ends the watching; the figures stay, and gradients still arrive.
  void stop() noexcept { watch_.stop(); }
  bool watching() const { return watch_.watching(); }
  /// Starts again at nothing. Gradients of earlier forwards are dropped.
  void clear();
  /// Adds what another one saw. E_VALUE unless it has the same sites and taps.
  void merge(const Reductions& other);

  /// Addresses of the selected sites, forward order.
  const std::vector<std::string>& addresses() const;
  /// The figures of one site (address or native name) and one tap so far: a copy. E_ADDR, E_VALUE.
  ChannelReduction at(std::string_view name, unsigned tap) const;

 private:
  struct Store;
  std::shared_ptr<Store> store_;
  Watch watch_;
};

}  // namespace scalevec
