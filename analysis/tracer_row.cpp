// One row: what each metric is (docs/trace_metrics.md).
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include <fmt/format.h>

#include <scalevec/analysis/tracer_state.h>
#include <scalevec/analysis/vector_figures.h>

namespace scalevec {
namespace {

using kernels::LineSums;
using Values = std::vector<double>;
using Rule = UpdateFacts::Rule;
constexpr double nan_value = std::numeric_limits<double>::quiet_NaN();

// By how much an effective column moves for a unit of its normalised update.
double effective_rate(const UpdateFacts& facts, double g) {
  switch (facts.rule) {
    case Rule::sgd:
      return facts.rate * g * g / (1.0 - facts.momentum);
    case Rule::adamw:
      return facts.rate * std::fabs(g);
    case Rule::muon:
      return facts.rate * facts.stretch * std::fabs(g);
    default:
      return nan_value;
  }
}

// Where decay takes the entries of g.
double decay_target(const Site& site) {
  if (site.parametrisation == Parametrisation::exponential) return 1.0;
  return in_one_tensor(site.parametrisation) ? site.offset : 0.0;
}

}  // namespace

UpdateFacts Tracer::State::Step::map() const {
  const UpdateFacts* first = nullptr;
  UpdateFacts out = maps.front().then;
  for (const MapMove& move : maps) {
    if (!move.then.gradient.defined()) continue;
    if (!first) {
      first = &move.then;
      out = *first;
    }
    if (move.then.rule != first->rule) out.rule = Rule::other;
    for (const auto fact :
         {&UpdateFacts::rate, &UpdateFacts::stretch, &UpdateFacts::weight_decay, &UpdateFacts::momentum}) {
      if (move.then.*fact != first->*fact) out.*fact = nan_value;
    }
  }
  return out;
}

void Tracer::State::start(std::size_t i, const UpdateView& view) {
  const TracedVector& v = vectors[i];
  Step begun;
  begun.g = effective_values(v);
  begun.vector = view(v.stored);
  const UpdateFacts by_beta = v.beta.defined() ? view(v.beta) : begun.vector;
  begun.dg = effective_gradient(v, begun.vector.gradient, by_beta.gradient);
  begun.decay = by_beta.weight_decay;
  for (const TracedMap& map : v.beside()) {
    MapMove move{.before = {}, .then = view(map.weight), .now = {}};
    if (!move.then.sums_follow || v.consumers.empty()) {
      move.before = map.weight.detach().clone();
      // A loop may clear gradients before it calls after().
      if (move.then.gradient.defined()) move.then.gradient = move.then.gradient.clone();
    }
    begun.maps.push_back(std::move(move));
  }
  begun.noise = noise_of(i, begun);
  steps.push_back(std::move(begun));
}

void Tracer::State::shape(std::size_t i, const Values& g, const Sizes& sizes) {
  const TracedVector& v = vectors[i];
  const VectorFigures f = vector_figures(g, sizes);
  put("effective", i, g);
  put("mean", i, f.mean);
  put("magnitude", i, f.rms);
  put("min", i, f.min);
  put("max", i, f.max);
  put("negative", i, f.negative);
  put("near_zero", i, f.near_zero);
  put("log_spread", i, f.log_spread);
  put("participation", i, f.participation);
  put("gini", i, f.gini);
  put("kurtosis", i, f.kurtosis);
  put("precond_dispersion", i, f.dispersion);
  put("precond_log_spread", i, 2.0 * f.log_spread);
  const auto d = static_cast<double>(g.size());
  if (v.site.parametrisation == Parametrisation::magnitude_direction) {
    // Along g: d; across it: beta^2 d / |alpha|^2.
    const double alpha = v.stored.detach().to(at::kDouble).square().sum().item<double>();
    const double beta = v.beta.detach().to(at::kDouble).item<double>(), across = beta * beta * d / alpha;
    put("metric_min", i, std::min(d, across));
    put("metric_max", i, std::max(d, across));
  } else if (v.site.parametrisation == Parametrisation::exponential) {
    const Extremes e = diagonal_plus_outer(g, 1.0 - 1.0 / d);
    put("metric_min", i, e.smallest);
    put("metric_max", i, e.largest);
  }
  put("decay_target", i, decay_target(v.site));
  put("decay_horizon", i, past[i].horizon);
  if (!past[i].g.empty()) put("rotation", i, angle(g, past[i].g));
  const Values& last = past[i].g.empty() ? steps[i].g : past[i].g;
  past[i].flips.resize(g.size());
  for (std::size_t j = 0; j < g.size(); ++j) past[i].flips[j] += (g[j] < 0) != (last[j] < 0);
  put("sign_flips", i, sum(past[i].flips));
  put("channel_flips", i, past[i].flips);
}

// As it was before the step first: what is lost there is lost in all that the step makes of it.
void Tracer::State::lost(std::size_t i, const Values& g, const Step& begun, const Lines* sums) {
  double channels = 0, first = nan_value, tensor = nan_value;
  const auto lost_in = [&](LineSums::Which which, std::size_t j) {
    return sums && !std::isfinite((*sums)[which][j]);
  };
  for (std::size_t j = g.size(); j-- > 0;) {
    const int found = !std::isfinite(begun.g[j])                         ? 1
                      : !begun.dg.empty() && !std::isfinite(begun.dg[j]) ? 2
                      : lost_in(LineSums::ww, j)                         ? 3
                      : lost_in(LineSums::gg, j)                         ? 4
                      : !std::isfinite(g[j])                             ? 1
                      : lost_in(LineSums::dd, j)                         ? 3
                                                                         : 0;
    if (found == 0) continue;
    ++channels;
    first = static_cast<double>(j);
    tensor = found;
  }
  put("nonfinite", i, channels);
  put("nonfinite_channel", i, first);
  put("nonfinite_tensor", i, tensor);
}

std::vector<double> Tracer::State::columns(std::size_t i, const Values& g, const Sizes& sizes, Step& begun,
                                           const MapStep& maps) {
  const auto ww = maps.sums[LineSums::ww], wg = maps.sums[LineSums::wg], gg = maps.sums[LineSums::gg],
             wg_abs = maps.sums[LineSums::wg_abs], dd = maps.sums[LineSums::dd], wd = maps.sums[LineSums::wd];
  const Values& g0 = begun.g;
  const std::size_t d = g.size();
  Values norms = norms_after(maps.sums);
  const Values nn = each(d, [&](std::size_t j) { return norms[j] * norms[j]; });
  put("column_norm", i, norms);
  put("precond_iso", i, each(d, [&](std::size_t j) { return g[j] * g[j]; }));
  put("precond_radial", i, each(d, [&](std::size_t j) { return g[j] * g[j] + nn[j]; }));
  put("precond_condition", i, each(d, [&](std::size_t j) { return 1.0 + nn[j] / (g[j] * g[j]); }));
  put("precond_gain", i,
      (maps.outputs * sum_of_squares(g) + sum(nn)) / (maps.outputs * static_cast<double>(d)));

  const Values balance = each(d, [&](std::size_t j) { return g[j] * g[j] - nn[j]; });
  const Values before = each(d, [&](std::size_t j) { return g0[j] * g0[j] - ww[j]; });
  if (past[i].balance.empty()) past[i].balance = before;
  put("balance", i, balance);
  put("balance_drift", i, each(d, [&](std::size_t j) { return balance[j] - past[i].balance[j]; }));
  // The difference of squares, without cancelling: products of sums and differences.
  put("balance_change", i,
      each(d, [&](std::size_t j) { return (g[j] - g0[j]) * (g[j] + g0[j]) - (2 * wd[j] + dd[j]); }));
  put("rel_update", i, each(d, [&](std::size_t j) {
        const double dg = g[j] - g0[j];
        const double moved = g[j] * g[j] * dd[j] + 2 * g[j] * dg * wd[j] + dg * dg * ww[j];
        return std::sqrt(std::max(0.0, moved)) / (std::fabs(g0[j]) * std::sqrt(ww[j]));
      }));
  put("channel_share", i, each(d, [&](std::size_t j) {
        const double by_map = std::fabs(g0[j]) * std::sqrt(dd[j]);
        return by_map / (by_map + std::fabs(g[j] - g0[j]) * std::sqrt(ww[j]));
      }));
  put("channel_cosine", i, each(d, [&](std::size_t j) {
        const double product = g0[j] * (g[j] - g0[j]);
        if (product == 0.0) return nan_value;
        const double sign = product < 0 ? -1.0 : 1.0;
        return sign * wd[j] / std::sqrt(dd[j] * ww[j]);
      }));
  coadaptation(i, g, norms, sizes);

  const UpdateFacts &by_vector = begun.vector, by_map = begun.map();
  if (decay_target(vectors[i].site) == 0.0) {
    put("wd_balance", i, by_map.weight_decay * sum(nn) / (begun.decay * sum_of_squares(g)));
  }
  if (!begun.complete()) return norms;
  put("radial_align", i, each(d, [&](std::size_t j) { return wg[j] * wg[j] / (ww[j] * gg[j]); }));
  if (begun.dg.empty()) return norms;
  const Values& dg = begun.dg;
  put("saliency", i, each(d, [&](std::size_t j) { return std::fabs(g0[j] * dg[j]); }));
  begun.residual = each(d, [&](std::size_t j) {
    return wg_abs[j] > 0 ? std::fabs(g0[j] * dg[j] - wg[j]) / wg_abs[j] : nan_value;
  });
  put("gauge_residual", i, begun.residual);
  if (normalised_behind[i]) {
    begun.length_residual =
        std::fabs(std::inner_product(g0.begin(), g0.end(), dg.begin(), 0.0)) / sum(wg_abs);
    put("length_residual", i, begun.length_residual);
  }
  // |G| by division in float64: it loses nothing but where g is 0, and such channels are left out.
  double both = 0, free = 0;
  for (std::size_t j = 0; j < d; ++j) {
    if (g0[j] == 0.0) continue;
    both += gg[j] + dg[j] * dg[j];
    free += gg[j] / (g0[j] * g0[j]);
  }
  put("amplification", i, both / free);
  put("vector_share", i, sum_of_squares(dg) / (sum(gg) + sum_of_squares(dg)));
  if (is_plain_sgd(by_vector, by_map, vectors[i].site)) {
    const double eta = by_map.rate, lambda = by_map.weight_decay, mu = by_vector.weight_decay;
    const double by_noise = eta * begun.noise;
    put("noise_balance", i, (2 * lambda + by_noise) / (2 * mu + maps.outputs * by_noise));
    put("balance_decay", i,
        each(d, [&](std::size_t j) { return 2 * eta * (lambda * ww[j] - mu * g0[j] * g0[j]); }));
    put("balance_step", i, each(d, [&](std::size_t j) {
          const double of_g = dg[j] + mu * g0[j];
          return eta * eta * (of_g * of_g - (gg[j] + 2 * lambda * wg[j] + lambda * lambda * ww[j]));
        }));
  }
  return norms;
}

void Tracer::State::of_inputs(std::size_t i, const Step& begun) {
  if (inputs[i].empty() || told[i]) {  // of no pass of this step
    inputs[i].clear();
    told[i] = false;
    return;
  }
  const InputFigures f = input_figures(inputs[i], begun.g);
  told[i] = true;
  put("input_moment", i, f.moment);
  put("input_condition", i, f.condition);
  put("scaled_input_condition", i, f.condition_scaled);
  put("jacobi_gap", i, f.jacobi_gap);
}

void Tracer::State::rates(std::size_t i, const Step& begun, const MapStep& maps) {
  const UpdateFacts facts = begun.map();
  const std::size_t d = begun.g.size();
  put("elr", i, each(d, [&](std::size_t j) { return effective_rate(facts, begun.g[j]); }));
  if (maps.moments == 0) return;
  const auto inverse_root = maps.sums[LineSums::inverse_root];
  put("elr_state", i, each(d, [&](std::size_t j) {
        return facts.rate * begun.g[j] * begun.g[j] * inverse_root[j] / maps.moments;
      }));
}

void Tracer::State::weights(std::size_t i, std::int64_t step, const MapStep& maps) {
  std::vector<WeightNorm>& seen = past[i].weights;
  const auto note = [&](std::size_t k, double before, double now, auto&& name) {
    if (seen.size() == k) seen.push_back({before, before, 0.0});
    if (now > seen[k].largest) seen[k].largest = now, seen[k].peak = static_cast<double>(step);
    put(name("weight_norm"), i, now);
    put(name("weight_growth"), i, now / seen[k].first);
    put(name("weight_peak"), i, seen[k].peak);
  };
  note(0, std::sqrt(sum_of_squares(maps.frobenius_before)), std::sqrt(sum_of_squares(maps.frobenius)),
       [](const char* column) { return std::string(column); });
  if (maps.norms.empty() || vectors[i].consumers.empty()) return;
  for (std::size_t k = 0; k < maps.norms.size(); ++k) {
    note(k + 1, maps.frobenius_before[k], maps.frobenius[k], [&](const char* column) {
      return of_branch(fmt::format("{}_BRANCH", column), vectors[i].consumers[k].branch);
    });
  }
}

void Tracer::State::finish(std::size_t i, std::int64_t step) {
  const TracedVector& v = vectors[i];
  Step& begun = steps[i];
  const Values g = effective_values(v);
  const Sizes sizes(g);
  shape(i, g, sizes);
  if (!inputs.empty()) of_inputs(i, begun);
  const std::vector<TracedMap>& near = v.beside();
  Values norms;
  const bool reads = !v.consumers.empty();
  const MapStep maps = reads ? step_of_columns(near, begun.maps) : step_of_rows(near, begun.maps);
  lost(i, g, begun, has_lines(v) ? &maps.sums : nullptr);
  if (!near.empty()) {
    weights(i, step, maps);
    if (reads) branches(i, sizes, maps);
    const double turned =
        std::sqrt(sum_of_squares(maps.rotation) / static_cast<double>(maps.rotation.size()));
    put("weight_rotation", i, turned);
    const UpdateFacts facts = begun.map();
    const double b1 = facts.rule == Rule::adamw   ? facts.momentum
                      : facts.rule == Rule::other ? nan_value
                                                  : 0.0;
    const double decay = facts.rate * facts.weight_decay;  // without it there is no equilibrium
    if (decay > 0) put("rotation_ratio", i, turned / std::sqrt(2 * decay * (1 - b1) / (1 + b1)));
    if (has_lines(v)) {
      norms = columns(i, g, sizes, begun, maps);
      rates(i, begun, maps);
    }
    invariance(i, begun, maps);
  }
  past[i].g = g;
  past[i].norms = norms;
}

}  // namespace scalevec
