#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include <scalevec/core/checkpoint/name_index.h>
#include <scalevec/core/checkpoint/safetensors.h>
#include <scalevec/core/checkpoint/tensor_file.h>

namespace scalevec {

/// A model as Hugging Face stores it: a folder with model.safetensors, or with model.safetensors.index.json
/// and the shards that it names; or one .safetensors file, with the config.json beside it.
///
/// Opening reads headers only. It refuses an index that contradicts the shards in any way (E_INDEX), and
/// never opens a file outside the folder (E_PATH) unless links are allowed.
class HfFolder {
 public:
  struct Options {
    bool allow_links = false;  // links may leave the folder, as those of a hub cache do
  };
  explicit HfFolder(const std::filesystem::path& path) : HfFolder(path, Options{}) {}
  HfFolder(const std::filesystem::path& path, Options options);

  /// As given.
  const std::filesystem::path& path() const { return path_; }
  /// Where the files lie.
  const std::filesystem::path& folder() const { return folder_; }
  /// By name; TensorInfo::file counts them.
  const std::vector<SourceFile>& files() const { return files_; }
  /// By file, then in the order of the data.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  /// By the exact bytes of the name; null if there is none.
  const TensorInfo* find(std::string_view name) const { return names_.find(tensors_, name); }

  /// Fills `out`, of exactly `tensor.bytes`, with the stored bytes.
  void read(const TensorInfo& tensor, std::span<std::byte> out) const;
  /// Fills `out` from byte `first_byte` of the tensor; E_SIZE if the tensor ends before.
  void read(const TensorInfo& tensor, std::uint64_t first_byte, std::span<std::byte> out) const;

  /// The bytes of config.json: E_CONFIG if there is none or it is empty, E_LIMIT beyond 4 MiB.
  std::string config_text() const;
  /// Its value, an object: E_CONFIG if it is something else, and what parse_json throws.
  nlohmann::json config() const;

 private:
  void open_shards();
  void add(SourceFile file, SafetensorsHeader header);

  std::filesystem::path path_, folder_;
  Options options_;
  std::vector<SourceFile> files_;
  std::vector<TensorInfo> tensors_;
  NameIndex names_;
};

/// The bytes of one more file of a model's folder, a plain name, opened as its shards are; nothing if there
/// is none. E_LIMIT beyond `most` bytes.
std::optional<std::string> read_beside(const std::filesystem::path& folder, std::string_view name,
                                       std::uint64_t most, bool allow_links);

/// What a reader of config.json should be told: fields that ask for code of the repository to be run. They
/// are ignored; nothing is ever imported.
std::vector<std::string> config_warnings(const nlohmann::json& config);

}  // namespace scalevec
