#include <scalevec/hooks/capture.h>

#include <algorithm>
#include <array>
#include <utility>

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <scalevec/core/error.h>
#include <scalevec/hooks/gradient_hooks.h>

namespace scalevec {
namespace {

// Why a gradient may be missing.
enum class Flow { unasked, gradients_off, not_required, flows };

struct Kept {
  at::Tensor tensor;
  std::int64_t version = 0;
};

// An inference tensor has no version; nothing but our own caller can write to one.
std::int64_t version_of(const at::Tensor& tensor) { return tensor.is_inference() ? 0 : tensor._version(); }

std::size_t index_of(unsigned tap) {
  std::size_t index = 0;
  while (tap >>= 1) ++index;
  return index;
}

}  // namespace

struct CaptureRecord {
  std::array<Kept, 5> parts;  // by bit of taps::forward
  std::array<at::Tensor, 2> gradients;
  std::array<Flow, 2> flow = {Flow::unasked, Flow::unasked};
};

struct Capture::Store final : NormObserver {
  std::vector<Site> sites;  // the selected ones
  std::vector<std::string> addresses;
  std::vector<std::size_t> slot;  // by the model's site: its place in `sites`, or npos
  std::vector<std::vector<std::shared_ptr<CaptureRecord>>> records;
  unsigned asked = 0;
  unsigned wanted = 0;
  GradientHooks hooks;

  static constexpr std::size_t npos = static_cast<std::size_t>(-1);

  unsigned wants(std::size_t site) const override { return slot[site] == npos ? 0 : wanted; }

  void see(const NormEvent& event) override {
    const auto record = std::make_shared<CaptureRecord>();
    const std::array<const at::Tensor*, 5> tensors = {&event.input, &event.rms, &event.normalized,
                                                      &event.scaled, &event.vector};
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      if ((asked & (1U << i)) == 0 || !tensors[i]->defined()) continue;
      Kept& kept = record->parts[i];
      kept.tensor = tensors[i]->detach();
      // The vector may share storage with the stored one, which edits write.
      if ((1U << i) == taps::vector) kept.tensor = kept.tensor.clone();
      kept.version = version_of(kept.tensor);
    }
    if ((asked & taps::input_gradient) != 0) follow(record, 0, event.input);
    if ((asked & taps::vector_gradient) != 0) follow(record, 1, event.vector);
    records[slot[event.index]].push_back(record);
  }

  void follow(const std::shared_ptr<CaptureRecord>& record, std::size_t which, const at::Tensor& tensor) {
    const bool flows = hooks.add(tensor, [weak = std::weak_ptr(record), which](const at::Tensor& gradient) {
      const auto alive = weak.lock();
      if (!alive) return;
      at::Tensor& sum = alive->gradients[which];
      // A copy: autograd may make the very storage some leaf's .grad, and add to it in the next pass.
      sum = sum.defined() ? sum.add(gradient) : gradient.clone();
    });
    record->flow[which] = flows                        ? Flow::flows
                          : at::GradMode::is_enabled() ? Flow::not_required
                                                       : Flow::gradients_off;
  }
};

SiteCapture::SiteCapture(Site site, unsigned asked, std::vector<std::shared_ptr<const CaptureRecord>> records)
    : site_(std::move(site)), asked_(asked), records_(std::move(records)) {}

std::vector<at::Tensor> SiteCapture::get(unsigned tap) const {
  const std::string_view name = tap_name(tap);
  const std::string& address = site_.address.str();
  const auto refuse = [&](std::string_view reason) {
    fail(ErrorCode::state, fmt::format("{} of '{}' was not captured: {}", name, address, reason),
         {.tensor = address, .key = std::string(name)});
  };
  if ((asked_ & tap) == 0) refuse("it was not asked for; name it when the Capture is made");
  if ((tap & (taps::vector | taps::vector_gradient)) != 0 && site_.width == 0)
    refuse("this norm has no vector");
  if (records_.empty())
    refuse("the model did not run while it was watched, or the capture was cleared since");

  std::vector<at::Tensor> out;
  const bool gradient = (tap & taps::gradients) != 0;
  const std::size_t which = gradient ? index_of(tap) - 5 : index_of(tap);
  bool any = false;
  Flow best = Flow::unasked;
  for (const auto& record : records_) {
    if (!gradient) {
      const Kept& kept = record->parts[which];
      if (kept.tensor.defined() && version_of(kept.tensor) != kept.version) {
        fail(ErrorCode::state,
             fmt::format(
                 "{} of '{}' was overwritten in place after it was captured; copy it inside a Tap to keep it",
                 name, address),
             {.tensor = address, .key = std::string(name)});
      }
      out.push_back(kept.tensor);
    } else {
      out.push_back(record->gradients[which]);
      best = std::max(best, record->flow[which]);
    }
    any = any || out.back().defined();
  }
  if (any) return out;
  if (!gradient) refuse("the model did not show it");
  if (best == Flow::flows) refuse("backward was not run, or the loss does not depend on it");
  if (best != Flow::not_required) refuse("grad mode was off during the forward");
  refuse(
      tap == taps::vector_gradient
          ? "the vector in use does not require gradients; call requires_grad_() on the stored or lent one"
          : "nothing before this norm requires gradients; call requires_grad_() on an earlier scale vector");
  return out;
}

Capture::Capture(SiteProvider& model, const Selector& selector, unsigned asked) {
  if (asked == 0 || (asked & ~taps::all) != 0) {
    fail(ErrorCode::value,
         fmt::format("a Capture takes bits of scalevec::taps (1 to {}), not {}", taps::all, asked),
         {.key = "taps"});
  }
  const std::vector<Site>& sites = model.sites();
  store_ = std::make_shared<Store>();
  store_->asked = asked;
  store_->wanted = (asked & taps::forward) | ((asked & taps::input_gradient) != 0 ? taps::input : 0) |
                   ((asked & taps::vector_gradient) != 0 ? taps::vector : 0);
  store_->slot.assign(sites.size(), Store::npos);
  for (const std::size_t site : select_sites(sites, selector)) {
    store_->slot[site] = store_->sites.size();
    store_->sites.push_back(sites[site]);
    store_->addresses.push_back(sites[site].address.str());
  }
  store_->records.resize(store_->sites.size());
  watch_ = Watch(model, store_);
}

Capture::~Capture() = default;

void Capture::clear() {
  for (auto& records : store_->records) records.clear();
  store_->hooks.clear();
}

const std::vector<std::string>& Capture::addresses() const { return store_->addresses; }

SiteCapture Capture::at(std::string_view name) const {
  const std::size_t index = find_site(store_->sites, name);
  const auto& records = store_->records[index];
  return {store_->sites[index], store_->asked, {records.begin(), records.end()}};
}

}  // namespace scalevec
