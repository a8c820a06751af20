#include <scalevec/analysis/forward_trace.h>

#include <algorithm>
#include <string>
#include <utility>

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <scalevec/analysis/attention_entropy.h>
#include <scalevec/analysis/traced_vector.h>

namespace scalevec {

ForwardTrace::ForwardTrace(const Transformer& model, Tracer& tracer, bool inputs,
                           std::function<std::int64_t()> step)
    : spec_(model.spec()), tracer_(tracer), step_(std::move(step)) {
  const std::vector<Site>& sites = model.sites();
  for (const Site& site : sites) {
    const bool is_read = site.width > 0 && !site.consumers.empty() && site.kind != Statistics::none;
    wanted_.push_back(inputs && is_read ? parts::normalized : 0);
  }
  // Attention whose queries and keys both have norms; where one has none it is nobody's figure.
  for (std::size_t keys = 0; keys < sites.size(); ++keys) {
    const std::vector<std::string> beside = queries_beside(sites[keys].address.str());
    for (std::size_t queries = 0; queries < sites.size(); ++queries) {
      const std::string& address = sites[queries].address.str();
      if (std::ranges::find(beside, address) == beside.end()) continue;
      if (sites[queries].width == 0 || sites[keys].width == 0) continue;
      wanted_[queries] |= parts::scaled;
      wanted_[keys] |= parts::scaled;
      queries_of_[keys] = {queries, address};
    }
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
  const auto& [index, address] = keys->second;
  const AttentionSpec& attn = spec_.layers[static_cast<std::size_t>(event.site.address.layer().value())].attn;
  // One head stands without a dimension of its own.
  const auto heads = [&](const at::Tensor& t) { return t.reshape({t.size(0), -1, attn.head_dim}); };
  const double entropy = attention_entropy(heads(queries_), heads(event.scaled.detach().select(0, 0)), attn);
  tracer_.note(address, "attention_entropy", {&entropy, 1});
  entropy_of_[index] = step;
  queries_.reset();
}

}  // namespace scalevec
