// What must be 0 where gradients are right, and what is said where it is not (docs/trace_metrics.md, 17 and
// 19).
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include <scalevec/analysis/doubles.h>
#include <scalevec/analysis/tracer_state.h>

namespace scalevec {
namespace {

using kernels::LineSums;
using Values = std::vector<double>;
using Rule = UpdateFacts::Rule;

// What is normalised behind a map and its bias depends on the size of either.
bool has_bias(const std::vector<TracedMap>& maps) {
  return std::any_of(maps.begin(), maps.end(), [](const TracedMap& map) { return map.biased; });
}

}  // namespace

void Tracer::State::find_pairs() {
  for (std::size_t k = 0; k < vectors.size(); ++k) {
    const Site& keys = vectors[k].site;
    for (const std::string& address : queries_beside(keys.address.str())) {
      const auto queries = index.find(address);
      if (queries == index.end()) continue;
      const Site& of = vectors[queries->second].site;
      // Whole outputs that are normalised together, or of which nobody has said how, have no heads.
      if (address.ends_with("output_norm") && of.group == of.width) continue;
      if (of.group == keys.group && of.width % keys.width == 0) keys_of[queries->second] = k;
    }
  }
  for (std::size_t k = 0; k < vectors.size(); ++k) {
    bool all = !vectors[k].consumers.empty();
    for (const TracedMap& reader : vectors[k].consumers) {
      bool normalised = false;
      for (std::size_t i = 0; i < vectors.size(); ++i) {
        for (const TracedMap& map : vectors[i].producers) {
          if (!map.weight.is_same(reader.weight)) continue;
          pairs.push_back({i, k, map.weight});
          normalised |= vectors[i].site.kind != Statistics::none && !has_bias(vectors[i].producers);
        }
      }
      all &= normalised;
    }
    normalised_behind.push_back(all);
  }
}

void Tracer::State::invariance(std::size_t i, Step& begun, const MapStep& maps) {
  const Site& site = vectors[i].site;
  const std::vector<TracedMap>& producers = vectors[i].producers;
  if (site.kind == Statistics::none || producers.empty() || has_bias(producers)) return;
  const auto ww = maps.sums[LineSums::ww], wg = maps.sums[LineSums::wg], gg = maps.sums[LineSums::gg];
  const UpdateFacts facts = begun.map();
  const auto wd = maps.sums[LineSums::wd], dd = maps.sums[LineSums::dd];
  const auto group = static_cast<std::size_t>(site.group);
  double rates = 0, groups = 0;
  Values turned;
  for (std::size_t first = 0; first + group <= ww.size(); first += group) {
    double w = 0, g = 0, product = 0, along = 0, moved = 0;
    for (std::size_t j = first; j < first + group; ++j) {
      w += ww[j], g += gg[j], product += wg[j];
      along += wd[j], moved += dd[j];
    }
    turned.push_back(rotation(w, along, moved));
    begun.group_residuals.push_back(w > 0 && g > 0 ? std::fabs(product) / std::sqrt(w * g) : 0.0);
    const double known = facts.rule == Rule::other ? std::numeric_limits<double>::quiet_NaN() : facts.rate;
    rates += known / (facts.rule == Rule::sgd ? w : std::sqrt(w));
    ++groups;
  }
  put("elr_invariant", i, rates / groups);
  if (std::ranges::all_of(turned, [](double angle) { return std::isfinite(angle); })) {
    put("group_rotation_min", i, *std::ranges::min_element(turned));
    put("group_rotation_max", i, *std::ranges::max_element(turned));
  }
  if (!begun.complete()) return begun.group_residuals.clear();
  double worst = 0;
  for (const double residual : begun.group_residuals) worst = std::max(worst, residual);
  put("scale_inv_residual", i, worst);
}

// A norm that divides by sqrt(r^2 + eps) leaves a share of eps / r^2 of what its rows' gradients have along
// the rows. r^2 is what they give of inputs that have mean square 1 before their vector: where the map reads
// no such vector, it is not known.
double Tracer::State::left_by_eps(std::size_t output) const {
  double most = std::numeric_limits<double>::quiet_NaN();
  for (const Pair& pair : pairs) {
    const TracedVector& norm = vectors[pair.output];
    if (pair.output != output || norm.site.kind == Statistics::none) continue;
    const at::Tensor g = tensor_of(steps[pair.input].g).to(pair.map.device());
    const Values rows = doubles_of(pair.map.detach().to(at::kDouble).mul(g).square().sum(-1));
    const auto group = static_cast<std::size_t>(norm.site.group);
    for (std::size_t first = 0; first + group <= rows.size(); first += group) {
      const double squares = std::accumulate(rows.begin() + static_cast<std::ptrdiff_t>(first),
                                             rows.begin() + static_cast<std::ptrdiff_t>(first + group), 0.0);
      const double share = norm.site.eps * static_cast<double>(group) / squares;
      if (!(most >= share)) most = share;
    }
  }
  return most;
}

void Tracer::State::judge(std::size_t i, std::int64_t step) {
  const Step& now = steps[i];
  const std::string address = vectors[i].site.address.str();
  if (options.gauge_tolerance <= 0.0 ||
      std::any_of(faults.begin(), faults.end(), [&](const GaugeFault& f) { return f.address == address; })) {
    return;
  }
  // The first above `least`, if any.
  const auto judged = [&](const char* identity, const Values& residuals, std::int64_t channels,
                          double least) {
    for (std::size_t k = 0; k < residuals.size(); ++k) {
      if (!(residuals[k] > least)) continue;
      faults.push_back({address, identity, step, static_cast<std::int64_t>(k) * channels, residuals[k]});
      return true;
    }
    return false;
  };
  const double tolerance = options.gauge_tolerance;
  if (judged("gauge_residual", now.residual, 1, tolerance)) return;
  // Inputs are of mean square 1 but not alike in all directions: r^2 may be well below what is expected.
  constexpr double margin = 10.0;
  if (std::any_of(now.group_residuals.begin(), now.group_residuals.end(),
                  [&](double r) { return r > tolerance; })) {
    const double least = tolerance + margin * left_by_eps(i);  // NaN: not known, nothing is above
    if (judged("scale_inv_residual", now.group_residuals, vectors[i].site.group, least)) return;
  }
  if (now.length_residual > tolerance) {
    double left = 0;
    for (const Pair& pair : pairs) {
      if (pair.input == i) left = std::max(left, left_by_eps(pair.output));
    }
    judged("length_residual", {now.length_residual}, 1, tolerance + margin * left);
  }
}

}  // namespace scalevec
