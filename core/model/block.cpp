#include <scalevec/core/model/block.h>

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include <scalevec/core/model/gated.h>
#include <scalevec/core/ops.h>

namespace scalevec {
namespace {

at::Tensor add(at::Tensor residual, const at::Tensor& branch, const Pass& pass) {
  if (pass.may_write(residual) && pass.may_write(branch)) return residual.add_(branch);
  return residual.add(branch);
}

}  // namespace

const at::Tensor& Masks::get(std::int64_t queries, std::int64_t keys, std::int64_t offset,
                             std::int64_t window, const at::Tensor& like) {
  at::Tensor& mask = masks_[{queries, keys, offset, window}];
  if (!mask.defined()) {
    const at::Tensor values = ops::empty({queries, keys}, at::kFloat);
    float* out = values.mutable_data_ptr<float>();
    for (std::int64_t i = 0; i < queries; ++i, out += keys) {
      const std::int64_t last = i + offset, first = window > 0 ? last - window + 1 : 0;
      for (std::int64_t j = 0; j < keys; ++j) {
        out[j] = first <= j && j <= last ? 0.0f : -std::numeric_limits<float>::infinity();
      }
    }
    mask = values.to(like.device(), like.scalar_type());
  }
  return mask;
}

at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale,
                  std::int64_t window, Masks& masks) {
  const std::int64_t tokens = q.size(1), positions = k.size(1), past = positions - tokens;
  const bool grouped = q.size(2) != k.size(2);
  // Queries [a, b) over keys [c, a + b's own]; the kernel skips the upper triangle itself where it is told
  // `causal`.
  const auto part = [&](std::int64_t a, std::int64_t b, std::int64_t c) {
    const std::int64_t queries = b - a, keys = past + b - c, offset = past + a - c;
    const at::Tensor qs = q.narrow(1, a, queries).transpose(1, 2);
    const at::Tensor ks = k.narrow(1, c, keys).transpose(1, 2), vs = v.narrow(1, c, keys).transpose(1, 2);
    const bool sees_all = queries == 1, inside = window == 0 || keys <= window;
    const bool causal = !sees_all && inside && offset == 0;
    std::optional<at::Tensor> mask;
    if (!sees_all && !causal) mask = masks.get(queries, keys, offset, inside ? 0 : window, q);
    return ops::attention(qs, ks, vs, mask, causal, scale, grouped).transpose(1, 2);
  };
  if (window == 0 || positions <= window) return part(0, tokens, 0);
  // Parts of about a window each see at most two windows of keys: the work grows with the window, not with
  // the text.
  const std::int64_t step = std::max<std::int64_t>(window, 256);
  std::vector<at::Tensor> parts;
  for (std::int64_t a = 0; a < tokens; a += step) {
    parts.push_back(part(a, std::min(tokens, a + step), std::max<std::int64_t>(0, past + a - window + 1)));
  }
  return parts.size() == 1 ? parts[0] : ops::cat(parts, 1);
}

at::Tensor Block::attention(const at::Tensor& x, std::size_t layer, Pass& pass) const {
  const std::int64_t batch = x.size(0), tokens = x.size(1);
  const std::vector<at::Tensor> inputs = attn_input(x, pass.watch);
  const auto heads = [&](const LinearMap& map, const at::Tensor& input, std::int64_t count) {
    return map(input, pass.watch).reshape({batch, tokens, count, attn.head_dim});
  };
  const auto [cos, sin] = rope->rows(pass.past, tokens);
  const auto turned = [&, &c = cos, &s = sin](const at::Tensor& t) {
    return rotate(t, c, s, attn.rope, pass.may_write(t));
  };
  const at::Tensor queries = turned(heads(q, inputs[0], attn.heads));
  at::Tensor keys = turned(heads(k, inputs[1], attn.kv_heads));
  at::Tensor values = heads(v, inputs[2], attn.kv_heads);
  if (pass.cache) std::tie(keys, values) = (*pass.cache)[layer].append(keys, values, attn.window);
  const at::Tensor mixed = attend(queries, keys, values, attn.scale, attn.window, pass.masks);
  return o(mixed.reshape({batch, tokens, attn.heads * attn.head_dim}), pass.watch);
}

at::Tensor Block::mlp(const at::Tensor& x, std::size_t layer, Pass& pass) const {
  const std::vector<at::Tensor> inputs = mlp_input(x, pass.watch);
  at::Tensor y;
  if (gate.weight.defined()) {
    at::Tensor g = gate(inputs[0], pass.watch);
    const at::Tensor u = up(inputs[1], pass.watch);
    const bool in_place = pass.may_write(g) && pass.may_write(u);
    y = down(gated(activation, std::move(g), u, in_place), pass.watch);
  }
  if (!mixture) return y;
  RouterUse* const use = pass.routing ? &(*pass.routing)[layer] : nullptr;
  const at::Tensor routed = (*mixture)(inputs[2], inputs[0], inputs[1], use);
  return y.defined() ? add(std::move(y), routed, pass) : routed;
}

at::Tensor Block::operator()(at::Tensor x, std::size_t layer, Pass& pass) const {
  at::Tensor branch = attention(x, layer, pass);
  if (attn_output) branch = (*attn_output)(branch, pass.watch);
  x = add(std::move(x), branch, pass);
  branch = mlp(x, layer, pass);
  if (mlp_output) branch = (*mlp_output)(branch, pass.watch);
  return add(std::move(x), branch, pass);
}

}  // namespace scalevec
