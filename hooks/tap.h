#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <scalevec/core/observer.h>
#include <scalevec/core/selector.h>
#include <scalevec/hooks/watch.h>

namespace scalevec {

/// What can be read at a norm site, as bits: the parts of an event, and what a backward pass adds.
namespace taps {
inline constexpr unsigned input = parts::input, rms = parts::rms, normalized = parts::normalized,
                          scaled = parts::scaled, vector = parts::vector;
inline constexpr unsigned input_gradient = 32, vector_gradient = 64;
inline constexpr unsigned forward = input | rms | normalized | scaled | vector;
inline constexpr unsigned gradients = input_gradient | vector_gradient;
inline constexpr unsigned all = forward | gradients;
}  // namespace taps

/// "input", "rms", "normalized", "scaled", "vector", "input_gradient" or "vector_gradient". `tap`: one bit.
std::string_view tap_name(unsigned tap);
/// The bits of some names. E_VALUE lists the names.
unsigned parse_taps(std::span<const std::string> names);

/// The site of that address or native name, those without a vector included; E_ADDR names the nearest three.
std::size_t find_site(std::span<const Site> sites, std::string_view name);
/// Indices of the selected sites. Those without a vector are selected like the others. E_VALUE if the
/// selector names channels: a norm is watched as a whole.
std::vector<std::size_t> select_sites(std::span<const Site> sites, const Selector& selector);

/// Calls a function with the event of every selected site, in each forward while it lives.
///
/// The function may throw: the forward stops, the caller gets the exception, the model stays usable.
class Tap {
 public:
  /// taps: bits of taps::forward; E_VALUE otherwise, or if there are none.
  Tap(SiteProvider& model, const Selector& selector, unsigned taps,
      std::function<void(const NormEvent&)> function);

  void stop() noexcept { watch_.stop(); }
  bool watching() const { return watch_.watching(); }

 private:
  Watch watch_;
};

}  // namespace scalevec
