// A model of ours on disk: config.json holds its ModelSpec as data, the safetensors file its tensors by
// canonical slot.
#pragma once

#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

#include <scalevec/core/model_spec.h>

namespace scalevec {

/// The `model_type` of config.json and the family of the spec.
inline constexpr std::string_view own_family = "scalevec";

bool is_own_model(const nlohmann::json& config);

/// config.json, for a person to read: every field of the spec under its own name, equal layers that follow
/// each other once. E_CONFIG for a spec of another family, and for what spec_from_json would refuse.
std::string own_config_text(const ModelSpec& spec);

/// The inverse; E_JSON for text that is none. `file` is named in errors.
ModelSpec spec_from_text(std::string_view text, const std::string& file);

/// The same from what has been parsed. E_CONFIG, with key, expected, found and `file`, for a field that is
/// missing, unknown, of another type or out of range; whether the fields fit each other, the tensors and the
/// transformer tell.
ModelSpec spec_from_json(const nlohmann::json& config, const std::string& file);

}  // namespace scalevec
