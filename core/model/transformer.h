#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include <scalevec/core/checkpoint/checkpoint.h>
#include <scalevec/core/model/routing.h>
#include <scalevec/core/model_spec.h>
#include <scalevec/core/observer.h>
#include <scalevec/core/progress.h>
#include <scalevec/core/scale_map.h>

namespace scalevec {

/// Keys and values of the positions that a model has read, so that decoding reads each once. Belongs to one
/// model.
///
/// It remembers its token ids: when a scale vector or a lent vector has changed since, the model reads them
/// again instead of answering from stale keys.
class KvCache {
 public:
  KvCache();
  ~KvCache();
  KvCache(KvCache&&) noexcept;
  KvCache& operator=(KvCache&&) noexcept;
  std::int64_t length() const;  // positions held
  void clear();

 private:
  friend class Transformer;
  struct State;
  std::unique_ptr<State> state_;
};

/// The transformer: one class for every spec. Linear maps in the compute dtype; scale vectors in the file's
/// dtype, shared with `scales()`; norms in float32 (float64 when that is the compute dtype).
///
/// Runs under the caller's grad mode: with gradients on, tensors that require them (scale vectors in
/// particular) get them by `backward()` on anything computed from the output. Not thread-safe for one object.
class Transformer final : public SiteProvider {
 public:
  struct Options {
    at::ScalarType compute = at::kFloat;  // kFloat, kBFloat16, kDouble
    at::Device device = at::kCPU;
  };

  /// Reads every tensor that the spec needs, dequantised once. E_DEVICE if `device` is absent.
  static std::unique_ptr<Transformer> load(const Checkpoint& checkpoint, const Options& options,
                                           const Progress& progress = {});
  /// The same around vectors that were read before (see read_scales), edited since or not: shared, base
  /// included. They must be on `device`.
  static std::unique_ptr<Transformer> load(const Checkpoint& checkpoint, const Options& options,
                                           const ScaleMap& scales, const Progress& progress = {});
  /// From tensors by canonical slot (ModelSpec::tensor_slots). Linear weights are cast to the compute dtype,
  /// scale vectors are taken as they are, shared. `sites`: native names of some or all of the spec's sites.
  /// E_CONFIG for what the spec says and this class does not run, naming the address; E_SHAPE, E_DTYPE,
  /// E_DEVICE.
  Transformer(ModelSpec spec, std::map<std::string, at::Tensor> slots, const Options& options,
              std::vector<Site> sites = {});
  ~Transformer() override;

  const ModelSpec& spec() const;
  const Options& options() const;
  const std::vector<Site>& sites() const override;
  ScaleMap& scales() override;
  ObserverList& observers() override;

  /// ids: (batch, tokens) or (tokens,), int64, in [0, vocabulary); E_VALUE, E_SHAPE, E_DTYPE otherwise. With
  /// a cache, batch is 1, the positions follow those it holds, and no gradients are recorded. Returns (batch,
  /// tokens, width) after the final norm, compute dtype.
  at::Tensor hidden(const at::Tensor& ids, KvCache* cache = nullptr);
  /// The residual stream by depth: what enters layer `depth`, or, at spec().layers.size(), the final norm.
  using Depths = std::map<std::size_t, at::Tensor>;
  /// hidden(ids), filling in a copy of the stream, (batch, tokens, width), at each depth that `keep` names.
  at::Tensor hidden(const at::Tensor& ids, Depths& keep);
  /// hidden(ids), and what the routers did; `routing` is replaced.
  at::Tensor hidden(const at::Tensor& ids, Routing& routing);
  /// hidden() of the same ids, computed from depth `depth` on: where only later norms differ, what comes
  /// before need not be computed again. The same bits as the whole forward.
  at::Tensor hidden_from(const at::Tensor& residual, std::size_t depth);
  /// hidden: (..., width). Returns (..., vocabulary): float32, or float64 when that is the compute dtype.
  at::Tensor head(const at::Tensor& hidden);
  /// head(hidden(ids)).
  at::Tensor logits(const at::Tensor& ids, KvCache* cache = nullptr);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Every tensor of a file by canonical slot, dequantised once, on the CPU: for whoever trains the model on.
std::map<std::string, at::Tensor> read_tensors(const Checkpoint& checkpoint, at::ScalarType dtype,
                                               const Progress& progress = {});

/// The scale vectors of a file and none of its weights, in the dtypes of the file. E_QUANT for a quantised
/// one, E_DEVICE.
ScaleMap read_scales(const Checkpoint& checkpoint, at::Device device = at::kCPU);

}  // namespace scalevec
