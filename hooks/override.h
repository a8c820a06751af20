#pragma once

#include <map>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include <scalevec/core/observer.h>
#include <scalevec/hooks/watch.h>

namespace scalevec {

/// Lends other scale vectors to a model for every forward while it lives. The stored ones are untouched.
///
/// Overrides nest: of several for one site the last one made is in force. Coming and going makes key-value
/// caches read their tokens again. Gradients flow to lent vectors that require them.
class Override {
 public:
  struct Options {
    bool allow_nonfinite = false;  // NaN and infinities
  };
  using Vectors = std::map<std::string, at::Tensor>;

  /// vectors: effective values by address or native name; each (width,), F64, F32, F16 or BF16, any device.
  /// They are copied, except those that require gradients: these are shared, and whoever writes to one makes
  /// the Override anew before a key-value cache is used again. E_ADDR for an unknown site or one named twice,
  /// E_SHAPE (also for a norm without a vector), E_DTYPE, E_VALUE for NaN and infinities unless allowed. On
  /// any error nothing is lent.
  Override(SiteProvider& model, const Vectors& vectors, Options options);
  Override(SiteProvider& model, const Vectors& vectors) : Override(model, vectors, Options{}) {}
  /// The vectors as they were when the model's scale map was made, whatever has been edited or lent since.
  static Override base(SiteProvider& model);

  /// Ends it early.
  void stop() noexcept { watch_.stop(); }
  bool active() const { return watch_.watching(); }
  /// Addresses of the sites that it lends to, forward order.
  const std::vector<std::string>& addresses() const { return addresses_; }

 private:
  std::vector<std::string> addresses_;
  Watch watch_;
};

}  // namespace scalevec
