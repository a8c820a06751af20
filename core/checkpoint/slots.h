#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <scalevec/core/checkpoint/family.h>

namespace scalevec {

/// Canonical slot to the file's tensor.
using SlotMap = std::map<std::string, const TensorInfo*>;

/// The slot of a linear map beside a site: "layers.3.attn.q.weight"; of a tied head "embed.weight".
std::string weight_slot(const ModelSpec& spec, const Site& site, const Link& link);

/// Which fields of the configuration to name when the tensors disagree with it.
struct SlotCheck {
  std::string file;        // config.json, or the GGUF file
  std::string layers_key;  // "num_hidden_layers"
  std::string width_key;   // "hidden_size"
};

/// What stands before the names of an HF file: a causal model, its inner model alone, or a part of a larger
/// one.
Naming naming_of(const std::vector<TensorInfo>& tensors);

/// E_CONFIG unless the tensors are of `layers` layers: fewer, or more.
void check_layer_count(const Naming& naming, const std::vector<TensorInfo>& tensors, std::int64_t layers,
                       const SlotCheck& check);

/// The native name that fills a canonical slot; empty if there is none.
using NativeName = std::function<std::string(std::string_view slot)>;

/// Fills every slot of the spec. E_CONFIG for a tensor that is missing, has another shape than the
/// configuration says, or is a weight that no slot claims; E_SHAPE and E_DTYPE for a vector that is none.
/// Others that nothing claims are added to `warnings`.
SlotMap map_slots(const NativeName& native, const ModelSpec& spec, const std::vector<TensorInfo>& tensors,
                  const FindTensor& find, const SlotCheck& check, std::vector<std::string>& warnings);

}  // namespace scalevec
