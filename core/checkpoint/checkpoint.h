#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <scalevec/core/checkpoint/tensor_file.h>
#include <scalevec/core/model_spec.h>
#include <scalevec/core/site.h>

namespace scalevec {

enum class Container { gguf, safetensors };

/// A model on disk: headers read and checked, of the data nothing until asked. Knows the family, the spec and
/// every scale vector with both its names. Never runs code, never unpickles, never maps.
class Checkpoint {
 public:
  struct Options {
    bool allow_links = false;  // shards may be links that leave the folder (a hub cache)
  };
  /// A GGUF file, a .safetensors file (config.json beside it), or a Hugging Face folder.
  static Checkpoint open(const std::filesystem::path& path, Options options);
  static Checkpoint open(const std::filesystem::path& path) { return open(path, Options{}); }
  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;
  ~Checkpoint();

  const std::filesystem::path& path() const;  // as given
  Container container() const;
  const std::string& family() const { return spec().family; }
  const ModelSpec& spec() const;
  /// Vectors that the file holds, forward order, with native names.
  const std::vector<Site>& sites() const;
  /// Every file that holds tensors, in shard order.
  const std::vector<std::filesystem::path>& files() const;
  const std::vector<TensorInfo>& tensors() const;
  const TensorInfo& tensor(std::string_view native) const;  // E_ADDR names the nearest
  /// The native tensor that fills a canonical slot of spec().tensor_slots().
  const TensorInfo& slot(std::string_view canonical) const;
  bool has_slot(std::string_view canonical) const;

  std::vector<std::byte> read(const TensorInfo& tensor) const;
  void read(const TensorInfo& tensor, std::uint64_t first_byte, std::span<std::byte> out) const;
  /// Effective float64 values of a site's vector.
  std::vector<double> effective(const Site& site) const;
  /// The site's digest, see vector_digest.
  std::string digest(const Site& site) const;

  /// config.json, or the GGUF metadata without its long arrays, as JSON text.
  std::string config_json() const;
  /// GGUF metadata for the tokenizer (keys beginning with "tokenizer.") as JSON text; "null" for other
  /// containers.
  std::string tokenizer_json() const;
  /// Things a reader should know (ignored auto_map, ...).
  const std::vector<std::string>& warnings() const;

 private:
  struct State;
  explicit Checkpoint(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// "sha256:" + 64 lower-case hex digits over dtype name, shape, offset and stored bytes: the identity of a
/// vector in one container. Text hashed: "scalevec vector 1\n<dtype>\n<width>\n<offset as %.17g>\n", then the
/// bytes.
std::string vector_digest(DType dtype, std::int64_t width, double offset, std::span<const std::byte> stored);

}  // namespace scalevec
