#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <ATen/core/Tensor.h>

#include <scalevec/core/observer.h>
#include <scalevec/core/selector.h>
#include <scalevec/hooks/tap.h>
#include <scalevec/hooks/watch.h>

namespace scalevec {

struct CaptureRecord;

/// What one site did: of each tap a list with one tensor per forward, oldest first, detached.
///
/// Every list fails with E_STATE, and says what to do, where it was not asked for or nothing was recorded.
/// Later backward passes still fill the gradients in; later forwards need another Capture::at.
class SiteCapture {
 public:
  const Site& site() const { return site_; }
  std::size_t forwards() const { return records_.size(); }

  /// (batch, tokens, width), or (batch, tokens, heads, head_dim) for q/k-norm. These share storage with the
  /// model's own activations: reading them fails with E_STATE once somebody has written to those.
  std::vector<at::Tensor> input() const { return get(taps::input); }
  /// As `input`, with one entry per group in place of the last dimension.
  std::vector<at::Tensor> rms() const { return get(taps::rms); }
  std::vector<at::Tensor> normalized() const { return get(taps::normalized); }
  std::vector<at::Tensor> scaled() const { return get(taps::scaled); }
  /// (width,), the effective vector in use, lent ones included: a copy.
  std::vector<at::Tensor> vector() const { return get(taps::vector); }
  /// As `input`. Several backward passes through one forward add up, as in Tensor.grad; undefined for a
  /// forward that no backward pass has reached.
  std::vector<at::Tensor> input_gradient() const { return get(taps::input_gradient); }
  /// (width,), of the effective vector in use, also where it was lent.
  std::vector<at::Tensor> vector_gradient() const { return get(taps::vector_gradient); }
  /// Any of the above; `tap` is one bit of scalevec::taps.
  std::vector<at::Tensor> get(unsigned tap) const;

 private:
  friend class Capture;
  SiteCapture(Site site, unsigned asked, std::vector<std::shared_ptr<const CaptureRecord>> records);

  Site site_;
  unsigned asked_;
  std::vector<std::shared_ptr<const CaptureRecord>> records_;
};

/// Keeps what selected norm sites do in every forward while it lives, and the gradients that reach them.
///
/// Every forward appends; `clear` forgets. It keeps activations alive, no graph: gradients come through hooks
/// that know it only weakly, so it may go before the backward pass, the graph or the model. Watching changes
/// no bit of the output. Gradients need a forward with grad mode on and something before the site that
/// requires them: a vector gradient needs `requires_grad` on the stored or the lent vector.
class Capture {
 public:
  /// `asked`: bits of scalevec::taps; E_VALUE if there are none or unknown ones. E_ADDR if nothing is
  /// selected.
  Capture(SiteProvider& model, const Selector& selector, unsigned asked = taps::forward);
  Capture(Capture&&) noexcept = default;
  Capture& operator=(Capture&&) noexcept = default;
  ~Capture();

  /// Ends the watching; what was captured stays, and gradients still arrive.
  void stop() noexcept { watch_.stop(); }
  bool watching() const { return watch_.watching(); }
  /// Forgets what was captured so far.
  void clear();

  /// Addresses of the selected sites, forward order.
  const std::vector<std::string>& addresses() const;
  /// By address or native name. E_ADDR if the site was not selected.
  SiteCapture at(std::string_view name) const;

 private:
  struct Store;
  std::shared_ptr<Store> store_;
  Watch watch_;
};

}  // namespace scalevec
