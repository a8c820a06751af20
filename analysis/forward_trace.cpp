#include <scalevec/analysis/forward_trace.h>

#include <algorithm>
#include <string>
#include <utility>

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <scalevec/analysis/attention_entropy.h>

namespace scalevec {

ForwardTrace::ForwardTrace(const Transformer& model, Tracer& tracer, bool inputs,
                           std::function<std::int64_t()> step)
    : spec_(model.spec()), tracer_(tracer), step_(std::move(step)) {
  const std::vector<Site>& sites = model.sites();
  for (const Site& site : sites) {
    const bool is_read = site.width > 0 && !site.consumers.empty() && site.kind != Statistics::none;
    wanted_.push_back(inputs && is_read ? parts::normalized : 0);
  }
  // Attention whose queries and keys both have norms per head; where one has none it is nobody's figure.
  const auto index_of = [&](const std::string& address) {
    return static_cast<std::size_t>(
        std::find_if(sites.begin(), sites.end(),
                     [&](const Site& site) { return site.width > 0 && site.address.str() == address; }) -
        sites.begin());
  };
  for (std::size_t layer = 0; layer < spec_.layers.size(); ++layer) {
    const std::string attn = fmt::format("layers.{}.attn.", layer);
    const std::size_t queries = index_of(attn + "q_norm"), keys = index_of(attn + "k_norm");
    if (queries == sites.size() || keys == sites.size()) continue;
    wanted_[queries] |= parts::scaled;
    wanted_[keys] |= parts::scaled;
    queries_of_[keys] = queries;
  }
}

unsigned ForwardTrace::wants(std::size_t site) const {
  if (wanted_[site] == 0 || !at::GradMode::is_enabled()) return 0;
  const std::int64_t step = step_();
  return step > 0 && tracer_.due(step) ? wanted_[site] : 0;
}

void ForwardTrace::see(const NormEvent& event) {
  if (event.normalized.defined() && (wanted_[event.index] & parts::normalized))
    tracer_.see(event.site.address.str(), event.normalized);
  if (!(wanted_[event.index] & parts::scaled)) return;
  // The first window of the step stands for all.
  const std::int64_t step = step_();
  const auto keys = queries_of_.find(event.index);
  if (keys == queries_of_.end()) {
    if (entropy_of_[event.index] < step) queries_ = event.scaled.detach().select(0, 0);
    return;
  }
  if (!queries_.defined()) return;
  const std::string& address = event.site.address.str();
  const AttentionSpec& attn = spec_.layers[static_cast<std::size_t>(event.site.address.layer().value())].attn;
  // One head stands without a dimension of its own.
  const auto heads = [&](const at::Tensor& t) { return t.reshape({t.size(0), -1, attn.head_dim}); };
  const double entropy = attention_entropy(heads(queries_), heads(event.scaled.detach().select(0, 0)), attn);
  tracer_.note(address.substr(0, address.rfind('.')) + ".q_norm", "attention_entropy", {&entropy, 1});
  entropy_of_[keys->second] = step;
  queries_.reset();
}

}  // namespace scalevec
