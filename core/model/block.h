#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>

#include <scalevec/core/model/kv_state.h>
#include <scalevec/core/model/linear_map.h>
#include <scalevec/core/model/mixture.h>
#include <scalevec/core/model/norm_layer.h>
#include <scalevec/core/model/rope.h>
#include <scalevec/core/model_spec.h>

namespace scalevec {

/// Additive masks of one forward: layers ask for the same few.
class Masks {
 public:
  /// (queries, keys), of the dtype and device of `like`: 0 where query i sees key j, -inf elsewhere. Query i
  /// stands at key i + offset; it sees itself, what is before it, and with a window no more than window - 1
  /// of these.
  const at::Tensor& get(std::int64_t queries, std::int64_t keys, std::int64_t offset, std::int64_t window,
                        const at::Tensor& like);

 private:
  std::map<std::array<std::int64_t, 4>, at::Tensor> masks_;
};

/// What one forward carries from layer to layer.
struct Pass {
  Watchers watch;
  Masks masks;
  std::int64_t past = 0;                     // positions before the first token
  std::vector<LayerCache>* cache = nullptr;  // one a layer, or none
  Routing* routing = nullptr;                // who wants to know what routers did

  /// Whether an operation may write its argument: nobody watches, and autograd does not remember it.
  bool may_write(const at::Tensor& t) const { return !watch.kept() && !t.requires_grad(); }
};

/// Causal attention of grouped queries. q: (batch, tokens, heads, head_dim); k, v: (batch, positions,
/// kv_heads, head_dim), the last `tokens` of which are the queries' own. Returns (batch, tokens, heads,
/// head_dim).
at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale,
                  std::int64_t window, Masks& masks);

/// One layer: attention and MLP, each with its norms and residual add.
struct Block {
  AttentionSpec attn;
  Activation activation = Activation::silu;
  InputNorm attn_input, mlp_input;       // branches q, k, v; gate, up, router
  LinearMap q, k, v, o, gate, up, down;  // gate, up and down without weights: there are routed experts alone
  std::optional<Mixture> mixture;
  std::optional<NormLayer> attn_output, mlp_output;
  std::shared_ptr<RopeTable> rope;

  /// x: (batch, tokens, width); may be written. Returns the same shape.
  at::Tensor operator()(at::Tensor x, std::size_t layer, Pass& pass) const;

 private:
  at::Tensor attention(const at::Tensor& x, std::size_t layer, Pass& pass) const;
  at::Tensor mlp(const at::Tensor& x, std::size_t layer, Pass& pass) const;
};

}  // namespace scalevec
