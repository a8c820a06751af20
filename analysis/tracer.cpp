#include <scalevec/analysis/tracer.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
#include <utility>

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <scalevec/analysis/traced_vector.h>
#include <scalevec/analysis/vector_figures.h>
#include <scalevec/core/error.h>
#include <scalevec/core/ops.h>

namespace scalevec {
namespace {

using kernels::LineSums;
using Values = std::vector<double>;
using Rule = UpdateFacts::Rule;
constexpr double nan_value = std::numeric_limits<double>::quiet_NaN();
constexpr double unset = -1.0;

double sum(const Values& v) { return std::accumulate(v.begin(), v.end(), 0.0); }
double mean(const Values& v) { return sum(v) / static_cast<double>(v.size()); }
double sum_of_squares(const Values& v) { return std::inner_product(v.begin(), v.end(), v.begin(), 0.0); }

template <class F>
Values each(std::size_t count, F&& f) {
  Values out(count);
  for (std::size_t j = 0; j < count; ++j) out[j] = f(j);
  return out;
}

at::Tensor tensor_of(const Values& values) {
  at::Tensor out = ops::empty({static_cast<std::int64_t>(values.size())}, at::kDouble);
  std::copy(values.begin(), values.end(), out.mutable_data_ptr<double>());
  return out;
}
Values doubles_of(const at::Tensor& t) {
  const at::Tensor host = t.to(at::kCPU, at::kDouble).contiguous();
  return {host.const_data_ptr<double>(), host.const_data_ptr<double>() + host.numel()};
}

double spread_of_logs(const Values& v) { return vector_figures(v).log_spread; }
double mean_log(const Values& v) {
  return mean(each(v.size(), [&](std::size_t j) { return std::log(std::fabs(v[j])); }));
}

// By how much an effective column moves for a unit of its normalised update (science: effective learning
// rates).
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

TraceColumn per_site(const char* name, const char* unit, const char* description) {
  return {name, unit, description, TraceColumn::Per::site, TraceColumn::Type::f64};
}
TraceColumn per_channel(const char* name, const char* unit, const char* description) {
  return {name, unit, description, TraceColumn::Per::channel, TraceColumn::Type::f32};
}

// q/k-norm of the same attention, or nothing.
std::string sibling_k_norm(const std::string& address) {
  constexpr std::string_view tail = ".q_norm";
  return address.ends_with(tail) ? address.substr(0, address.size() - tail.size()) + ".k_norm" : "";
}

// "layers.3.attn.input_norm" to "layers.4.attn.input_norm".
std::string next_layer(const Site& site) {
  const std::vector<std::string>& parts = site.address.parts();
  const std::string address = site.address.str();
  for (std::size_t i = 0, at = 0; i + 1 < parts.size(); at += parts[i++].size() + 1) {
    if (parts[i] != "layers") continue;
    const std::size_t begin = at + parts[i].size() + 1, end = begin + parts[i + 1].size();
    return fmt::format("{}{}{}", address.substr(0, begin), std::stoll(parts[i + 1]) + 1, address.substr(end));
  }
  return "";
}

std::string without_branch(const std::string& address) { return address.substr(0, address.find('[')); }

}  // namespace

const std::vector<TraceColumn>& Tracer::columns() {
  static const std::vector<TraceColumn> list = {
      per_channel("effective", "1", "g, after the step (1)"),
      per_channel("column_norm", "1",
                  "N: norm over the maps of the channel's column (row for output scales) (8)"),
      per_channel("precond_iso", "1", "g^2 (9)"),
      per_channel("precond_radial", "1", "g^2 + N^2 (9)"),
      per_channel("precond_condition", "1", "1 + N^2 / g^2 (9)"),
      per_channel("radial_align", "1", "squared cosine of the map's column and its gradient (15)"),
      per_channel("balance", "1", "s = g^2 - N^2 (16)"),
      per_channel("balance_drift", "1", "s less its value before the first step (16)"),
      per_channel("gauge_residual", "1", "|g dL/dg - sum <W, dL/dW>| / sum |W dL/dW| (17)"),
      per_channel("balance_change", "1", "s after less s before this step (18)"),
      per_channel("balance_decay", "1",
                  "its part by decay, SGD without momentum: 2 eta (lambda N^2 - mu g^2) (18)"),
      per_channel("balance_step", "1", "its part by the finite step, SGD without momentum (18)"),
      per_channel("elr", "learning rate",
                  "effective learning rate of the column by the optimizer's rule (22)"),
      per_channel("elr_state", "learning rate",
                  "AdamW: eta g^2 mean 1 / (sqrt(v) + eps), of the real state (22)"),
      per_channel("rel_update", "1", "|dA| / |A| of the effective column, measured (23)"),
      per_channel("channel_share", "1", "|g dW| / (|g dW| + |W dg|) (24)"),
      per_channel("channel_cosine", "1", "cosine of g dW and W dg (24)"),
      per_channel("saliency", "nats", "|g dL/dg| (36)"),
      per_site("mean", "1", "of g (2)"),
      per_site("magnitude", "1", "|g| / sqrt(d), the rms of g (2, 3)"),
      per_site("min", "1", "of g (2)"),
      per_site("max", "1", "of g (2)"),
      per_site("negative", "1", "share of entries below 0 (2)"),
      per_site("near_zero", "1", "share of entries with |g| < 1e-3 (2)"),
      per_site("rotation", "rad", "angle between g now and in the last row (4)"),
      per_site("log_spread", "1", "standard deviation of log|g| (5)"),
      per_site("participation", "1", "(sum g^2)^2 / (d sum g^4) (6)"),
      per_site("gini", "1", "of |g| (6)"),
      per_site("kurtosis", "1", "excess (6)"),
      per_site("precond_gain", "1", "(C sum g^2 + sum N^2) / (C d): mean eigenvalue (10)"),
      per_site("precond_dispersion", "1", "max g^2 / min g^2 (11)"),
      per_site("precond_log_spread", "1", "standard deviation of log g^2 (11)"),
      per_site("dual_log_mean", "1", "output vectors: mean log (ga gb)^2 of the map (12)"),
      per_site("dual_log_sd_row", "1", "output vectors: standard deviation of log ga^2 (12)"),
      per_site("dual_log_sd_column", "1", "output vectors: standard deviation of log gb^2 (12)"),
      per_site("metric_min", "1", "OR, ER: smallest eigenvalue of what the form does to dL/dg (13)"),
      per_site("metric_max", "1", "OR, ER: largest (13)"),
      per_site("amplification", "1", "R = (D_W + D_g) / |G|^2 (14)"),
      per_site("vector_share", "1", "D_g / (D_W + D_g) (14)"),
      per_site("scale_inv_residual", "1", "output norms: |<W, dW>| / (|W| |dW|) of a group, largest (19)"),
      per_site("wd_balance", "1", "lambda sum N^2 / (mu sum g^2) (20)"),
      per_site("decay_horizon", "1", "H: sum of learning rate x decay of the vector so far (21)"),
      per_site("decay_target", "1", "where decay takes g (21)"),
      per_site("weight_rotation", "rad",
               "angle by which the maps turned in this step, root mean square (25)"),
      per_site("rotation_ratio", "1",
               "the same over its equilibrium sqrt(2 eta lambda (1 - b1) / (1 + b1)) (25)"),
      per_site("elr_invariant", "learning rate",
               "output norms: eta / |W| of a group (SGD: |W|^2), mean (26)"),
      per_site("log_pearson", "1", "correlation of log|g| and log N (27)"),
      per_site("log_spearman", "1", "the same by rank (27)"),
      per_site("log_slope", "1", "slope of log|g| on log N (27)"),
      per_site("growth_correlation", "1", "of d log|g| and d log N since the last row (28)"),
      per_site("growth_slope", "1", "of d log|g| on d log N since the last row (28)"),
      per_site("growth_prediction", "1", "N^2 / g^2, the flow's slope, mean (28)"),
      per_site("self_amplification", "1",
               "slope of log|g / g in the last row| on log|g in the last row| (29)"),
      per_site("branch_cosine", "1", "mean cosine of g - 1 with the other branches of the norm (30)"),
      per_site("layer_cosine", "1", "cosine of g - mean with the next layer's (30)"),
      per_site("weight_norm", "1", "Frobenius norm of the maps beside the vector (31)"),
      per_site("weight_growth", "1", "the same over its value before the first step (31)"),
      per_site("sign_flips", "1", "entries whose sign changed in a row, summed (32)"),
      per_site("qk_temperature", "1", "|gq gk| / sqrt(head dimension), at q_norm (38)"),
      per_site("qk_logit_bound", "1", "sqrt(head dimension) max |gq gk|, at q_norm (38)"),
  };
  return list;
}

struct Tracer::State {
  State(std::filesystem::path path, std::vector<TracedVector> given, TraceHeader header,
        const Options& given_options)
      : options(given_options), vectors(std::move(given)), past(vectors.size()) {
    for (std::size_t i = 0; i < vectors.size(); ++i) index[vectors[i].site.address.str()] = i;
    header.sites.clear();
    for (const TracedVector& v : vectors) header.sites.push_back(v.site);
    header.columns = Tracer::columns();
    writer = std::make_unique<TraceWriter>(std::move(path), header, options.writer);
    row = std::make_unique<TraceRow>(writer->layout());
    for (std::size_t c = 0; c < header.columns.size(); ++c) column_of[header.columns[c].name] = c;
  }

  // What is remembered of a vector from row to row.
  struct Past {
    Values g, norms;             // in the last row
    Values balance;              // before the first step
    double weight_norm = unset;  // before the first step
    double horizon = 0, flips = 0;
  };
  // A vector between before() and after().
  struct Step {
    Values g, dg;
    std::vector<at::Tensor> weights;  // clones of consumers', or of producers'
    std::vector<UpdateFacts> maps;
    UpdateFacts vector;
  };

  const std::vector<TracedMap>& maps_of(const TracedVector& v) const {
    return v.consumers.empty() ? v.producers : v.consumers;
  }

  void put(const char* name, std::size_t vector, double value) {
    row->column<double>(column_of.at(name))[vector] = value;
  }
  void put(const char* name, std::size_t vector, const Values& values) {
    const std::span<float> all = row->column<float>(column_of.at(name));
    const auto first = static_cast<std::size_t>(row->layout().start()[vector]);
    for (std::size_t j = 0; j < values.size(); ++j) all[first + j] = static_cast<float>(values[j]);
  }

  void start(std::size_t i, const UpdateView& view);
  void finish(std::size_t i, std::int64_t step, const UpdateView& view);
  void shape(std::size_t i, const Values& g);
  void columns(std::size_t i, std::int64_t step, const Values& g, const Step& begun, const MapStep& maps);
  void invariance(std::size_t i, const Step& begun, const MapStep& maps);
  void rates(std::size_t i, const Values& g, const Step& begun, const UpdateView& view);
  void coadaptation(std::size_t i, const Values& g, const Values& norms);
  void neighbours(std::size_t i, const std::vector<Values>& all);
  void judge(std::size_t i, std::int64_t step, const Values& residual);

  Options options;
  std::vector<TracedVector> vectors;
  std::vector<Past> past;
  std::map<std::string, std::size_t> index;
  std::map<std::string, std::size_t> column_of;
  std::unique_ptr<TraceWriter> writer;
  std::unique_ptr<TraceRow> row;
  std::vector<Step> steps;  // of the row being made
  std::vector<GaugeFault> faults;
};

void Tracer::State::start(std::size_t i, const UpdateView& view) {
  const TracedVector& v = vectors[i];
  Step begun;
  begun.g = effective_values(v);
  begun.vector = view(v.stored);
  const at::Tensor d_beta = v.beta.defined() ? view(v.beta).gradient : at::Tensor();
  begun.dg = effective_gradient(v, begun.vector.gradient, d_beta);
  for (const TracedMap& map : maps_of(v)) {
    begun.weights.push_back(map.weight.detach().clone());
    begun.maps.push_back(view(map.weight));
    // A loop may clear gradients before it calls after().
    if (begun.maps.back().gradient.defined()) begun.maps.back().gradient = begun.maps.back().gradient.clone();
  }
  steps.push_back(std::move(begun));
}

void Tracer::State::shape(std::size_t i, const Values& g) {
  const TracedVector& v = vectors[i];
  const VectorFigures f = vector_figures(g);
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
  double target = v.site.offset;
  if (v.site.parametrisation == Parametrisation::magnitude_direction) {
    // Along g: d; across it: beta^2 d / |alpha|^2.
    const double alpha = v.stored.detach().to(at::kDouble).square().sum().item<double>();
    const double beta = v.beta.detach().to(at::kDouble).item<double>(), across = beta * beta * d / alpha;
    put("metric_min", i, std::min(d, across));
    put("metric_max", i, std::max(d, across));
    target = 0.0;
  } else if (v.site.parametrisation == Parametrisation::exponential) {
    const Extremes e = diagonal_plus_outer(g, 1.0 - 1.0 / d);
    put("metric_min", i, e.smallest);
    put("metric_max", i, e.largest);
    target = 1.0;
  }
  put("decay_target", i, target);
  put("decay_horizon", i, past[i].horizon);
  if (!past[i].g.empty()) {
    put("rotation", i, angle(g, past[i].g));
    for (std::size_t j = 0; j < g.size(); ++j) past[i].flips += (g[j] < 0) != (past[i].g[j] < 0);
  }
  put("sign_flips", i, past[i].flips);
}

void Tracer::State::columns(std::size_t i, std::int64_t step, const Values& g, const Step& begun,
                            const MapStep& maps) {
  const Values &ww = maps.sums[LineSums::ww], &wg = maps.sums[LineSums::wg], &gg = maps.sums[LineSums::gg],
               &wg_abs = maps.sums[LineSums::wg_abs], &dd = maps.sums[LineSums::dd],
               &wd = maps.sums[LineSums::wd];
  const Values& g0 = begun.g;
  const std::size_t d = g.size();
  const Values nn = each(d, [&](std::size_t j) { return std::max(0.0, ww[j] + 2 * wd[j] + dd[j]); });
  const Values norms = each(d, [&](std::size_t j) { return std::sqrt(nn[j]); });
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
        const double sign = g0[j] * (g[j] - g0[j]) < 0 ? -1.0 : 1.0;
        return sign * wd[j] / std::sqrt(dd[j] * ww[j]);
      }));
  put("radial_align", i, each(d, [&](std::size_t j) { return wg[j] * wg[j] / (ww[j] * gg[j]); }));
  coadaptation(i, g, norms);

  const UpdateFacts &by_vector = begun.vector, &by_map = begun.maps[0];
  put("wd_balance", i, by_map.weight_decay * sum(nn) / (by_vector.weight_decay * sum_of_squares(g)));
  if (begun.dg.empty()) return;
  const Values& dg = begun.dg;
  put("saliency", i, each(d, [&](std::size_t j) { return std::fabs(g0[j] * dg[j]); }));
  const Values residual = each(d, [&](std::size_t j) {
    return wg_abs[j] > 0 ? std::fabs(g0[j] * dg[j] - wg[j]) / wg_abs[j] : nan_value;
  });
  put("gauge_residual", i, residual);
  judge(i, step, residual);
  // |G| by division in float64: it loses nothing but where g is 0, and such channels are left out.
  double of_maps = 0, of_vector = 0, free = 0;
  for (std::size_t j = 0; j < d; ++j) {
    if (g0[j] == 0.0) continue;
    of_maps += gg[j];
    of_vector += dg[j] * dg[j];
    free += gg[j] / (g0[j] * g0[j]);
  }
  put("amplification", i, (of_maps + of_vector) / free);
  put("vector_share", i, of_vector / (of_maps + of_vector));
  const bool plain_sgd = by_map.rule == Rule::sgd && by_vector.rule == Rule::sgd && by_map.momentum == 0.0 &&
                         by_map.rate == by_vector.rate && in_one_tensor(vectors[i].site.parametrisation) &&
                         vectors[i].site.offset == 0.0;
  if (plain_sgd) {
    const double eta = by_map.rate, lambda = by_map.weight_decay, mu = by_vector.weight_decay;
    put("balance_decay", i,
        each(d, [&](std::size_t j) { return 2 * eta * (lambda * ww[j] - mu * g0[j] * g0[j]); }));
    put("balance_step", i, each(d, [&](std::size_t j) {
          const double of_g = dg[j] + mu * g0[j];
          return eta * eta * (of_g * of_g - (gg[j] + 2 * lambda * wg[j] + lambda * lambda * ww[j]));
        }));
  }
}

void Tracer::State::coadaptation(std::size_t i, const Values& g, const Values& norms) {
  const std::size_t d = g.size();
  const auto logs = [&](const Values& v) {
    return each(d, [&](std::size_t j) { return std::log(std::fabs(v[j])); });
  };
  const Values log_g = logs(g), log_n = logs(norms);
  const Relation now = relation(log_n, log_g);
  put("log_pearson", i, now.pearson);
  put("log_spearman", i, now.spearman);
  put("log_slope", i, now.slope);
  put("growth_prediction", i,
      mean(each(d, [&](std::size_t j) { return norms[j] * norms[j] / (g[j] * g[j]); })));
  const Past& last = past[i];
  if (last.g.empty() || last.norms.empty()) return;
  const Values old_g = logs(last.g), old_n = logs(last.norms);
  const auto growth = [&](const Values& a, const Values& b) {
    return each(d, [&](std::size_t j) { return a[j] - b[j]; });
  };
  const Values by_g = growth(log_g, old_g), by_n = growth(log_n, old_n);
  const Relation grown = relation(by_n, by_g);
  put("growth_correlation", i, grown.pearson);
  put("growth_slope", i, grown.slope);
  put("self_amplification", i, relation(old_g, by_g).slope);
}

void Tracer::State::invariance(std::size_t i, const Step& begun, const MapStep& maps) {
  const Site& site = vectors[i].site;
  if (site.kind == Statistics::none || vectors[i].producers.empty()) return;
  const Values &ww = maps.sums[LineSums::ww], &wg = maps.sums[LineSums::wg], &gg = maps.sums[LineSums::gg];
  const auto group = static_cast<std::size_t>(site.group);
  double worst = 0, rates = 0, groups = 0;
  for (std::size_t first = 0; first + group <= ww.size(); first += group) {
    double w = 0, g = 0, product = 0;
    for (std::size_t j = first; j < first + group; ++j) w += ww[j], g += gg[j], product += wg[j];
    if (w > 0 && g > 0) worst = std::max(worst, std::fabs(product) / std::sqrt(w * g));
    rates += begun.maps[0].rate / (begun.maps[0].rule == Rule::sgd ? w : std::sqrt(w));
    ++groups;
  }
  put("scale_inv_residual", i, worst);
  put("elr_invariant", i, rates / groups);
}

void Tracer::State::rates(std::size_t i, const Values& g, const Step& begun, const UpdateView& view) {
  const TracedMap& map = maps_of(vectors[i])[0];
  const UpdateFacts& facts = begun.maps[0];
  put("elr", i, each(g.size(), [&](std::size_t j) { return effective_rate(facts, begun.g[j]); }));
  if (facts.rule != Rule::adamw || vectors[i].consumers.empty()) return;
  const UpdateFacts moved = view(map.weight);  // state of this step
  if (!moved.exp_avg_sq.defined()) return;
  const double correction = 1.0 - std::pow(facts.beta2, facts.steps + 1.0);
  const at::Tensor v =
      moved.exp_avg_sq.detach().to(at::kDouble).div(correction).sqrt().add(facts.eps).reciprocal();
  const at::Tensor means = v.reshape({-1, v.size(-1)}).mean(0).to(at::kCPU).contiguous();
  const double* const inverse = means.const_data_ptr<double>();
  put("elr_state", i,
      each(g.size(), [&](std::size_t j) { return facts.rate * begun.g[j] * begun.g[j] * inverse[j]; }));
}

void Tracer::State::finish(std::size_t i, std::int64_t step, const UpdateView& view) {
  const TracedVector& v = vectors[i];
  const Step& begun = steps[i];
  const Values g = effective_values(v);
  shape(i, g);
  std::vector<at::Tensor> gradients;
  for (const UpdateFacts& facts : begun.maps) gradients.push_back(facts.gradient);
  const std::vector<TracedMap>& near = maps_of(v);
  Values norms;
  if (!near.empty()) {
    const bool reads = !v.consumers.empty();
    const MapStep maps = reads ? step_of_columns(near, begun.weights, gradients)
                               : step_of_rows(near, begun.weights, gradients);
    const double norm = std::sqrt(sum_of_squares(maps.frobenius));
    if (past[i].weight_norm == unset) past[i].weight_norm = std::sqrt(sum(maps.sums[LineSums::ww]));
    put("weight_norm", i, norm);
    put("weight_growth", i, norm / past[i].weight_norm);
    const double turned =
        std::sqrt(sum_of_squares(maps.rotation) / static_cast<double>(maps.rotation.size()));
    put("weight_rotation", i, turned);
    const UpdateFacts& facts = begun.maps[0];
    const double b1 = facts.rule == Rule::adamw ? facts.momentum : 0.0;
    put("rotation_ratio", i, turned / std::sqrt(2 * facts.rate * facts.weight_decay * (1 - b1) / (1 + b1)));
    // A vector and the lines of its map belong together one to one, or not at all: q/k-norm shares one
    // vector.
    if (maps.sums[0].size() == g.size() && (reads || v.site.kind == Statistics::none)) {
      columns(i, step, g, begun, maps);
      rates(i, g, begun, view);
      norms = each(g.size(), [&](std::size_t j) {
        return std::sqrt(std::max(
            0.0, maps.sums[LineSums::ww][j] + 2 * maps.sums[LineSums::wd][j] + maps.sums[LineSums::dd][j]));
      });
    }
    invariance(i, begun, maps);
  }
  past[i].g = g;
  past[i].norms = norms;
}

void Tracer::State::neighbours(std::size_t i, const std::vector<Values>& all) {
  const TracedVector& v = vectors[i];
  const std::string address = v.site.address.str();
  const auto shifted = [](const Values& g, double by) {
    return each(g.size(), [&](std::size_t j) { return g[j] - by; });
  };
  double cosines = 0, others = 0;
  for (std::size_t k = 0; k < vectors.size(); ++k) {
    const std::string other = vectors[k].site.address.str();
    if (k == i || address.find('[') == std::string::npos || without_branch(other) != without_branch(address))
      continue;
    cosines += cosine(shifted(all[i], 1.0), shifted(all[k], 1.0));
    ++others;
  }
  if (others > 0) put("branch_cosine", i, cosines / others);
  if (const auto next = index.find(next_layer(v.site));
      next != index.end() && all[next->second].size() == all[i].size()) {
    const Values& below = all[next->second];
    put("layer_cosine", i, cosine(shifted(all[i], mean(all[i])), shifted(below, mean(below))));
  }
  if (const auto k = index.find(sibling_k_norm(address));
      k != index.end() && all[k->second].size() == all[i].size()) {
    const Values product = each(all[i].size(), [&](std::size_t j) { return all[i][j] * all[k->second][j]; });
    const double root = std::sqrt(static_cast<double>(v.site.group));
    const VectorFigures f = vector_figures(product);
    put("qk_temperature", i, std::sqrt(sum_of_squares(product)) / root);
    put("qk_logit_bound", i, root * std::max(std::fabs(f.min), std::fabs(f.max)));
  }
  // The map between an input vector (columns, gb) and this output vector (rows, ga).
  for (const TracedMap& map : v.producers) {
    for (std::size_t k = 0; k < vectors.size(); ++k) {
      const bool between = std::any_of(vectors[k].consumers.begin(), vectors[k].consumers.end(),
                                       [&](const TracedMap& c) { return c.weight.is_same(map.weight); });
      if (!between) continue;
      put("dual_log_mean", i, 2 * (mean_log(all[i]) + mean_log(all[k])));
      put("dual_log_sd_row", i, 2 * spread_of_logs(all[i]));
      put("dual_log_sd_column", i, 2 * spread_of_logs(all[k]));
    }
  }
}

void Tracer::State::judge(std::size_t i, std::int64_t step, const Values& residual) {
  const std::string address = vectors[i].site.address.str();
  if (options.gauge_tolerance <= 0.0 ||
      std::any_of(faults.begin(), faults.end(), [&](const GaugeFault& f) { return f.address == address; })) {
    return;
  }
  for (std::size_t j = 0; j < residual.size(); ++j) {
    if (!(residual[j] > options.gauge_tolerance)) continue;
    return faults.push_back({address, step, static_cast<std::int64_t>(j), residual[j]});
  }
}

Tracer::Tracer(std::filesystem::path path, std::vector<TracedVector> vectors, TraceHeader header,
               const Options& options) {
  if (vectors.empty()) fail(ErrorCode::addr, "tracer: there is no scale vector to trace");
  if (options.every < 1)
    fail(ErrorCode::value, "tracer: steps between rows must be 1 or more", {.key = "every"});
  for (const TracedVector& v : vectors) {
    for (const TracedMap& map : v.consumers) {
      if (map.weight.dim() >= 2 && map.weight.size(-1) == v.site.width) continue;
      fail(ErrorCode::shape,
           fmt::format("tracer: '{}' has {} channels, but the map of branch {} that reads it is [{}]",
                       v.site.address.str(), v.site.width, map.branch, fmt::join(map.weight.sizes(), ", ")),
           {.tensor = v.site.address.str()});
    }
  }
  state_ = std::make_unique<State>(std::move(path), std::move(vectors), std::move(header), options);
}

Tracer::~Tracer() = default;

bool Tracer::due(std::int64_t step) const { return step % state_->options.every == 0 || step == 1; }

void Tracer::before(std::int64_t step, const UpdateView& view) {
  const at::NoGradGuard no_grad;
  State& s = *state_;
  s.steps.clear();
  for (std::size_t i = 0; i < s.vectors.size(); ++i) {
    // Of a vector with components beta is what decays towards the target.
    const UpdateFacts facts = view(s.vectors[i].beta.defined() ? s.vectors[i].beta : s.vectors[i].stored);
    s.past[i].horizon += facts.rate * facts.weight_decay;
  }
  if (!due(step)) return;
  for (std::size_t i = 0; i < s.vectors.size(); ++i) s.start(i, view);
}

void Tracer::after(std::int64_t step, const UpdateView& view) {
  State& s = *state_;
  if (s.steps.empty()) return;
  const at::NoGradGuard no_grad;
  s.row->clear();
  std::vector<Values> all;
  for (std::size_t i = 0; i < s.vectors.size(); ++i) {
    s.finish(i, step, view);
    all.push_back(s.past[i].g);
  }
  for (std::size_t i = 0; i < s.vectors.size(); ++i) s.neighbours(i, all);
  s.steps.clear();
  s.writer->append(step, s.row->bytes());
}

std::map<std::string, at::Tensor> Tracer::state() const {
  std::map<std::string, at::Tensor> out;
  for (std::size_t i = 0; i < state_->vectors.size(); ++i) {
    const State::Past& p = state_->past[i];
    const std::string at = state_->vectors[i].site.address.str();
    out[at + "/g"] = tensor_of(p.g);
    out[at + "/norms"] = tensor_of(p.norms);
    out[at + "/balance"] = tensor_of(p.balance);
    out[at + "/sums"] = tensor_of({p.weight_norm, p.horizon, p.flips});
  }
  return out;
}

void Tracer::restore(const std::map<std::string, at::Tensor>& state) {
  for (std::size_t i = 0; i < state_->vectors.size(); ++i) {
    const std::string at = state_->vectors[i].site.address.str();
    const auto values = [&](const char* name) {
      const auto found = state.find(fmt::format("{}/{}", at, name));
      if (found != state.end()) return doubles_of(found->second);
      fail(ErrorCode::config,
           fmt::format("tracer: the state has nothing of '{}': it is of another model", at), {.tensor = at});
    };
    const Values sums = values("sums");
    if (sums.size() != 3) fail(ErrorCode::config, "tracer: the state is damaged", {.tensor = at});
    state_->past[i] = {.g = values("g"),
                       .norms = values("norms"),
                       .balance = values("balance"),
                       .weight_norm = sums[0],
                       .horizon = sums[1],
                       .flips = sums[2]};
  }
}

const std::vector<Tracer::GaugeFault>& Tracer::gauge_faults() const { return state_->faults; }
TraceWriter::Status Tracer::status() const { return state_->writer->status(); }
bool Tracer::flush() { return state_->writer->flush(); }
TraceWriter::Status Tracer::close() { return state_->writer->close(); }

}  // namespace scalevec
