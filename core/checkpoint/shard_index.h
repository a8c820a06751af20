#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace scalevec {

/// What model.safetensors.index.json says, before anything is compared with the shards.
struct ShardIndex {
  struct Entry {
    std::string tensor;
    std::size_t shard;  // position in `shards`
  };
  std::vector<std::string> shards;  // plain file names, sorted, each once
  std::vector<Entry> entries;       // sorted by tensor
  std::optional<std::uint64_t> total_size;

  /// Null if the index does not list the tensor.
  const Entry* find(std::string_view tensor) const;
};

/// Reads the text of an index. E_JSON, E_UTF8, E_LIMIT, E_DUP for the text; E_INDEX for fields that are
/// missing or of the wrong type; E_PATH for a shard that is not a plain file name (no folder, no drive, no
/// control byte). file: the index's path, for messages.
ShardIndex parse_shard_index(std::string_view text, std::string_view file);

}  // namespace scalevec
