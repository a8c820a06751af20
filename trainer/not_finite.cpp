#include <scalevec/trainer/not_finite.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <scalevec/core/error.h>
#include <scalevec/hooks/watch.h>

namespace scalevec {
namespace {

// Where in a layer; the first that a slot begins with counts.
constexpr std::array<std::pair<std::string_view, int>, 16> places{{
    {"attn.input_norm", 0},
    {"attn.output_norm", 4},
    {"attn.q_norm", 2},
    {"attn.k_norm", 2},
    {"attn.q", 1},
    {"attn.k", 1},
    {"attn.v", 1},
    {"attn.o", 3},
    {"mlp.input_norm", 5},
    {"mlp.output_norm", 9},
    {"mlp.router", 6},
    {"mlp.experts.down", 8},
    {"mlp.experts", 7},
    {"mlp.gate", 7},
    {"mlp.up", 7},
    {"mlp.down", 8},
}};

// Layer, place in it, and whether behind the map of that place.
std::tuple<long, int, bool> place_of(std::string_view slot) {
  constexpr std::string_view layers = "layers.";
  if (slot.starts_with("embed")) return {-1, 0, false};
  const long last = std::numeric_limits<long>::max();
  if (!slot.starts_with(layers)) return {last, slot.starts_with("final_norm") ? 0 : 1, false};
  slot.remove_prefix(layers.size());
  long layer = 0;
  const auto read = std::from_chars(slot.data(), slot.data() + slot.size(), layer);
  slot.remove_prefix(static_cast<std::size_t>(read.ptr - slot.data()) + 1);
  for (const auto& [prefix, place] : places) {
    if (slot.starts_with(prefix)) {
      return {layer, place, slot.substr(prefix.size()).starts_with(".output_norm")};
    }
  }
  return {layer, 0, false};
}

struct Found {
  std::int64_t entries = 0, of = 0, first = 0;
  double value = 0.0;
};

std::optional<Found> not_finite(const at::Tensor& t) {
  const at::Tensor entries = t.flatten().isfinite().logical_not().nonzero().flatten();
  if (entries.numel() == 0) return std::nullopt;
  const auto first = entries[0].item<std::int64_t>();
  return Found{entries.numel(), t.numel(), first, t.flatten()[first].to(at::kDouble).item<double>()};
}

// The first site that reads or gives what is not finite.
class FirstSite final : public NormObserver {
 public:
  unsigned wants(std::size_t) const override { return found ? 0 : parts::input | parts::scaled; }
  void see(const NormEvent& event) override {
    for (const auto& [side, tensor] : {std::pair{"reads", event.input}, std::pair{"gives", event.scaled}}) {
      if (found) return;
      found = not_finite(tensor);
      address = event.site.address.str();
      what = side;
    }
    if (!found) before = address;
  }

  std::optional<Found> found;
  std::string address, what, before;
};

std::string text_of(double loss) { return std::isnan(loss) ? "no number" : fmt::format("{}", loss); }

constexpr std::string_view advice = "Lower the learning rate or lengthen the warm-up, in a new run";

[[noreturn]] void refuse(const std::string& begin, const std::string& tensor, const std::string& what,
                         const Found& found) {
  fail(ErrorCode::value,
       fmt::format("{}: {} is not finite in {} of {} entries, first in {}. {}", begin, what, found.entries,
                   found.of, found.first, advice),
       {.tensor = tensor,
        .index = found.first,
        .expected = "finite values",
        .found = fmt::format("{}", found.value)});
}

void refuse_parameters(const Optimizer& optimizer, const std::string& begin) {
  std::vector<std::string_view> slots;
  for (const Parameter& p : optimizer.parameters()) slots.push_back(p.slot);
  std::sort(slots.begin(), slots.end(), comes_before);
  for (const std::string_view slot : slots) {
    if (const auto found = not_finite(optimizer.parameter(slot).leaf)) {
      refuse(begin, std::string(slot), fmt::format("the parameter '{}'", slot), *found);
    }
  }
}

}  // namespace

bool comes_before(std::string_view slot, std::string_view other) {
  return std::pair(place_of(slot), slot) < std::pair(place_of(other), other);
}

void fail_for_loss(std::string_view when, double loss, const Optimizer& optimizer, Transformer& model,
                   const std::vector<at::Tensor>& batches) {
  const at::NoGradGuard no_grad;
  const std::string begin = fmt::format("{}: the loss is {}", when, text_of(loss));
  refuse_parameters(optimizer, begin);
  for (const at::Tensor& ids : batches) {
    const auto sites = std::make_shared<FirstSite>();
    const Watch watch(model, sites);
    const at::Tensor hidden = model.hidden(ids);
    if (sites->found) {
      const std::string since = sites->before.empty() ? std::string("every parameter is finite")
                                                      : fmt::format("all is finite up to {}", sites->before);
      refuse(begin, sites->address, fmt::format("{}, and what {} {}", since, sites->address, sites->what),
             *sites->found);
    }
    for (const at::Tensor& window : hidden.unbind(0)) {
      if (const auto found = not_finite(model.head(window))) {
        refuse(begin, "head", "all is finite up to the last norm, and what the head gives", *found);
      }
    }
  }
  fail(
      ErrorCode::value,
      fmt::format("{}, though every parameter and logit is finite: their range is too large for its sums. {}",
                  begin, advice),
      {.tensor = "head", .expected = "a finite loss", .found = text_of(loss)});
}

bool all_finite(const Optimizer& optimizer) {
  return std::ranges::none_of(optimizer.parameters(),
                              [](const Parameter& p) { return not_finite(p.leaf).has_value(); });
}

void check_finite(const Optimizer& optimizer) {
  const at::NoGradGuard no_grad;
  refuse_parameters(optimizer, fmt::format("training, after step {}", optimizer.steps()));
}

}  // namespace scalevec
