// What the gradients of all scale vectors cost, in CPU time of one thread: our saliency, and autograd with
// every parameter requiring gradients. SmolLM2-135M's shape, 64 tokens, random weights. Prints JSON.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/randn.h>

#include <scalevec/analysis/saliency.h>

#include "timing.h"

namespace {

using namespace scalevec;

ModelSpec smollm2_shape() {
  ModelSpec spec;
  spec.family = "llama";
  spec.vocabulary = 49'152;
  spec.width = 576;
  spec.context = 2048;
  spec.tied_head = true;
  const auto linear = [](std::int64_t in, std::int64_t out) {
    LinearSpec map;
    map.in = in;
    map.out = out;
    return map;
  };
  spec.head = linear(576, 49'152);
  const NormSpec norm{.eps = 1e-5, .group = 576, .width = 576};
  LayerSpec layer;
  layer.attn_input = layer.mlp_input = norm;
  layer.attn.heads = 9;
  layer.attn.kv_heads = 3;
  layer.attn.head_dim = 64;
  layer.attn.scale = 0.125;
  layer.attn.rope.dimensions = 64;
  layer.attn.q = layer.attn.o = linear(576, 576);
  layer.attn.k = layer.attn.v = linear(576, 192);
  layer.mlp.gate = layer.mlp.up = linear(576, 1536);
  layer.mlp.down = linear(1536, 576);
  spec.layers.assign(30, layer);
  spec.final_norm = norm;
  return spec;
}

// Root of the summed squares of the differences over that of the values.
double distance(const PerChannel& values, const PerChannel& truth) {
  double error = 0.0, size = 0.0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    for (std::size_t j = 0; j < values[i].size(); ++j) {
      error += (values[i][j] - truth[i][j]) * (values[i][j] - truth[i][j]);
      size += truth[i][j] * truth[i][j];
    }
  }
  return std::sqrt(error / size);
}

// The largest difference of one entry, relative to the largest value of its vector.
double farthest(const PerChannel& values, const PerChannel& truth) {
  double worst = 0.0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    double error = 0.0, size = 0.0;
    for (std::size_t j = 0; j < values[i].size(); ++j) {
      error = std::max(error, std::abs(values[i][j] - truth[i][j]));
      size = std::max(size, std::abs(truth[i][j]));
    }
    worst = std::max(worst, error / size);
  }
  return worst;
}

}  // namespace

int main() {
  at::set_num_threads(1);
  const ModelSpec spec = smollm2_shape();
  std::map<std::string, at::Tensor> frozen, trained;
  for (const auto& [name, shape] : spec.tensor_slots()) {
    const bool vector = shape.size() == 1;
    frozen[name] = at::randn(shape).mul(vector ? 0.1 : 0.03).add(vector ? 1.0 : 0.0);
    trained[name] = frozen[name].clone().requires_grad_();
  }
  Transformer ours(spec, frozen, {}), peer(spec, trained, {});
  Documents text(1);
  for (std::int64_t i = 0; i < 65; ++i) text[0].push_back(i * 7919 % spec.vocabulary);
  const Window window = Windows(text, {})[0];

  std::vector<double> saliency_seconds, backward_seconds, forward_seconds;
  Saliency found;
  for (int i = 0; i < 8; ++i) {
    double start = cpu_seconds();
    found = saliency(ours, text);
    saliency_seconds.push_back(cpu_seconds() - start);
    for (auto& [name, tensor] : trained) tensor.mutable_grad() = at::Tensor();
    start = cpu_seconds();
    {
      const at::AutoGradMode gradients(true);
      const at::Tensor chosen =
          peer.logits(window.ids).squeeze(0).log_softmax(1).gather(1, window.targets.unsqueeze(1));
      chosen.mean().neg().backward();
    }
    backward_seconds.push_back(cpu_seconds() - start);
    start = cpu_seconds();
    {
      const at::NoGradGuard no_gradients;
      ours.logits(window.ids);
    }
    forward_seconds.push_back(cpu_seconds() - start);
  }
  PerChannel by_peer;
  for (const ScaleVector& vector : peer.scales()) {
    const at::Tensor gradient = vector.stored().grad().to(at::kDouble).contiguous();
    by_peer.emplace_back(gradient.const_data_ptr<double>(),
                         gradient.const_data_ptr<double>() + gradient.numel());
  }
  Transformer wide(spec, frozen, {.compute = at::kDouble});
  const PerChannel truth = saliency(wide, text).gradient;
  std::printf(R"({"saliency": %.4f, "backward": %.4f, "forward": %.4f, "error": %.3g, "peer_error": %.3g, )"
              R"("difference": %.3g, "farthest": %.3g, "farthest_error": %.3g, "farthest_peer_error": %.3g})"
              "\n",
              median(saliency_seconds), median(backward_seconds), median(forward_seconds),
              distance(found.gradient, truth), distance(by_peer, truth), distance(found.gradient, by_peer),
              farthest(found.gradient, by_peer), farthest(found.gradient, truth), farthest(by_peer, truth));
}
