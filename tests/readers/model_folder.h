#pragma once

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <scalevec/core/checkpoint/checkpoint.h>

#include "readers/gguf_builder.h"

namespace scalevec::testing {

/// A folder of its own for one test, gone with it.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "scalevec-XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

inline void write_file(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

/// A tensor of zeros, or of the bytes given.
struct Tensor {
  std::vector<std::uint64_t> shape;
  std::string dtype = "F32";
  std::string bytes = {};
};
using Tensors = std::map<std::string, Tensor>;

inline std::uint64_t byte_count(const Tensor& tensor) {
  std::uint64_t count = tensor.dtype == "F32" || tensor.dtype == "I32" ? 4 : 2;
  for (const std::uint64_t n : tensor.shape) count *= n;
  return count;
}

inline std::string safetensors(const Tensors& tensors) {
  nlohmann::json header = nlohmann::json::object();
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    const std::size_t begin = data.size();
    data += tensor.bytes.empty() ? std::string(byte_count(tensor), '\0') : tensor.bytes;
    header[name] = {{"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {begin, data.size()}}};
  }
  const std::string text = header.dump();
  return Bytes().string(text).raw(data).text();
}

/// A Llama of two layers: width 8, 2 heads, 1 key-value head, MLP 12, 20 tokens.
struct SmallFolder {
  nlohmann::json config = {
      {"model_type", "llama"},         {"hidden_size", 8},           {"intermediate_size", 12},
      {"num_hidden_layers", 2},        {"num_attention_heads", 2},   {"num_key_value_heads", 1},
      {"max_position_embeddings", 64}, {"vocab_size", 20},           {"rms_norm_eps", 1e-5},
      {"rope_theta", 10000.0},         {"tie_word_embeddings", true}};
  Tensors tensors = {{"model.embed_tokens.weight", {{20, 8}}}, {"model.norm.weight", {{8}}}};

  SmallFolder() {
    for (int i = 0; i < 2; ++i) {
      const std::string layer = fmt::format("model.layers.{}.", i);
      tensors[layer + "input_layernorm.weight"] = {{8}};
      tensors[layer + "post_attention_layernorm.weight"] = {{8}};
      tensors[layer + "self_attn.q_proj.weight"] = {{8, 8}};
      tensors[layer + "self_attn.k_proj.weight"] = {{4, 8}};
      tensors[layer + "self_attn.v_proj.weight"] = {{4, 8}};
      tensors[layer + "self_attn.o_proj.weight"] = {{8, 8}};
      tensors[layer + "mlp.gate_proj.weight"] = {{12, 8}};
      tensors[layer + "mlp.up_proj.weight"] = {{12, 8}};
      tensors[layer + "mlp.down_proj.weight"] = {{8, 12}};
    }
  }
  void write(const std::filesystem::path& folder) const {
    write_file(folder / "config.json", config.dump());
    write_file(folder / "model.safetensors", safetensors(tensors));
  }
};

/// The same model as GGUF, of a width that the test may choose.
struct SmallGguf {
  std::map<std::string, double> numbers;
  std::map<std::string, std::string> texts = {{"general.architecture", "llama"}};
  double eps = 1e-5;
  Tensors tensors;

  explicit SmallGguf(std::uint64_t width = 8, int blocks = 2) {
    numbers = {{"llama.block_count", blocks},
               {"llama.context_length", 64},
               {"llama.embedding_length", static_cast<double>(width)},
               {"llama.feed_forward_length", 12},
               {"llama.attention.head_count", 2},
               {"llama.attention.head_count_kv", 1},
               {"llama.rope.freq_base", 10000.0}};
    tensors["token_embd.weight"] = {{20, width}};
    tensors["output_norm.weight"] = {{width}};
    for (int i = 0; i < blocks; ++i) {
      const std::string block = fmt::format("blk.{}.", i);
      tensors[block + "attn_norm.weight"] = {{width}};
      tensors[block + "ffn_norm.weight"] = {{width}};
      tensors[block + "attn_q.weight"] = {{width, width}};
      tensors[block + "attn_k.weight"] = {{width / 2, width}};
      tensors[block + "attn_v.weight"] = {{width / 2, width}};
      tensors[block + "attn_output.weight"] = {{width, width}};
      tensors[block + "ffn_gate.weight"] = {{12, width}};
      tensors[block + "ffn_up.weight"] = {{12, width}};
      tensors[block + "ffn_down.weight"] = {{width, 12}};
    }
  }
  /// Puts another architecture's name in the place of "llama" everywhere.
  void rename(const std::string& architecture) {
    std::map<std::string, double> renamed;
    for (const auto& [key, value] : numbers) renamed[architecture + key.substr(key.find('.'))] = value;
    numbers = renamed;
    texts["general.architecture"] = architecture;
  }
  std::string build() const {
    GgufBuilder file;
    for (const auto& [key, value] : texts) file.text(key, value);
    for (const auto& [key, value] : numbers) {
      if (value == static_cast<double>(static_cast<std::int64_t>(value))) {
        file.value(key, kv_i64, static_cast<std::int64_t>(value));
      } else {
        file.value(key, kv_f64, value);
      }
    }
    if (texts.count("general.architecture") == 1) {
      file.value(texts.at("general.architecture") + ".attention.layer_norm_rms_epsilon", kv_f64, eps);
    }
    for (const auto& [name, tensor] : tensors) {
      std::vector<std::uint64_t> dims(tensor.shape.rbegin(), tensor.shape.rend());
      const bool q4 = tensor.dtype == "Q4_0", i8 = tensor.dtype == "I8";
      std::uint64_t elements = 1;
      for (const std::uint64_t n : dims) elements *= n;
      const std::uint64_t bytes = q4 ? elements / 32 * 18 : i8 ? elements : elements * 4;
      file.tensor(name, dims,
                  q4   ? type_q4_0
                  : i8 ? type_i8
                       : type_f32,
                  tensor.bytes.empty() ? std::string(bytes, '\0') : tensor.bytes);
    }
    return file.build();
  }
};

/// The small GGUF model after `change`, opened.
template <class Change>
Checkpoint opened_gguf(Change&& change) {
  const TemporaryFolder folder;
  SmallGguf model;
  change(model);
  write_file(folder.path() / "model.gguf", model.build());
  return Checkpoint::open(folder.path() / "model.gguf");
}

}  // namespace scalevec::testing
