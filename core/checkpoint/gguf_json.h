#pragma once

#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

#include <scalevec/core/checkpoint/gguf_metadata.h>

namespace scalevec {

/// The keys that begin with `prefix`, as an object of values. Strings are as they stand in the file, valid
/// UTF-8 or not: a vocabulary has single bytes. Dump it with an error handler.
nlohmann::json metadata_values(const GgufMetadata& metadata, std::string_view prefix);

/// All metadata as JSON text in the order of the keys; an array beyond 64 entries is told by its type and
/// length, and what is not UTF-8 is replaced.
std::string metadata_json(const GgufMetadata& metadata);

}  // namespace scalevec
