#pragma once

#include <string_view>

#include <scalevec/core/checkpoint/safetensors.h>

namespace scalevec {

/// The JSON of a safetensors header, which begins with '{' at byte 8 of the file: every tensor in the order
/// of the text, its own fields checked, its `begin` counted from the start of the file. How the tensors lie
/// to one another and to the end of the file is not asked here.
SafetensorsHeader read_safetensors_json(std::string_view text, std::string_view file);

}  // namespace scalevec
