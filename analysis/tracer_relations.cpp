// Figures of a row that relate a vector to its maps' norms, to itself in the last row, and to other vectors.
#include <cmath>
#include <string>
#include <utility>

#include <fmt/format.h>

#include <scalevec/analysis/tracer_state.h>
#include <scalevec/analysis/vector_figures.h>

namespace scalevec {
namespace {

using Values = std::vector<double>;

// The same address in the next layer, or nothing.
std::string next_layer(const Address& address) {
  const std::optional<std::int64_t> layer = address.layer();
  if (!layer) return "";
  const std::string here = fmt::format("layers.{}.", *layer), next = fmt::format("layers.{}.", *layer + 1);
  std::string text = address.str();
  return text.replace(text.find(here), here.size(), next);
}

bool are_branches_of_one_norm(const Address& a, const Address& b) {
  return a.branch() && b.branch() && a != b && a.without_branch() == b.without_branch();
}

}  // namespace

template <class Name>
void Tracer::State::related(std::size_t i, const Sizes& norms, const Sizes& sizes, Name&& name) {
  const Relation both = relation(norms.logs(), sizes.logs());
  put(name("log_pearson"), i, both.pearson);
  put(name("log_spearman"), i, rank_correlation(norms, sizes));
  put(name("log_slope"), i, both.slope);
}

void Tracer::State::coadaptation(std::size_t i, const Values& g, const Values& norms, const Sizes& sizes) {
  const std::size_t d = g.size();
  const Sizes of_norms(norms);
  related(i, of_norms, sizes, [](const char* column) { return std::string(column); });
  put("growth_prediction", i,
      mean(each(d, [&](std::size_t j) { return norms[j] * norms[j] / (g[j] * g[j]); })));
  Past& last = past[i];
  const Values old_g = std::exchange(last.log_g, sizes.logs()),
               old_n = std::exchange(last.log_norms, of_norms.logs());
  if (old_n.empty()) return;
  const auto growth = [&](const Values& a, const Values& b) {
    return each(d, [&](std::size_t j) { return a[j] - b[j]; });
  };
  const Values by_g = growth(last.log_g, old_g), by_n = growth(last.log_norms, old_n);
  const Relation grown = relation(by_n, by_g);
  put("growth_correlation", i, grown.pearson);
  put("growth_slope", i, grown.slope);
  put("self_amplification", i, relation(old_g, by_g).slope);
}

void Tracer::State::branches(std::size_t i, const Sizes& sizes, const MapStep& maps) {
  for (std::size_t k = 0; k < maps.norms.size(); ++k) {
    const auto name = [&](const char* column) {
      return of_branch(fmt::format("{}_BRANCH", column), vectors[i].consumers[k].branch);
    };
    put(name("column_norm"), i, maps.norms[k]);
    put(name("weight_rotation"), i, maps.rotation[k]);
    related(i, Sizes(maps.norms[k]), sizes, name);
  }
}

void Tracer::State::neighbours(std::size_t i) {
  const auto now = [&](std::size_t k) -> const Values& { return past[k].g; };
  const TracedVector& v = vectors[i];
  const auto shifted = [](const Values& g, double by) {
    return each(g.size(), [&](std::size_t j) { return g[j] - by; });
  };
  double cosines = 0, others = 0;
  for (std::size_t k = 0; k < vectors.size(); ++k) {
    if (!are_branches_of_one_norm(v.site.address, vectors[k].site.address)) continue;
    const double one = cosine(shifted(now(i), 1.0), shifted(now(k), 1.0));
    put(of_branch("branch_cosine_BRANCH", *vectors[k].site.address.branch()), i, one);
    cosines += one;
    ++others;
  }
  if (others > 0) put("branch_cosine", i, cosines / others);
  if (const auto next = index.find(next_layer(v.site.address));
      next != index.end() && now(next->second).size() == now(i).size()) {
    const Values& below = now(next->second);
    put("layer_cosine", i, cosine(shifted(now(i), mean(now(i))), shifted(below, mean(below))));
  }
  if (const auto keys = keys_of.find(i); keys != keys_of.end()) {
    const std::size_t k = keys->second;
    // Of each head, of which several may share one vector, and several heads of queries one of keys.
    const auto group = static_cast<std::size_t>(v.site.group);
    const std::size_t heads = now(i).size() / group, of_keys = now(k).size() / group;
    const std::size_t shared = heads / of_keys;
    const Values product = each(now(i).size(), [&](std::size_t j) {
      return now(i)[j] * now(k)[j / group / shared * group + j % group];
    });
    const double root = std::sqrt(static_cast<double>(group));
    const VectorFigures f = vector_figures(product);  // NaN where one is not finite
    put("qk_temperature", i, std::sqrt(sum_of_squares(product) / static_cast<double>(heads)) / root);
    put("qk_logit_bound", i, root * std::max(std::fabs(f.min), std::fabs(f.max)));
  }
  // The map between an input vector (columns, gb) and this output vector (rows, ga).
  for (const Pair& pair : pairs) {
    if (pair.output != i) continue;
    const Sizes rows(now(i)), columns(now(pair.input));
    put("dual_log_mean", i, 2 * (mean(rows.logs()) + mean(columns.logs())));
    put("dual_log_sd_row", i, 2 * spread_of_logs(rows));
    put("dual_log_sd_column", i, 2 * spread_of_logs(columns));
  }
}

}  // namespace scalevec
