#pragma once

#include <map>
#include <string>
#include <vector>

#include <scalevec/core/model_spec.h>

namespace scalevec {

/// Tensors that learn alike. Linear maps are "linear", the others "embedding", "head" and "bias"; a scale
/// vector's group is its role, "input", "output" or "final", and of a vector with components that role with
/// ".alpha" or ".beta".
struct ParameterGroup {
  std::string name;
  std::vector<std::string> slots;  // of ModelSpec::tensor_slots()
  bool is_vector = false;
};

/// Every slot of the spec in exactly one group; groups in the order above, empty ones left out.
std::vector<ParameterGroup> parameter_groups(const ModelSpec& spec);

/// Which scale vectors decay.
enum class VectorDecay {
  input_norms,  // IWD (arXiv 2605.26895, section 3): input, latent and final vectors do, output vectors do
                // not
  all,
  none,
};
/// "iwd", "all", "none"; E_VALUE.
VectorDecay parse_vector_decay(std::string_view text);
std::string_view vector_decay_name(VectorDecay decay);

/// Weight decay of each group: `weight_decay` for linear maps, embedding and head, 0 for biases; for vectors
/// as `vectors` says. Of a vector with components beta decays and alpha does not: its length has no effect
/// but on the learning rate of its direction. `named` has the last word: a group's name, or a role for all
/// its components. E_VALUE for a name that is no group of this model, with those that are; for a value that
/// is negative or not finite.
std::map<std::string, double> group_decay(const std::vector<ParameterGroup>& groups, double weight_decay,
                                          VectorDecay vectors, const std::map<std::string, double>& named);
/// Factors of the learning rate by the same rules: 1 unless named; 0 freezes.
std::map<std::string, double> group_rates(const std::vector<ParameterGroup>& groups,
                                          const std::map<std::string, double>& named);

}  // namespace scalevec
