#include <scalevec/hooks/tap.h>

#include <array>
#include <memory>
#include <utility>

#include <fmt/format.h>

#include <scalevec/core/error.h>

namespace scalevec {
namespace {

constexpr std::array<std::pair<unsigned, std::string_view>, 7> names = {{
    {taps::input, "input"},
    {taps::rms, "rms"},
    {taps::normalized, "normalized"},
    {taps::scaled, "scaled"},
    {taps::vector, "vector"},
    {taps::input_gradient, "input_gradient"},
    {taps::vector_gradient, "vector_gradient"},
}};

class Caller final : public NormObserver {
 public:
  Caller(std::vector<unsigned> wanted, std::function<void(const NormEvent&)> function)
      : wanted_(std::move(wanted)), function_(std::move(function)) {}

  unsigned wants(std::size_t site) const override { return wanted_[site]; }
  void see(const NormEvent& event) override { function_(event); }

 private:
  std::vector<unsigned> wanted_;
  std::function<void(const NormEvent&)> function_;
};

}  // namespace

std::string_view tap_name(unsigned tap) {
  for (const auto& [bit, name] : names) {
    if (bit == tap) return name;
  }
  fail(ErrorCode::value, fmt::format("{} is no tap: expected one bit of scalevec::taps", tap));
}

unsigned parse_taps(std::span<const std::string> wanted) {
  unsigned bits = 0;
  for (const std::string& want : wanted) {
    unsigned found = 0;
    std::string known;
    for (const auto& [bit, name] : names) {
      if (name == want) found = bit;
      known += (known.empty() ? "" : ", ") + std::string(name);
    }
    if (found == 0) {
      fail(ErrorCode::value,
           fmt::format("'{}' cannot be tapped; expected some of {}", printable(want), known),
           {.key = want, .expected = known, .found = want});
    }
    bits |= found;
  }
  return bits;
}

std::size_t find_site(std::span<const Site> sites, std::string_view name) {
  std::vector<std::string> known;
  for (std::size_t i = 0; i < sites.size(); ++i) {
    if (sites[i].address.str() == name) return i;
    known.push_back(sites[i].address.str());
    if (sites[i].native.empty()) continue;
    if (sites[i].native == name) return i;
    known.push_back(sites[i].native);
  }
  std::string message = fmt::format("no norm site is named '{}'", printable(name));
  const char* before = "; the nearest are ";
  for (const std::string& close : nearest(name, known)) {
    message += before + close;
    before = ", ";
  }
  fail(ErrorCode::addr, message, {.tensor = std::string(name)});
}

std::vector<std::size_t> select_sites(std::span<const Site> sites, const Selector& selector) {
  std::vector<std::size_t> out;
  for (const Selection& selection : selector.select(sites)) {
    if (!selection.whole) {
      fail(
          ErrorCode::value,
          fmt::format(
              "'{}' names channels of '{}', but a norm is watched as a whole: drop what follows '@' and take "
              "the channels from the tensors",
              printable(selector.str()), sites[selection.site].address.str()),
          {.tensor = sites[selection.site].address.str(), .key = selector.str()});
    }
    out.push_back(selection.site);
  }
  return out;
}

Tap::Tap(SiteProvider& model, const Selector& selector, unsigned taps,
         std::function<void(const NormEvent&)> function) {
  if (taps == 0 || (taps & ~taps::forward) != 0) {
    fail(ErrorCode::value, fmt::format("a Tap takes input, rms, normalized, scaled and vector, not the bits "
                                       "{:#x}; gradients come with a "
                                       "Capture",
                                       taps));
  }
  std::vector<unsigned> wanted(model.sites().size(), 0);
  for (const std::size_t site : select_sites(model.sites(), selector)) wanted[site] = taps;
  watch_ = Watch(model, std::make_shared<Caller>(std::move(wanted), std::move(function)));
}

}  // namespace scalevec
