#include <scalevec/hooks/reductions.h>

#include <array>
#include <utility>

#include <ATen/core/Tensor.h>
#include <fmt/format.h>

#include <scalevec/core/error.h>
#include <scalevec/hooks/gradient_hooks.h>

namespace scalevec {
namespace {

constexpr std::array<unsigned, 4> reducible = {taps::input, taps::rms, taps::normalized, taps::scaled};
constexpr unsigned all_reducible = taps::input | taps::rms | taps::normalized | taps::scaled;

// By place in `reducible`, for one site.
using Figures = std::array<ChannelReduction, reducible.size()>;

}  // namespace

struct Reductions::Store final : NormObserver {
  std::vector<Site> sites;
  std::vector<std::string> addresses;
  std::vector<std::size_t> slot;
  std::shared_ptr<std::vector<Figures>> figures;  // by slot; hooks know it weakly, clear() makes it anew
  unsigned taps = 0;
  bool products = false;
  GradientHooks hooks;

  static constexpr std::size_t npos = static_cast<std::size_t>(-1);

  unsigned wants(std::size_t site) const override { return slot[site] == npos ? 0 : taps; }

  void see(const NormEvent& event) override {
    const std::array<const at::Tensor*, reducible.size()> tensors = {&event.input, &event.rms,
                                                                     &event.normalized, &event.scaled};
    const std::size_t place = slot[event.index];
    for (std::size_t i = 0; i < reducible.size(); ++i) {
      if ((taps & reducible[i]) == 0 || !tensors[i]->defined()) continue;
      (*figures)[place][i].add(*tensors[i]);
      if (!products) continue;
      hooks.add(*tensors[i], [weak = std::weak_ptr(figures), place, i,
                              values = tensors[i]->detach()](const at::Tensor& gradient) {
        if (const auto alive = weak.lock()) (*alive)[place][i].add_product(values, gradient);
      });
    }
  }
};

Reductions::Reductions(SiteProvider& model, const Selector& selector, unsigned taps, bool products) {
  if (taps == 0 || (taps & ~all_reducible) != 0) {
    fail(
        ErrorCode::value,
        fmt::format(
            "Reductions take input, rms, normalized and scaled, not the bits {:#x}; for gradients of vectors "
            "make a Capture",
            taps),
        {.key = "taps"});
  }
  const std::vector<Site>& sites = model.sites();
  store_ = std::make_shared<Store>();
  store_->taps = taps;
  store_->products = products;
  store_->slot.assign(sites.size(), Store::npos);
  for (const std::size_t site : select_sites(sites, selector)) {
    store_->slot[site] = store_->sites.size();
    store_->sites.push_back(sites[site]);
    store_->addresses.push_back(sites[site].address.str());
  }
  clear();
  watch_ = Watch(model, store_);
}

Reductions::~Reductions() = default;

void Reductions::clear() {
  store_->hooks.clear();
  store_->figures = std::make_shared<std::vector<Figures>>(store_->sites.size());
}

void Reductions::merge(const Reductions& other) {
  if (other.store_->addresses != store_->addresses || other.store_->taps != store_->taps) {
    fail(ErrorCode::value,
         "only reductions of the same sites and taps can be merged: make both with one selector");
  }
  for (std::size_t place = 0; place < store_->sites.size(); ++place) {
    for (std::size_t i = 0; i < reducible.size(); ++i) {
      (*store_->figures)[place][i].merge((*other.store_->figures)[place][i]);
    }
  }
}

const std::vector<std::string>& Reductions::addresses() const { return store_->addresses; }

ChannelReduction Reductions::at(std::string_view name, unsigned tap) const {
  const std::size_t place = find_site(store_->sites, name);
  for (std::size_t i = 0; i < reducible.size(); ++i) {
    if (reducible[i] == tap && (store_->taps & tap) != 0) return (*store_->figures)[place][i];
  }
  fail(ErrorCode::value,
       fmt::format("{} of '{}' is not reduced here: name it when the Reductions are made", tap_name(tap),
                   store_->addresses[place]),
       {.tensor = store_->addresses[place], .key = std::string(tap_name(tap))});
}

}  // namespace scalevec
