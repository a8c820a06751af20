#include <scalevec/core/model_spec.h>

#include <cmath>
#include <numbers>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "readers/errors.h"

using namespace scalevec;

namespace {

NormSpec norm(std::int64_t width, std::int64_t group = 0) {
  NormSpec made;
  made.width = width;
  made.group = group == 0 ? width : group;
  return made;
}

LinearSpec linear(std::int64_t in, std::int64_t out) {
  LinearSpec made;
  made.in = in;
  made.out = out;
  return made;
}

// A Llama: width 8, 2 heads of 4, 1 key-value head.
ModelSpec llama(std::size_t layers) {
  LayerSpec layer;
  layer.attn_input = norm(8);
  layer.mlp_input = norm(8);
  layer.attn.heads = 2;
  layer.attn.kv_heads = 1;
  layer.attn.head_dim = 4;
  layer.attn.rope.dimensions = 4;
  layer.attn.q = linear(8, 8);
  layer.attn.k = layer.attn.v = linear(8, 4);
  layer.attn.o = linear(8, 8);
  layer.mlp.gate = layer.mlp.up = linear(8, 16);
  layer.mlp.down = linear(16, 8);
  ModelSpec spec;
  spec.vocabulary = 32;
  spec.width = 8;
  spec.layers.assign(layers, layer);
  spec.final_norm = norm(8);
  spec.head = linear(8, 32);
  return spec;
}

std::string branches(const std::vector<Link>& links) {
  std::string text;
  for (const Link& link : links) text += (text.empty() ? "" : ",") + link.branch;
  return text;
}

// "address role consumers < producers width"
std::vector<std::string> lines(const ModelSpec& spec) {
  std::vector<std::string> made;
  for (const Site& site : spec.sites()) {
    made.push_back(fmt::format("{} {} {}<{} {}", site.address.str(), role_name(site.role),
                               branches(site.consumers), branches(site.producers), site.width));
  }
  return made;
}

using Lines = std::vector<std::string>;

}  // namespace

TEST_CASE("ModelSpec: a Llama has two norms a layer and one before the head") {
  CHECK(lines(llama(2)) == Lines{"layers.0.attn.input_norm input q,k,v< 8",
                                 "layers.0.mlp.input_norm input gate,up< 8",
                                 "layers.1.attn.input_norm input q,k,v< 8",
                                 "layers.1.mlp.input_norm input gate,up< 8", "final_norm final head< 8"});
  const auto slots = llama(1).tensor_slots();
  Lines names;
  for (const auto& [slot, shape] : slots) names.push_back(fmt::format("{} {}", slot, fmt::join(shape, "x")));
  CHECK(names == Lines{"embed.weight 32x8", "final_norm.weight 8", "head.weight 32x8",
                       "layers.0.attn.input_norm.weight 8", "layers.0.attn.k.weight 4x8",
                       "layers.0.attn.o.weight 8x8", "layers.0.attn.q.weight 8x8",
                       "layers.0.attn.v.weight 4x8", "layers.0.mlp.down.weight 8x16",
                       "layers.0.mlp.gate.weight 16x8", "layers.0.mlp.input_norm.weight 8",
                       "layers.0.mlp.up.weight 16x8"});
}

TEST_CASE("ModelSpec: sandwich norms and QK-norm stand where the forward meets them") {
  ModelSpec spec = llama(1);
  LayerSpec& layer = spec.layers[0];
  layer.attn_output = layer.mlp_output = norm(8);
  layer.attn.q.output = layer.attn.k.output = norm(4);
  CHECK(lines(spec) == Lines{"layers.0.attn.input_norm input q,k,v< 8", "layers.0.attn.q_norm output <q 4",
                             "layers.0.attn.k_norm output <k 4", "layers.0.attn.output_norm output <o 8",
                             "layers.0.mlp.input_norm input gate,up< 8",
                             "layers.0.mlp.output_norm output <down 8", "final_norm final head< 8"});
  const auto slots = spec.tensor_slots();
  CHECK(slots.at("layers.0.attn.q_norm.weight") == std::vector<std::int64_t>{4});
  CHECK(slots.at("layers.0.attn.output_norm.weight") == std::vector<std::int64_t>{8});
}

TEST_CASE("ModelSpec: HG gives each branch its own vector of one norm") {
  ModelSpec spec = llama(1);
  LayerSpec& layer = spec.layers[0];
  layer.attn.q.own_vector = layer.attn.k.own_vector = layer.attn.v.own_vector = true;
  layer.mlp.up.own_vector = true;
  CHECK(lines(spec) ==
        Lines{"layers.0.attn.input_norm[q] input q< 8", "layers.0.attn.input_norm[k] input k< 8",
              "layers.0.attn.input_norm[v] input v< 8", "layers.0.mlp.input_norm input gate< 8",
              "layers.0.mlp.input_norm[up] input up< 8", "final_norm final head< 8"});
  CHECK(spec.tensor_slots().count("layers.0.attn.input_norm[q].weight") == 1);
  CHECK(spec.tensor_slots().count("layers.0.attn.input_norm.weight") == 0);
}

TEST_CASE("ModelSpec: DNP, AP and an output norm on the head have the map's address") {
  ModelSpec spec = llama(1);
  AttentionSpec& attn = spec.layers[0].attn;
  attn.q.output = norm(8, 4);  // DNP: per head, but a vector over all
  attn.v.output = norm(4, 4);  // one key-value head: still the map's, only q and k have a QK-norm
  attn.k.output = norm(4);
  attn.k.output->statistics = Statistics::none;  // AP: a bare scale
  spec.layers[0].mlp.gate.output = norm(16);
  spec.layers[0].mlp.gate.output->statistics = Statistics::none;
  spec.head.output = norm(32);
  const Lines expected{"layers.0.attn.input_norm input q,k,v< 8",
                       "layers.0.attn.q.output_norm output <q 8",
                       "layers.0.attn.k.output_scale output <k 4",
                       "layers.0.attn.v.output_norm output <v 4",
                       "layers.0.mlp.input_norm input gate,up< 8",
                       "layers.0.mlp.gate.output_scale output <gate 16",
                       "final_norm final head< 8",
                       "lm_head.output_norm output <head 32"};
  CHECK(lines(spec) == expected);
  for (const Site& site : spec.sites()) CHECK(spec.tensor_slots().count(site.address.str() + ".weight") == 1);
}

TEST_CASE("ModelSpec: a norm without a vector is a site without a slot") {
  ModelSpec spec = llama(1);
  spec.layers[0].attn_input->width = 0;
  spec.layers[0].attn.q.own_vector = true;  // there is nothing to own
  spec.final_norm.reset();
  CHECK(lines(spec) ==
        Lines{"layers.0.attn.input_norm input q,k,v< 0", "layers.0.mlp.input_norm input gate,up< 8"});
  CHECK(spec.tensor_slots().count("layers.0.attn.input_norm.weight") == 0);
}

TEST_CASE("ModelSpec: OR has two components, biases and factors have slots, a tied head has none") {
  ModelSpec spec = llama(1);
  spec.layers[0].mlp_input->parametrisation = Parametrisation::magnitude_direction;
  spec.layers[0].attn_input->bias = true;
  spec.layers[0].attn.q.bias = true;
  spec.layers[0].attn.rope.factors_tensor = "rope_factors";
  spec.tied_head = true;
  const auto slots = spec.tensor_slots();
  CHECK(slots.at("layers.0.mlp.input_norm.alpha") == std::vector<std::int64_t>{8});
  CHECK(slots.at("layers.0.mlp.input_norm.beta") == std::vector<std::int64_t>{1});
  CHECK(slots.count("layers.0.mlp.input_norm.weight") == 0);
  CHECK(slots.at("layers.0.attn.input_norm.bias") == std::vector<std::int64_t>{8});
  CHECK(slots.at("layers.0.attn.q.bias") == std::vector<std::int64_t>{8});
  CHECK(slots.at("rope_factors") == std::vector<std::int64_t>{2});
  CHECK(slots.count("head.weight") == 0);
}

TEST_CASE("RopeSpec: unscaled frequencies span one to nearly the base") {
  RopeSpec rope;
  rope.base = 16.0;
  rope.dimensions = 8;
  // 16^(-2i/8) is 2^-i.
  CHECK(rope.inverse_frequencies() == std::vector<double>{1.0, 0.5, 0.25, 0.125});
  rope.scaling = RopeSpec::Scaling::linear;
  rope.factor = 4.0;
  CHECK(rope.inverse_frequencies() == std::vector<double>{0.25, 0.125, 0.0625, 0.03125});
  CHECK(rope.amplitude() == 1.0);
}

TEST_CASE("RopeSpec: llama3 keeps short waves, divides long ones, and joins the two without a jump") {
  RopeSpec rope;
  rope.base = 500000.0;
  rope.dimensions = 128;
  const std::vector<double> plain = rope.inverse_frequencies();
  rope.scaling = RopeSpec::Scaling::llama3;
  rope.factor = 8.0;
  rope.original_context = 8192;
  const std::vector<double> scaled = rope.inverse_frequencies();
  int kept = 0, divided = 0;
  for (std::size_t i = 0; i < plain.size(); ++i) {
    const double wavelength = 2.0 * std::numbers::pi / plain[i];
    if (wavelength < 8192.0 / 4.0) {
      CHECK(scaled[i] == plain[i]);
      ++kept;
    } else if (wavelength > 8192.0) {
      CHECK(scaled[i] == plain[i] / 8.0);
      ++divided;
    } else {
      CHECK(scaled[i] < plain[i]);
      CHECK(scaled[i] > plain[i] / 8.0);
    }
    if (i > 0) CHECK(scaled[i] < scaled[i - 1]);
  }
  CHECK(kept > 20);
  CHECK(divided > 20);
}

TEST_CASE("RopeSpec: yarn's amplitude follows its factor unless it is given") {
  RopeSpec rope;
  rope.scaling = RopeSpec::Scaling::yarn;
  rope.factor = std::exp(1.0);
  CHECK(std::abs(rope.amplitude() - 1.1) < 1e-15);
  rope.factor = 0.5;
  CHECK(rope.amplitude() == 1.0);
  rope.attention_factor = 0.7;
  CHECK(rope.amplitude() == 0.7);
}
