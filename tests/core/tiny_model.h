// Small random models, and the same arithmetic again in plain float64 operators.
#pragma once

#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/silu.h>
#include <support/tensors.h>

#include <scalevec/core/model_spec.h>

namespace tiny {

using Slots = std::map<std::string, at::Tensor>;

inline scalevec::NormSpec norm_spec(std::int64_t group, std::int64_t width, double eps) {
  scalevec::NormSpec norm;
  norm.group = group;
  norm.width = width;
  norm.eps = eps;
  return norm;
}

inline scalevec::LinearSpec linear_spec(std::int64_t in, std::int64_t out) {
  scalevec::LinearSpec map;
  map.in = in;
  map.out = out;
  return map;
}

/// Two layers, four heads of six over two key-value heads, plain RMSNorm before attention and MLP.
inline scalevec::ModelSpec spec(int layers = 2) {
  using namespace scalevec;
  ModelSpec s;
  s.family = "test";
  s.vocabulary = 37;
  s.width = 20;
  s.context = 64;
  const NormSpec norm = norm_spec(20, 20, 1e-5);
  LayerSpec layer;
  layer.attn_input = layer.mlp_input = norm;
  layer.attn.heads = 4;
  layer.attn.kv_heads = 2;
  layer.attn.head_dim = 6;
  layer.attn.scale = 0.41;
  layer.attn.rope.base = 100.0;
  layer.attn.rope.dimensions = 6;
  layer.attn.q = linear_spec(20, 24);
  layer.attn.k = layer.attn.v = linear_spec(20, 12);
  layer.attn.o = linear_spec(24, 20);
  layer.mlp.gate = layer.mlp.up = linear_spec(20, 28);
  layer.mlp.down = linear_spec(28, 20);
  s.layers.assign(static_cast<std::size_t>(layers), layer);
  s.final_norm = norm;
  s.head = linear_spec(20, 37);
  return s;
}

/// Everything that a spec can say, at once: q/k-norm, sandwich norms with offset, branch vectors, bare scales
/// and norms on outputs, biases, a window, GELU, interleaved pairs of a part of each head, a tied head,
/// scaled embeddings.
inline scalevec::ModelSpec rich_spec() {
  using namespace scalevec;
  ModelSpec s = spec(3);
  s.embedding_scale = std::sqrt(20.0);
  s.tied_head = true;
  NormSpec offset = norm_spec(20, 20, 1e-6);
  offset.parametrisation = Parametrisation::offset;
  offset.offset = 1.0;
  const NormSpec per_head = norm_spec(6, 6, 1e-6);
  LayerSpec& first = s.layers[0];
  first.attn_input = first.attn_output = first.mlp_input = first.mlp_output = offset;
  first.attn.q.output = first.attn.k.output = per_head;
  first.attn.window = 5;
  first.attn.rope.pairing = RopeSpec::Pairing::interleaved;
  first.attn.rope.dimensions = 4;
  first.mlp.activation = Activation::gelu_tanh;
  LayerSpec& second = s.layers[1];
  second.attn.q.own_vector = second.attn.k.own_vector = second.attn.v.own_vector = true;
  second.mlp.up.own_vector = true;
  second.attn.q.output = second.attn.k.output = norm_spec(6, 24, 1e-6);
  second.attn.k.output->width = 12;
  second.attn.v.output = norm_spec(12, 12, 1e-6);
  second.attn.v.output->statistics = Statistics::none;
  second.attn.q.bias = second.attn.o.bias = second.mlp.down.bias = true;
  second.mlp.gate.output = norm_spec(28, 28, 1e-6);
  LayerSpec& third = s.layers[2];
  third.attn_input->width = 0;  // a norm without a vector
  third.mlp_input->statistics = Statistics::layer;
  third.mlp_input->bias = true;
  return s;
}

inline bool is_vector(const std::string& slot) {
  return slot.find("norm") != std::string::npos || slot.find("output_scale") != std::string::npos;
}

/// float64 values; vectors near 1 (near 0 where the offset is 1).
inline Slots slots(const scalevec::ModelSpec& s, at::ScalarType vectors = at::kFloat) {
  std::map<std::string, double> middle;
  for (const scalevec::Site& site : s.sites()) middle[site.address.str() + ".weight"] = 1.0 - site.offset;
  Slots out;
  unsigned number = 0;
  for (const auto& [name, shape] : s.tensor_slots()) {
    const at::Tensor values = normal(shape, ++number);
    if (is_vector(name)) {
      out[name] = (values * 0.3 + (middle.contains(name) ? middle[name] : 0.0)).to(vectors);
    } else {
      out[name] = values * (shape.size() > 1 ? 1.5 / std::sqrt(static_cast<double>(shape.back())) : 0.2);
    }
  }
  return out;
}

inline at::Tensor ids(std::int64_t batch, std::int64_t tokens, std::int64_t vocabulary = 37) {
  return normal({batch, tokens}, 99).mul(1000.0).to(at::kLong).remainder(vocabulary);
}

/// The forward in float64, written once more: no kernel, no fused attention, no in-place.
class Reference {
 public:
  Reference(scalevec::ModelSpec spec, const Slots& slots) : spec_(std::move(spec)) {
    for (const auto& [name, tensor] : slots) slots_[name] = tensor.to(at::kDouble);
  }

  at::Tensor logits(const at::Tensor& ids) const {
    using namespace scalevec;
    at::Tensor x = at::embedding(get("embed.weight"), ids) *
                   static_cast<double>(static_cast<float>(spec_.embedding_scale));
    for (std::size_t i = 0; i < spec_.layers.size(); ++i) {
      const LayerSpec& l = spec_.layers[i];
      const std::string at = "layers." + std::to_string(i) + ".";
      at::Tensor y = attention(l, at + "attn", x);
      if (l.attn_output) y = norm(*l.attn_output, at + "attn.output_norm", y);
      x = x + y;
      y = mlp(l, at + "mlp", x);
      if (l.mlp_output) y = norm(*l.mlp_output, at + "mlp.output_norm", y);
      x = x + y;
    }
    if (spec_.final_norm) x = norm(*spec_.final_norm, "final_norm", x);
    x = x.matmul(get(spec_.tied_head ? "embed.weight" : "head.weight").t());
    return spec_.head.output ? output(*spec_.head.output, "lm_head", x) : x;
  }

 private:
  at::Tensor get(const std::string& name) const { return slots_.at(name); }

  at::Tensor vector(const scalevec::NormSpec& n, const std::string& address) const {
    using scalevec::Parametrisation;
    if (n.parametrisation == Parametrisation::magnitude_direction) {
      const at::Tensor alpha = get(address + ".alpha");
      return get(address + ".beta") * alpha / alpha.pow(2).mean().sqrt();
    }
    if (n.parametrisation == Parametrisation::exponential) {
      const at::Tensor alpha = get(address + ".alpha");
      return get(address + ".beta").exp() * (alpha - alpha.mean()).exp();
    }
    return get(address + ".weight") + n.offset;
  }

  at::Tensor norm(const scalevec::NormSpec& n, const std::string& address, const at::Tensor& x) const {
    at::Tensor v = x.unflatten(-1, {x.size(-1) / n.group, n.group});
    if (n.statistics == scalevec::Statistics::layer) v = v - v.mean(-1, true);
    if (n.statistics != scalevec::Statistics::none) v = v / (v.pow(2).mean(-1, true) + n.eps).sqrt();
    v = v.flatten(-2);
    if (n.width == 0) return v;
    const at::Tensor g = vector(n, address);
    v = (v.unflatten(-1, {x.size(-1) / n.width, n.width}) * g).flatten(-2);
    return n.bias ? v + get(address + ".bias") : v;
  }

  at::Tensor before(const std::optional<scalevec::NormSpec>& n, const std::string& address,
                    const std::string& branch, const scalevec::LinearSpec& map, const at::Tensor& x) const {
    return n ? norm(*n, map.own_vector ? address + "[" + branch + "]" : address, x) : x;
  }

  at::Tensor linear(const scalevec::LinearSpec& map, const std::string& slot, const at::Tensor& x) const {
    at::Tensor y = x.matmul(get(slot + ".weight").t());
    if (map.bias) y = y + get(slot + ".bias");
    return map.output ? output(*map.output, slot, y) : y;
  }

  at::Tensor output(const scalevec::NormSpec& n, const std::string& map, const at::Tensor& y) const {
    for (const std::string& address : {map + "_norm", map + ".output_norm", map + ".output_scale"}) {
      if (slots_.contains(address + ".weight") || slots_.contains(address + ".alpha"))
        return norm(n, address, y);
    }
    return norm(n, "", y);
  }

  at::Tensor mlp(const scalevec::LayerSpec& l, const std::string& at, const at::Tensor& x) const {
    const scalevec::MlpSpec& m = l.mlp;
    const auto activated = [&](const at::Tensor& gate) {
      return m.activation == scalevec::Activation::silu ? at::silu(gate) : at::gelu(gate, "tanh");
    };
    const auto input = [&](const char* branch, const scalevec::LinearSpec& map) {
      return before(l.mlp_input, at + ".input_norm", branch, map, x);
    };
    at::Tensor y = x * 0.0;
    if (m.gate.out > 0) {
      const at::Tensor gate = linear(m.gate, at + ".gate", input("gate", m.gate));
      const at::Tensor up = linear(m.up, at + ".up", input("up", m.up));
      y = linear(m.down, at + ".down", activated(gate) * up);
    }
    if (!m.mixture) return y;
    const at::Tensor r = input("router", m.mixture->router), g = input("gate", m.mixture->gate),
                     u = input("up", m.mixture->up);
    const at::Tensor scores = r.matmul(get(at + ".router.weight").t()).exp();
    for (std::int64_t b = 0; b < x.size(0); ++b) {
      for (std::int64_t t = 0; t < x.size(1); ++t) {
        at::Tensor left = scores[b][t].clone();
        std::vector<std::int64_t> chosen;
        double total = left.sum().item<double>();
        if (m.mixture->renormalise) total = 0.0;
        while (static_cast<std::int64_t>(chosen.size()) < m.mixture->active) {
          chosen.push_back(left.argmax().item<std::int64_t>());
          if (m.mixture->renormalise) total += left[chosen.back()].item<double>();
          left[chosen.back()] = -1.0;
        }
        for (const std::int64_t e : chosen) {
          const at::Tensor gate = get(at + ".experts.gate.weight")[e].mv(g[b][t]);
          const at::Tensor up = get(at + ".experts.up.weight")[e].mv(u[b][t]);
          const at::Tensor out = get(at + ".experts.down.weight")[e].mv(activated(gate) * up);
          y[b][t] += out * (scores[b][t][e] / total);
        }
      }
    }
    return y;
  }

  at::Tensor rotate(const scalevec::RopeSpec& r,
                    const at::Tensor& x) const {  // (batch, tokens, heads, head_dim)
    at::Tensor out = x.clone();
    for (std::int64_t i = 0; i < r.dimensions / 2; ++i) {
      const bool pairs = r.pairing == scalevec::RopeSpec::Pairing::interleaved;
      const std::int64_t first = pairs ? 2 * i : i, second = pairs ? 2 * i + 1 : i + r.dimensions / 2;
      const auto frequency = static_cast<float>(
          std::pow(r.base, -2.0 * static_cast<double>(i) / static_cast<double>(r.dimensions)));
      const at::Tensor angle =
          (at::arange(x.size(1), at::kFloat) * frequency).to(at::kDouble).view({1, -1, 1});
      const at::Tensor c = angle.cos().to(at::kFloat),
                       s = angle.sin().to(at::kFloat);  // the tables are float32
      const at::Tensor a = x.select(-1, first), b = x.select(-1, second);
      out.select(-1, first).copy_(a * c - b * s);
      out.select(-1, second).copy_(b * c + a * s);
    }
    return out;
  }

  at::Tensor attention(const scalevec::LayerSpec& l, const std::string& at, const at::Tensor& x) const {
    const scalevec::AttentionSpec& a = l.attn;
    const std::int64_t tokens = x.size(1);
    const auto heads = [&](const scalevec::LinearSpec& map, const char* branch) {
      const at::Tensor y =
          linear(map, at + "." + branch, before(l.attn_input, at + ".input_norm", branch, map, x));
      return y.unflatten(-1, {y.size(-1) / a.head_dim, a.head_dim});
    };
    const std::int64_t each = a.heads / a.kv_heads;
    const at::Tensor q = rotate(a.rope, heads(a.q, "q")).transpose(1, 2);
    const at::Tensor k = rotate(a.rope, heads(a.k, "k")).transpose(1, 2).repeat_interleave(each, 1);
    const at::Tensor v = heads(a.v, "v").transpose(1, 2).repeat_interleave(each, 1);
    const at::Tensor i = at::arange(tokens).unsqueeze(1), j = at::arange(tokens).unsqueeze(0);
    at::Tensor seen = j <= i;
    if (a.window > 0) seen = seen.logical_and(j > i - a.window);
    const at::Tensor scores =
        q.matmul(k.transpose(-1, -2)).mul(a.scale).masked_fill(seen.logical_not(), -INFINITY);
    return linear(a.o, at + ".o", scores.softmax(-1).matmul(v).transpose(1, 2).flatten(-2));
  }

  scalevec::ModelSpec spec_;
  Slots slots_;
};

}  // namespace tiny
