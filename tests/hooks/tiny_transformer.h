#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>

#include <ATen/core/Tensor.h>
#include <support/tensors.h>

#include <scalevec/core/model/transformer.h>

/// Two layers with every place where a norm can stand: layer 0 with q/k-norm, sandwich norms of offset 1, a
/// branch vector of its own for q and a short window; layer 1 with an input norm without a vector.
inline scalevec::ModelSpec tiny_spec() {
  using scalevec::NormSpec;
  const auto linear = [](std::int64_t in, std::int64_t out) {
    scalevec::LinearSpec map;
    map.in = in;
    map.out = out;
    return map;
  };
  const NormSpec plain{.eps = 1e-6, .group = 12, .width = 12};
  NormSpec sandwich = plain;
  sandwich.parametrisation = scalevec::Parametrisation::offset;
  sandwich.offset = 1.0;
  const NormSpec per_head{.eps = 1e-6, .group = 6, .width = 6};
  NormSpec bare = plain;
  bare.width = 0;

  scalevec::ModelSpec spec;
  spec.family = "llama";
  spec.vocabulary = 23;
  spec.width = 12;
  spec.context = 64;
  for (int i = 0; i < 2; ++i) {
    scalevec::LayerSpec layer;
    layer.attn_input = plain;
    layer.mlp_input = i == 0 ? plain : bare;
    auto& attn = layer.attn;
    attn.heads = 4;
    attn.kv_heads = 2;
    attn.head_dim = 6;
    attn.scale = 0.4;
    attn.rope.dimensions = 6;
    attn.q = linear(12, 24);
    attn.k = attn.v = linear(12, 12);
    attn.o = linear(24, 12);
    layer.mlp.gate = layer.mlp.up = linear(12, 20);
    layer.mlp.down = linear(20, 12);
    if (i == 0) {
      layer.attn_output = layer.mlp_output = sandwich;
      attn.q.own_vector = true;
      attn.q.output = attn.k.output = per_head;
      attn.window = 3;
    }
    spec.layers.push_back(layer);
  }
  spec.final_norm = plain;
  spec.tied_head = true;
  spec.head = linear(12, 23);
  return spec;
}

/// The spec above with random tensors; vectors in `vectors`, and the other values the same for every dtype.
inline std::unique_ptr<scalevec::Transformer> tiny_transformer(at::ScalarType compute,
                                                               at::ScalarType vectors) {
  const scalevec::ModelSpec spec = tiny_spec();
  std::map<std::string, at::Tensor> slots;
  unsigned seed = 100;
  for (const auto& [name, shape] : spec.tensor_slots()) {
    const bool sandwich = name.find("layers.0") == 0 && name.find("output_norm") != std::string::npos;
    slots[name] = shape.size() == 1 ? normal(shape, ++seed, vectors, sandwich ? 0.0 : 1.0, 0.3)
                                    : normal(shape, ++seed, at::kDouble, 0.0, 0.4);
  }
  return std::make_unique<scalevec::Transformer>(spec, slots,
                                                 scalevec::Transformer::Options{.compute = compute});
}

inline at::Tensor some_ids(std::int64_t count, unsigned seed) {
  return normal({count}, seed).mul(100).abs().floor().remainder(23).to(at::kLong);
}
