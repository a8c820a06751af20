#pragma once

#include <cstddef>
#include <span>
#include <string_view>

namespace scalevec {

/// What a file is by its first bytes (512 are enough): "a GGUF file", "a pickle (refused: loading one runs
/// code)", "a zip archive ...", or empty where nothing is recognised. For messages: no reader decides by it
/// what to read.
std::string_view looks_like(std::span<const std::byte> start);

}  // namespace scalevec
