#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include <scalevec/core/model/block.h>
#include <scalevec/core/model/linear_map.h>
#include <scalevec/core/model/norm_layer.h>
#include <scalevec/core/model/transformer.h>

namespace scalevec {

/// The layers of a transformer, made from a spec and tensors by slot.
struct Layers {
  at::Tensor embedding;  // (vocabulary, width)
  std::vector<Block> blocks;
  std::optional<NormLayer> final_norm;
  LinearMap head;
};

/// E_DTYPE, E_DEVICE where a transformer cannot compute so, or there.
void check_options(const Transformer::Options& options);

/// Refuses what the layers cannot run or what contradicts itself: E_CONFIG, naming the address and the way
/// out.
void check_spec(const ModelSpec& spec);

/// Exactly the slots of the spec, in its shapes: E_CONFIG, E_SHAPE, E_DTYPE.
void check_slots(const ModelSpec& spec, const std::map<std::string, at::Tensor>& slots);

/// slots: checked, on `device`, linear weights in the compute dtype. sites: spec.sites().
Layers build_layers(const ModelSpec& spec, const std::vector<Site>& sites,
                    const std::map<std::string, at::Tensor>& slots, at::Device device);

}  // namespace scalevec
