#include <scalevec/core/model/transformer.h>

#include <atomic>
#include <cmath>
#include <set>
#include <tuple>
#include <utility>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/tensor.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <scalevec/core/error.h>
#include <scalevec/core/model/kv_state.h>
#include <scalevec/core/model/layers.h>
#include <scalevec/core/ops.h>

namespace scalevec {
namespace {

// The spec's sites, with the names that the given ones know.
std::vector<Site> name_sites(std::vector<Site> sites, std::vector<Site> named) {
  std::map<std::string, Site> by_address;
  for (Site& site : named) by_address[site.address.str()] = std::move(site);
  for (Site& site : sites) {
    const auto found = by_address.find(site.address.str());
    if (found == by_address.end()) continue;
    site.native = std::move(found->second.native);
    site.bias_native = std::move(found->second.bias_native);
    if (!found->second.consumers.empty()) site.consumers = std::move(found->second.consumers);
    if (!found->second.producers.empty()) site.producers = std::move(found->second.producers);
    by_address.erase(found);
  }
  if (!by_address.empty()) {
    fail(ErrorCode::config,
         fmt::format("building a transformer: the spec has no norm at '{}'", by_address.begin()->first),
         {.tensor = by_address.begin()->first});
  }
  return sites;
}

}  // namespace

struct Transformer::State {
  State(ModelSpec given_spec, const Options& given_options, std::vector<Site> given_sites)
      : spec(std::move(given_spec)), options(given_options), sites(std::move(given_sites)) {
    static std::atomic<std::uint64_t> last{0};
    identity = ++last;
  }

  ModelSpec spec;
  Options options;
  std::vector<Site> sites;
  ScaleMap scales;
  ObserverList observers;
  Layers layers;
  double embedding_scale = 1.0;
  std::uint64_t identity = 0;

  at::Tensor check_ids(const at::Tensor& ids, const KvCache* cache) const;
  at::Tensor run(const at::Tensor& ids, std::int64_t past, bool silent, std::vector<LayerCache>* cache,
                 Depths* keep = nullptr, Routing* routing = nullptr);
  at::Tensor run_from(at::Tensor x, std::size_t first, Pass& pass, Depths* keep);
  at::Tensor run_cached(const at::Tensor& ids, KvCache::State& cache);
  std::vector<std::uint32_t> versions() const;
};

Transformer::Transformer(ModelSpec spec, std::map<std::string, at::Tensor> slots, const Options& options,
                         std::vector<Site> sites) {
  check_options(options);
  std::vector<Site> all = name_sites(spec.sites(), std::move(sites));
  check_spec(spec);
  check_slots(spec, slots);

  std::set<std::string> shared;
  std::vector<ScaleVector> vectors;
  for (const Site& site : all) {
    if (site.width == 0) continue;
    const auto share = [&](std::string_view component) {
      const auto found = slots.find(fmt::format("{}.{}", site.address.str(), component));
      if (found == slots.end()) return at::Tensor();
      shared.insert(found->first);
      return found->second;
    };
    const bool one = in_one_tensor(site.parametrisation);
    vectors.emplace_back(site, share(one ? "weight" : "alpha"), share("bias"), share("beta"));
  }
  std::set<std::string> factors;  // of rotary frequencies: float32 in every compute dtype
  for (const LayerSpec& layer : spec.layers) factors.insert(layer.attn.rope.factors_tensor);
  for (auto& [name, tensor] : slots) {
    if (!shared.contains(name)) {
      tensor = tensor.to(options.device, factors.contains(name) ? at::kFloat : options.compute).contiguous();
    } else if (tensor.device() != options.device) {
      fail(ErrorCode::device,
           fmt::format(
               "building a transformer on {}: the vector '{}' is on {}; move it there first, since the model "
               "shares its storage",
               options.device.str(), name, tensor.device().str()),
           {.tensor = name});
    }
  }
  state_ = std::make_unique<State>(std::move(spec), options, std::move(all));
  state_->scales = ScaleMap(std::move(vectors));
  state_->layers = build_layers(state_->spec, state_->sites, slots, options.device);
  // transformers keeps the factor in float32 and rounds it to the weights' dtype.
  state_->embedding_scale = ops::empty({}, at::kFloat)
                                .fill_(static_cast<float>(state_->spec.embedding_scale))
                                .to(options.compute)
                                .to(at::kDouble)
                                .item<double>();
}

Transformer::~Transformer() = default;

const ModelSpec& Transformer::spec() const { return state_->spec; }
const Transformer::Options& Transformer::options() const { return state_->options; }
const std::vector<Site>& Transformer::sites() const { return state_->sites; }
ScaleMap& Transformer::scales() { return state_->scales; }
ObserverList& Transformer::observers() { return state_->observers; }

at::Tensor Transformer::State::check_ids(const at::Tensor& ids, const KvCache* cache) const {
  if (!ids.defined() || ids.dim() < 1 || ids.dim() > 2 || ids.numel() == 0) {
    fail(ErrorCode::shape, "forward: ids must be (batch, tokens) or (tokens,), with at least one id",
         {.found = ids.defined() ? fmt::format("[{}]", fmt::join(ids.sizes(), ", ")) : "nothing"});
  }
  if (ids.scalar_type() != at::kLong) {
    fail(ErrorCode::dtype, fmt::format("forward: ids are {}", c10::toString(ids.scalar_type())),
         {.expected = "int64"});
  }
  const at::Tensor rows = (ids.dim() == 1 ? ids.unsqueeze(0) : ids).to(at::kCPU).contiguous();
  if (cache && rows.size(0) != 1) {
    fail(ErrorCode::shape,
         fmt::format("forward with a key-value cache: the batch has {} rows; expected 1", rows.size(0)));
  }
  const std::int64_t* const values = rows.const_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < rows.numel(); ++i) {
    if (values[i] >= 0 && values[i] < spec.vocabulary) continue;
    fail(ErrorCode::value,
         fmt::format("forward: id {} at place {} is outside the vocabulary of {}", values[i], i,
                     spec.vocabulary),
         {.index = i,
          .expected = fmt::format("[0, {})", spec.vocabulary),
          .found = fmt::format("{}", values[i])});
  }
  if (rows.size(1) + (cache ? cache->length() : 0) >= std::int64_t{1} << 31) {
    fail(ErrorCode::limit, "forward: 2^31 positions or more");
  }
  return rows;
}

std::vector<std::uint32_t> Transformer::State::versions() const {
  std::vector<std::uint32_t> out;
  const auto add = [&](const at::Tensor& tensor) {
    if (!tensor.defined()) return;
    out.push_back(tensor.is_inference() ? 0 : static_cast<std::uint32_t>(tensor._version()));
  };
  for (const ScaleVector& vector : scales) add(vector.stored()), add(vector.bias()), add(vector.beta());
  // A lent vector that learns changes between two forwards as a stored one does.
  for (std::size_t site = 0; !observers.empty() && site < sites.size(); ++site) add(observers.lent(site));
  return out;
}

at::Tensor Transformer::State::run(const at::Tensor& ids, std::int64_t past, bool silent,
                                   std::vector<LayerCache>* cache, Depths* keep, Routing* routing) {
  Pass pass{.watch = Watchers(sites, observers, silent),
            .masks = {},
            .past = past,
            .cache = cache,
            .routing = routing};
  at::Tensor x = ops::embedding(layers.embedding, ids.to(options.device));
  if (embedding_scale != 1.0) x = x.mul(embedding_scale);
  return run_from(std::move(x), 0, pass, keep);
}

at::Tensor Transformer::State::run_from(at::Tensor x, std::size_t first, Pass& pass, Depths* keep) {
  const auto offer = [&](std::size_t depth) {
    if (!keep) return;
    const auto wanted = keep->find(depth);
    if (wanted != keep->end()) wanted->second = x.clone();  // layers may write x
  };
  for (std::size_t i = first; i < layers.blocks.size(); ++i) {
    offer(i);
    x = layers.blocks[i](std::move(x), i, pass);
  }
  offer(layers.blocks.size());
  return layers.final_norm ? (*layers.final_norm)(x, pass.watch) : x;
}

at::Tensor Transformer::State::run_cached(const at::Tensor& ids, KvCache::State& cache) {
  if (cache.model != 0 && cache.model != identity) {
    fail(ErrorCode::state,
         "forward: the key-value cache was filled by another model; clear it or make a new one");
  }
  const at::NoGradGuard no_grad;
  const auto extend = [&](KvCache::State& to, const at::Tensor& rows, bool silent) {
    at::Tensor x = run(rows, static_cast<std::int64_t>(to.ids.size()), silent, &to.layers);
    const std::int64_t* const values = rows.const_data_ptr<std::int64_t>();
    to.ids.insert(to.ids.end(), values, values + rows.numel());
    for (LayerCache& layer : to.layers) layer.commit(rows.numel());
    return x;
  };
  std::vector<std::uint32_t> now = versions();
  if (cache.model == 0 || cache.versions != now || cache.lending != observers.lending_generation()) {
    // What it holds was read with other vectors: read it again with these.
    KvCache::State fresh;
    fresh.model = identity;
    fresh.versions = std::move(now);
    fresh.lending = observers.lending_generation();
    fresh.layers.resize(layers.blocks.size());
    if (!cache.ids.empty()) extend(fresh, at::tensor(cache.ids, at::kLong).unsqueeze(0), /*silent=*/true);
    cache = std::move(fresh);
  }
  return extend(cache, ids, /*silent=*/false);
}

at::Tensor Transformer::hidden(const at::Tensor& ids, KvCache* cache) {
  const at::Tensor rows = state_->check_ids(ids, cache);
  if (!cache) return state_->run(rows, 0, /*silent=*/false, nullptr);
  if (!cache->state_) cache->clear();  // it was moved from
  return state_->run_cached(rows, *cache->state_);
}

at::Tensor Transformer::hidden(const at::Tensor& ids, Depths& keep) {
  if (!keep.empty() && keep.rbegin()->first > state_->layers.blocks.size()) {
    fail(ErrorCode::addr, fmt::format("forward: depth {} of a model of {} layers", keep.rbegin()->first,
                                      state_->layers.blocks.size()));
  }
  return state_->run(state_->check_ids(ids, nullptr), 0, /*silent=*/false, nullptr, &keep);
}

at::Tensor Transformer::hidden(const at::Tensor& ids, Routing& routing) {
  routing.clear();
  return state_->run(state_->check_ids(ids, nullptr), 0, /*silent=*/false, nullptr, nullptr, &routing);
}

at::Tensor Transformer::hidden_from(const at::Tensor& residual, std::size_t depth) {
  if (depth > state_->layers.blocks.size()) {
    fail(ErrorCode::addr,
         fmt::format("forward: depth {} of a model of {} layers", depth, state_->layers.blocks.size()));
  }
  if (!residual.defined() || residual.dim() != 3 || residual.size(-1) != state_->spec.width) {
    fail(ErrorCode::shape, "forward from a residual stream: expected what hidden(ids, keep) kept",
         {.expected = fmt::format("(batch, tokens, {})", state_->spec.width),
          .found = residual.defined() ? fmt::format("[{}]", fmt::join(residual.sizes(), ", ")) : "nothing"});
  }
  Pass pass{.watch = Watchers(state_->sites, state_->observers, false), .masks = {}};
  return state_->run_from(residual.clone(), depth, pass, nullptr);
}

at::Tensor Transformer::head(const at::Tensor& hidden) {
  if (!hidden.defined() || hidden.dim() < 1 || hidden.size(-1) != state_->spec.width) {
    fail(ErrorCode::shape, "head: expected the model's hidden vectors",
         {.expected = fmt::format("(..., {})", state_->spec.width),
          .found = hidden.defined() ? fmt::format("[{}]", fmt::join(hidden.sizes(), ", ")) : "nothing"});
  }
  const Watchers watch(state_->sites, state_->observers);
  const at::Tensor logits = state_->layers.head(hidden.to(state_->options.compute), watch);
  return state_->options.compute == at::kDouble ? logits : logits.to(at::kFloat);
}

at::Tensor Transformer::logits(const at::Tensor& ids, KvCache* cache) { return head(hidden(ids, cache)); }

}  // namespace scalevec
