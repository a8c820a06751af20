#include <scalevec/core/model/layers.h>

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <string_view>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <scalevec/core/error.h>
#include <scalevec/core/kernels/rms_norm.h>

namespace scalevec {
namespace {

[[noreturn]] void refuse(const std::string& address, const std::string& message) {
  fail(ErrorCode::config, fmt::format("building a transformer: '{}' {}", address, message),
       {.tensor = address});
}

void check_group(const std::string& address, const NormSpec& norm, std::int64_t row) {
  if (norm.group < 1 || row % norm.group != 0 || (norm.width != 0 && norm.width % norm.group != 0) ||
      (norm.width != 0 && row % norm.width != 0)) {
    refuse(address,
           fmt::format("has groups of {} and a vector of {} on rows of {}; each must divide the next",
                       norm.group, norm.width, row));
  }
  if (!(norm.eps >= 0.0)) refuse(address, fmt::format("has epsilon {}; expected 0 or more", norm.eps));
}

void check_linear(const std::string& slot, const LinearSpec& map, std::int64_t in, std::int64_t out) {
  if (map.in != in || map.out != out) {
    refuse(slot, fmt::format("maps {} to {}; the layer around it maps {} to {}", map.in, map.out, in, out));
  }
  if (map.output) check_group(slot + " (output)", *map.output, out);
}

void check_mixture(const std::string& at, const MlpSpec& mlp, std::int64_t width) {
  const MixtureSpec& mixture = *mlp.mixture;
  if (mixture.active < 1 || mixture.active > mixture.experts) {
    refuse(at, fmt::format("sends a token to {} of {} experts; expected at least 1 and no more than all",
                           mixture.active, mixture.experts));
  }
  const std::int64_t inner = mixture.gate.out;
  if (inner < 1) refuse(at + ".experts.gate", fmt::format("has {} outputs; expected at least 1", inner));
  check_linear(at + ".router", mixture.router, width, mixture.experts);
  check_linear(at + ".experts.gate", mixture.gate, width, inner);
  check_linear(at + ".experts.up", mixture.up, width, inner);
  check_linear(at + ".experts.down", mixture.down, inner, width);
  for (const auto& [name, map] :
       std::initializer_list<std::pair<const char*, const LinearSpec*>>{{".router", &mixture.router},
                                                                        {".experts.gate", &mixture.gate},
                                                                        {".experts.up", &mixture.up},
                                                                        {".experts.down", &mixture.down}}) {
    if (map->bias || map->output)
      refuse(at + name, "has a bias or a norm on its output; routers and routed experts have neither");
  }
  if (!mlp.dense_part() && (mlp.up.out > 0 || mlp.down.out > 0))
    refuse(at + ".gate",
           "maps to nothing, but up or down do not; a mixture has a whole shared expert or none");
  if (mlp.dense_part() &&
      (mlp.gate.own_vector != mixture.gate.own_vector || mlp.up.own_vector != mixture.up.own_vector)) {
    refuse(at,
           "has a vector of its own in a shared expert's branch or in the routed ones', not in both; they "
           "read one vector");
  }
}

void check_layer(const ModelSpec& spec, std::size_t index) {
  const LayerSpec& layer = spec.layers[index];
  const AttentionSpec& attn = layer.attn;
  const std::string at = fmt::format("layers.{}.", index);
  if (attn.heads < 1 || attn.kv_heads < 1 || attn.head_dim < 1 || attn.heads % attn.kv_heads != 0) {
    refuse(at + "attn",
           fmt::format("has {} heads of {} and {} key-value heads; the latter must divide the former",
                       attn.heads, attn.head_dim, attn.kv_heads));
  }
  if (attn.rope.dimensions < 0 || attn.rope.dimensions > attn.head_dim || attn.rope.dimensions % 2 != 0) {
    refuse(at + "attn",
           fmt::format("rotates {} of {} entries of a head; expected an even number, no more than all",
                       attn.rope.dimensions, attn.head_dim));
  }
  if (attn.window < 0)
    refuse(at + "attn", fmt::format("has a window of {}; expected 0 or more", attn.window));
  if (!(attn.scale > 0.0))
    refuse(at + "attn", fmt::format("scales q . k by {}; expected more than 0", attn.scale));
  check_linear(at + "attn.q", attn.q, spec.width, attn.heads * attn.head_dim);
  check_linear(at + "attn.k", attn.k, spec.width, attn.kv_heads * attn.head_dim);
  check_linear(at + "attn.v", attn.v, spec.width, attn.kv_heads * attn.head_dim);
  check_linear(at + "attn.o", attn.o, attn.heads * attn.head_dim, spec.width);
  if (layer.mlp.dense_part()) {
    const std::int64_t inner = layer.mlp.gate.out;
    check_linear(at + "mlp.gate", layer.mlp.gate, spec.width, inner);
    check_linear(at + "mlp.up", layer.mlp.up, spec.width, inner);
    check_linear(at + "mlp.down", layer.mlp.down, inner, spec.width);
  }
  if (layer.mlp.mixture) check_mixture(at + "mlp", layer.mlp, spec.width);
  const std::pair<const char*, const std::optional<NormSpec>*> norms[] = {
      {"attn.input_norm", &layer.attn_input},
      {"attn.output_norm", &layer.attn_output},
      {"mlp.input_norm", &layer.mlp_input},
      {"mlp.output_norm", &layer.mlp_output}};
  for (const auto& [name, norm] : norms) {
    if (!*norm) continue;
    check_group(at + name, **norm, spec.width);
    if ((*norm)->width != 0 && (*norm)->width != spec.width) {
      refuse(at + name, fmt::format("has a vector of {}; expected {}", (*norm)->width, spec.width));
    }
  }
  static const LinearSpec absent;
  const auto& mixture = layer.mlp.mixture;
  for (const auto& [name, map, norm] :
       std::initializer_list<std::tuple<const char*, const LinearSpec*, const std::optional<NormSpec>*>>{
           {"attn.q", &attn.q, &layer.attn_input},
           {"attn.k", &attn.k, &layer.attn_input},
           {"attn.v", &attn.v, &layer.attn_input},
           {"mlp.gate", &layer.mlp.gate, &layer.mlp_input},
           {"mlp.up", &layer.mlp.up, &layer.mlp_input},
           {"mlp.router", mixture ? &mixture->router : &absent, &layer.mlp_input},
           {"mlp.experts.gate", mixture ? &mixture->gate : &absent, &layer.mlp_input},
           {"mlp.experts.up", mixture ? &mixture->up : &absent, &layer.mlp_input},
           {"mlp.experts.down", mixture ? &mixture->down : &absent, nullptr},
           {"attn.o", &attn.o, nullptr},
           {"mlp.down", &layer.mlp.down, nullptr}}) {
    if (map->own_vector && (!norm || !*norm))
      refuse(at + name, "has its own vector of a norm that is not there");
  }
}

class Assembler {
 public:
  Assembler(const ModelSpec& spec, const std::vector<Site>& sites,
            const std::map<std::string, at::Tensor>& slots, at::Device device)
      : spec_(spec), slots_(slots), device_(device) {
    for (std::size_t i = 0; i < sites.size(); ++i) index_[sites[i].address.str()] = i;
  }

  Block block(std::size_t index) {
    const LayerSpec& layer = spec_.layers[index];
    const std::string attn = fmt::format("layers.{}.attn", index), mlp = fmt::format("layers.{}.mlp", index);
    Block block;
    block.attn = layer.attn;
    block.activation = layer.mlp.activation;
    block.attn_input = input(attn + ".input_norm", layer.attn_input,
                             {{"q", &layer.attn.q}, {"k", &layer.attn.k}, {"v", &layer.attn.v}});
    const auto& experts = layer.mlp.mixture;
    block.mlp_input = input(mlp + ".input_norm", layer.mlp_input,
                            {{"gate", experts ? &experts->gate : &layer.mlp.gate},
                             {"up", experts ? &experts->up : &layer.mlp.up},
                             {"router", experts ? &experts->router : nullptr}});
    block.q = linear(attn + ".q", layer.attn.q, attn + ".q_norm");
    block.k = linear(attn + ".k", layer.attn.k, attn + ".k_norm");
    block.v = linear(attn + ".v", layer.attn.v);
    block.o = linear(attn + ".o", layer.attn.o);
    if (layer.mlp.dense_part()) {
      block.gate = linear(mlp + ".gate", layer.mlp.gate);
      block.up = linear(mlp + ".up", layer.mlp.up);
      block.down = linear(mlp + ".down", layer.mlp.down);
    }
    if (experts) {
      block.mixture = Mixture{*experts,
                              layer.mlp.activation,
                              slot(mlp + ".router.weight"),
                              slot(mlp + ".experts.gate.weight"),
                              slot(mlp + ".experts.up.weight"),
                              slot(mlp + ".experts.down.weight")};
    }
    block.attn_output = norm(attn + ".output_norm", layer.attn_output);
    block.mlp_output = norm(mlp + ".output_norm", layer.mlp_output);
    block.rope = ropes_.get(layer.attn.rope, slot(layer.attn.rope.factors_tensor), device_);
    return block;
  }

  LinearMap head() {
    LinearMap map{slot(spec_.tied_head ? "embed.weight" : "head.weight"), slot("head.bias"), {}};
    map.output = output("lm_head", spec_.head, "");
    return map;
  }

  std::optional<NormLayer> norm(const std::string& address, const std::optional<NormSpec>& norm_spec) {
    if (!norm_spec) return std::nullopt;
    const bool one = in_one_tensor(norm_spec->parametrisation);
    return NormLayer(index_.at(address), *norm_spec, slot(address + (one ? ".weight" : ".alpha")),
                     slot(address + ".bias"), slot(address + ".beta"));
  }

 private:
  at::Tensor slot(const std::string& name) const {
    const auto found = slots_.find(name);
    return found == slots_.end() ? at::Tensor() : found->second;
  }

  InputNorm input(const std::string& address, const std::optional<NormSpec>& norm_spec,
                  std::initializer_list<std::pair<const char*, const LinearSpec*>> branches) {
    InputNorm made;
    if (norm_spec && index_.contains(address)) made.shared = norm(address, norm_spec);
    for (const auto& [branch, map] : branches) {
      const bool own = norm_spec && norm_spec->width > 0 && map && map->own_vector;
      made.branches.push_back(own ? norm(fmt::format("{}[{}]", address, branch), norm_spec) : std::nullopt);
    }
    return made;
  }

  // The spec names the site of a map's output by what stands there: q/k-norm, another norm, a bare scale.
  std::optional<NormLayer> output(const std::string& map, const LinearSpec& linear_spec,
                                  const std::string& qk_norm) {
    if (!linear_spec.output) return std::nullopt;
    for (const std::string& address : {qk_norm, map + ".output_norm", map + ".output_scale"}) {
      if (index_.contains(address)) return norm(address, linear_spec.output);
    }
    refuse(map, "has a norm on its output, but the spec lists no site for it");
  }

  LinearMap linear(const std::string& map, const LinearSpec& linear_spec, const std::string& qk_norm = {}) {
    return {slot(map + ".weight"), slot(map + ".bias"), output(map, linear_spec, qk_norm)};
  }

  const ModelSpec& spec_;
  const std::map<std::string, at::Tensor>& slots_;
  at::Device device_;
  std::map<std::string, std::size_t> index_;
  RopeTables ropes_;
};

std::string shape_text(at::IntArrayRef shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

}  // namespace

void check_options(const Transformer::Options& options) {
  const at::ScalarType dtype = options.compute;
  if (dtype != at::kFloat && dtype != at::kBFloat16 && dtype != at::kDouble) {
    fail(ErrorCode::dtype, fmt::format("a transformer computes in float32, bfloat16 or float64, not in {}",
                                       c10::toString(dtype)));
  }
  if (options.device.is_cpu()) return;
  if (!options.device.is_cuda()) {
    fail(ErrorCode::device,
         fmt::format("a transformer runs on cpu or cuda, not on '{}'", options.device.str()));
  }
  const int devices = kernels::require_cuda_device();
  if (options.device.index() >= devices) {
    fail(ErrorCode::device, fmt::format("no device '{}': there are {}", options.device.str(), devices));
  }
}

void check_spec(const ModelSpec& spec) {
  if (spec.vocabulary < 1 || spec.width < 1) {
    refuse("embed", fmt::format("has {} rows of {} entries", spec.vocabulary, spec.width));
  }
  for (std::size_t i = 0; i < spec.layers.size(); ++i) check_layer(spec, i);
  if (spec.final_norm) {
    check_group("final_norm", *spec.final_norm, spec.width);
    if (spec.final_norm->width != 0 && spec.final_norm->width != spec.width) {
      refuse("final_norm",
             fmt::format("has a vector of {}; expected {}", spec.final_norm->width, spec.width));
    }
  }
  check_linear("head", spec.head, spec.width, spec.vocabulary);
  if (spec.head.own_vector)
    refuse("head", "is the one reader of the final norm, whose vector is its own already");
}

void check_slots(const ModelSpec& spec, const std::map<std::string, at::Tensor>& slots) {
  const auto expected = spec.tensor_slots();
  for (const auto& [name, shape] : expected) {
    const auto found = slots.find(name);
    if (found == slots.end() || !found->second.defined()) {
      fail(ErrorCode::config, fmt::format("building a transformer: no tensor for '{}'", name),
           {.tensor = name, .expected = shape_text(shape)});
    }
    if (found->second.sizes() != at::IntArrayRef(shape)) {
      fail(ErrorCode::shape,
           fmt::format("building a transformer: '{}' has shape {}", name, shape_text(found->second.sizes())),
           {.tensor = name, .expected = shape_text(shape), .found = shape_text(found->second.sizes())});
    }
    if (!found->second.is_floating_point()) {
      fail(
          ErrorCode::dtype,
          fmt::format("building a transformer: '{}' is {}", name, c10::toString(found->second.scalar_type())),
          {.tensor = name, .expected = "a floating dtype"});
    }
  }
  for (const auto& [name, tensor] : slots) {
    if (expected.contains(name)) continue;
    fail(ErrorCode::config,
         fmt::format("building a transformer: the spec has no slot '{}' for that tensor", name),
         {.tensor = name});
  }
}

Layers build_layers(const ModelSpec& spec, const std::vector<Site>& sites,
                    const std::map<std::string, at::Tensor>& slots, at::Device device) {
  Assembler assembler(spec, sites, slots, device);
  Layers layers;
  layers.embedding = slots.at("embed.weight");
  layers.blocks.reserve(spec.layers.size());
  for (std::size_t i = 0; i < spec.layers.size(); ++i) layers.blocks.push_back(assembler.block(i));
  layers.final_norm = assembler.norm("final_norm", spec.final_norm);
  layers.head = assembler.head();
  return layers;
}

}  // namespace scalevec
