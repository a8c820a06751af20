#pragma once

#include <string>

#include <scalevec/core/checkpoint/gguf_metadata.h>

namespace scalevec {

/// The keys that begin with "tokenizer.", whole, as JSON text. E_UTF8 with the key for text that JSON cannot
/// hold: a vocabulary of which an entry was replaced would be another vocabulary.
std::string tokenizer_json(const GgufMetadata& metadata);

/// All metadata as JSON text in the order of the keys; an array beyond 64 entries is told by its type and
/// length, and what is not UTF-8 is replaced.
std::string metadata_json(const GgufMetadata& metadata);

}  // namespace scalevec
