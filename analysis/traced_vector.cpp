#include <scalevec/analysis/traced_vector.h>

#include <cmath>
#include <numeric>
#include <span>
#include <string_view>

#include <scalevec/analysis/doubles.h>
#include <scalevec/core/components.h>

namespace scalevec {
namespace {

using kernels::LineSums;

double total(std::span<const double> v) { return std::accumulate(v.begin(), v.end(), 0.0); }

// The state after the step, of which the gradient tells that there is one.
SecondMoments moments_of(const MapMove& move) {
  if (move.then.rule != UpdateFacts::Rule::adamw || !move.then.gradient.defined()) return {};
  return {move.now.exp_avg_sq, 1.0 - std::pow(move.then.beta2, move.then.steps + 1.0), move.then.eps};
}

// Those that the optimizer has, or their own, kept in `own`.
const Lines& lines_of(const at::Tensor& after, const MapMove& move, bool by_column, Lines& own) {
  if (by_column && move.now.sums) return *move.now.sums;
  const at::Tensor& given = move.then.gradient;
  const at::Tensor gradient = given.defined() ? given : after.new_zeros(after.sizes());
  own = by_column ? column_sums(move.before, after, gradient, moments_of(move))
                  : row_sums(move.before, after, gradient);
  return own;
}

MapStep step_of(const std::vector<TracedMap>& maps, const std::vector<MapMove>& moves, bool by_column) {
  MapStep out;
  for (std::size_t i = 0; i < maps.size(); ++i) {
    const at::Tensor after = maps[i].weight.detach();
    Lines own;
    const Lines& lines = lines_of(after, moves[i], by_column, own);
    const double ww = total(lines[LineSums::ww]), wd = total(lines[LineSums::wd]),
                 dd = total(lines[LineSums::dd]);
    out.frobenius_before.push_back(std::sqrt(ww));
    out.frobenius.push_back(std::sqrt(std::max(0.0, ww + 2 * wd + dd)));
    out.rotation.push_back(rotation(ww, wd, dd));
    if (maps.size() > 1) out.norms.push_back(norms_after(lines));
    if (i == 0) {
      out.sums = lines;
    } else {
      out.sums += lines.values();
    }
    const double rows = static_cast<double>(after.numel()) / static_cast<double>(lines.size());
    out.outputs += rows;
    if (by_column && moments_of(moves[i]).v.defined()) out.moments += rows;
  }
  return out;
}

}  // namespace

std::vector<std::string> queries_beside(const std::string& keys) {
  for (const std::string_view name : {".k_norm", ".k.output_norm"}) {
    if (!keys.ends_with(name)) continue;
    const std::string attn = keys.substr(0, keys.size() - name.size());
    return {attn + ".q_norm", attn + ".q.output_norm"};
  }
  return {};
}

bool has_lines(const TracedVector& vector) {
  return !vector.consumers.empty() || (!vector.producers.empty() && vector.site.kind == Statistics::none);
}

std::vector<double> effective_values(const TracedVector& vector) {
  if (in_one_tensor(vector.site.parametrisation)) {
    std::vector<double> out = doubles_of(vector.stored);
    for (double& g : out) g += vector.site.offset;
    return out;
  }
  return doubles_of(compose(vector.site.parametrisation, vector.stored.detach().to(at::kDouble),
                            vector.beta.detach().to(at::kDouble)));
}

std::vector<double> effective_gradient(const TracedVector& vector, const at::Tensor& d_stored,
                                       const at::Tensor& d_beta) {
  if (!d_stored.defined()) return {};
  std::vector<double> out = doubles_of(d_stored);
  if (in_one_tensor(vector.site.parametrisation)) return out;
  if (!d_beta.defined()) return {};
  const auto d = static_cast<double>(out.size());
  const double along = doubles_of(d_beta)[0];
  if (vector.site.parametrisation == Parametrisation::exponential) {
    const std::vector<double> g = effective_values(vector);
    for (std::size_t j = 0; j < out.size(); ++j) out[j] = (out[j] + along / d) / g[j];
    return out;
  }
  const std::vector<double> alpha = doubles_of(vector.stored);
  const double beta = doubles_of(vector.beta)[0];
  const double length = std::sqrt(std::inner_product(alpha.begin(), alpha.end(), alpha.begin(), 0.0));
  for (std::size_t j = 0; j < out.size(); ++j) {
    out[j] = out[j] * length / (beta * std::sqrt(d)) + alpha[j] / length * along / std::sqrt(d);
  }
  return out;
}

double rotation(double ww, double wd, double dd) {
  return std::atan2(std::sqrt(std::max(0.0, ww * dd - wd * wd)), ww + wd);
}

std::vector<double> norms_after(const Lines& sums) {
  const auto ww = sums[LineSums::ww], wd = sums[LineSums::wd], dd = sums[LineSums::dd];
  std::vector<double> out(ww.size());
  for (std::size_t j = 0; j < out.size(); ++j) out[j] = std::sqrt(std::max(0.0, ww[j] + 2 * wd[j] + dd[j]));
  return out;
}

MapStep step_of_columns(const std::vector<TracedMap>& maps, const std::vector<MapMove>& moves) {
  return step_of(maps, moves, true);
}

MapStep step_of_rows(const std::vector<TracedMap>& maps, const std::vector<MapMove>& moves) {
  return step_of(maps, moves, false);
}

}  // namespace scalevec
