#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "support/files.h"

namespace scalevec::testing {

/// One tensor as a container holds it; the writers below know nothing of the library.
struct TinyTensor {
  std::string name;
  std::string dtype;                 // "F32", "BF16", "F16", "F64"
  std::vector<std::uint64_t> shape;  // outermost first
  std::string bytes;
};

inline std::size_t dtype_size(std::string_view dtype) { return dtype == "F64" ? 8 : dtype == "F32" ? 4 : 2; }

/// Random bits for matrices; for vectors values near one, with NaN payloads, infinities, -0.0 and subnormals
/// among them where `strange`.
inline std::string random_values(std::mt19937_64& random, std::string_view dtype, std::uint64_t count,
                                 bool vector, bool strange) {
  const std::size_t size = dtype_size(dtype);
  std::string bytes(count * size, '\0');
  for (std::uint64_t i = 0; i < count; ++i) {
    std::uint64_t bits = random();
    if (vector) {
      const double value = 0.25 + static_cast<double>(random() % 3000) / 1000.0;
      const auto single = static_cast<float>(value);
      std::uint32_t single_bits = 0;
      std::memcpy(&single_bits, &single, 4);
      const bool odd = strange && random() % 8 == 0;
      const std::uint64_t kind = random() % 3;  // -0.0, subnormal, NaN or infinity
      const std::uint64_t sign = std::uint64_t{1} << (8 * size - 1);
      if (dtype == "F64") std::memcpy(&bits, &value, 8);
      if (dtype == "F32") bits = single_bits;
      if (dtype == "BF16") bits = single_bits >> 16;
      if (dtype == "F16") bits = 0x3400 + random() % 0x1000;  // 0.25 to 8
      if (odd && kind == 0) bits = sign;
      if (odd && kind == 1) bits = (random() & 0x3F) | (random() & sign);
      if (odd && kind == 2) {
        const int exponent_end = dtype == "F64" ? 52 : dtype == "F32" ? 23 : dtype == "BF16" ? 7 : 10;
        bits = ((sign - 1) >> exponent_end << exponent_end) | (random() & 0x3F) | (random() & sign);
      }
    }
    std::memcpy(bytes.data() + i * size, &bits, size);
  }
  return bytes;
}

struct TinyOptions {
  int layers = 2, width = 8;
  std::string matrix_dtype = "BF16";
  std::vector<std::string> vector_dtypes = {"F32"};  // drawn from
  bool strange = false;                              // see random_values
  bool gguf = false;                                 // native names
};

/// The tensors of a Llama with tied head, in random order.
inline std::vector<TinyTensor> tiny_llama(std::mt19937_64& random, const TinyOptions& options) {
  const auto d = static_cast<std::uint64_t>(options.width);
  std::vector<TinyTensor> tensors;
  const auto add = [&](const std::string& hf, const std::string& gguf, std::vector<std::uint64_t> shape) {
    const bool vector = shape.size() == 1;
    std::string dtype = options.matrix_dtype;
    if (vector) dtype = options.vector_dtypes[random() % options.vector_dtypes.size()];
    std::uint64_t count = 1;
    for (const std::uint64_t n : shape) count *= n;
    tensors.push_back({(options.gguf ? gguf : hf) + ".weight", dtype, shape,
                       random_values(random, dtype, count, vector, options.strange)});
  };
  add("model.embed_tokens", "token_embd", {16, d});
  add("model.norm", "output_norm", {d});
  for (int i = 0; i < options.layers; ++i) {
    const std::string hf = "model.layers." + std::to_string(i) + ".", gguf = "blk." + std::to_string(i) + ".";
    add(hf + "input_layernorm", gguf + "attn_norm", {d});
    add(hf + "post_attention_layernorm", gguf + "ffn_norm", {d});
    for (const auto& [a, b] :
         {std::pair("q", "attn_q"), {"k", "attn_k"}, {"v", "attn_v"}, {"o", "attn_output"}}) {
      add(hf + "self_attn." + a + "_proj", gguf + b, {d, d});
    }
    add(hf + "mlp.gate_proj", gguf + "ffn_gate", {12, d});
    add(hf + "mlp.up_proj", gguf + "ffn_up", {12, d});
    add(hf + "mlp.down_proj", gguf + "ffn_down", {d, 12});
  }
  std::shuffle(tensors.begin(), tensors.end(), random);
  return tensors;
}

inline std::string tiny_config(const TinyOptions& options) {
  return R"({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 16, "hidden_size": )" +
         std::to_string(options.width) + R"(, "num_hidden_layers": )" + std::to_string(options.layers) +
         R"(, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 12, "rms_norm_eps": 1e-05,)" +
         R"( "max_position_embeddings": 64, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true})";
}

inline void write_safetensors(const std::filesystem::path& path, const std::vector<TinyTensor>& tensors) {
  std::string header = R"({"__metadata__": {"format": "pt", "note": "kept"})", data;
  for (const TinyTensor& tensor : tensors) {
    std::string shape;
    for (const std::uint64_t n : tensor.shape) shape += (shape.empty() ? "" : ",") + std::to_string(n);
    header += ", \"" + tensor.name + "\": {\"dtype\": \"" + tensor.dtype + "\", \"shape\": [" + shape +
              "], \"data_offsets\": [" + std::to_string(data.size()) + "," +
              std::to_string(data.size() + tensor.bytes.size()) + "]}";
    data += tensor.bytes;
  }
  header += "}   ";
  std::uint64_t size = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &size, 8);
  write_text(path, file + header + data);
}

/// A folder as Hugging Face saves it; shards: 1 for one file without an index.
inline void write_folder(const std::filesystem::path& folder, const std::vector<TinyTensor>& tensors,
                         const TinyOptions& options, std::size_t shards) {
  std::filesystem::create_directories(folder / "extra");
  write_text(folder / "config.json", tiny_config(options));
  write_text(folder / "tokenizer.json", "{\"a\": 1}");
  write_text(folder / "extra" / "notes.txt", "kept");
  if (shards == 1) return write_safetensors(folder / "model.safetensors", tensors);
  std::string map;
  std::uint64_t total = 0;
  for (std::size_t shard = 0; shard < shards; ++shard) {
    const std::string name =
        "model-0000" + std::to_string(shard + 1) + "-of-0000" + std::to_string(shards) + ".safetensors";
    std::vector<TinyTensor> part;
    for (std::size_t i = shard; i < tensors.size(); i += shards) {
      part.push_back(tensors[i]);
      total += tensors[i].bytes.size();
      map += (map.empty() ? "\"" : ", \"") + tensors[i].name + "\": \"" + name + "\"";
    }
    write_safetensors(folder / name, part);
  }
  write_text(
      folder / "model.safetensors.index.json",
      "{\"metadata\": {\"total_size\": " + std::to_string(total) + "}, \"weight_map\": {" + map + "}}");
}

inline void write_gguf(const std::filesystem::path& path, const std::vector<TinyTensor>& tensors,
                       const TinyOptions& options) {
  std::string file = "GGUF";
  const auto put = [&](auto value) { file.append(reinterpret_cast<const char*>(&value), sizeof value); };
  const auto put_text = [&](std::string_view text) {
    put(std::uint64_t{text.size()});
    file += text;
  };
  std::uint64_t keys = 0;
  std::string metadata;
  std::swap(file, metadata);  // written first, counted afterwards
  const auto u32 = [&](std::string_view key, std::uint32_t value) {
    put_text(key), put(std::uint32_t{4}), put(value);
    ++keys;
  };
  put_text("general.architecture"), put(std::uint32_t{8}), put_text("llama");
  ++keys;
  u32("llama.block_count", static_cast<std::uint32_t>(options.layers));
  u32("llama.context_length", 64);
  u32("llama.embedding_length", static_cast<std::uint32_t>(options.width));
  u32("llama.feed_forward_length", 12);
  u32("llama.attention.head_count", 2);
  u32("llama.attention.head_count_kv", 2);
  u32("llama.rope.dimension_count", static_cast<std::uint32_t>(options.width / 2));
  u32("llama.vocab_size", 16);
  put_text("llama.attention.layer_norm_rms_epsilon"), put(std::uint32_t{6}), put(1e-5F);
  ++keys;
  std::swap(file, metadata);
  put(std::uint32_t{3}), put(std::uint64_t{tensors.size()}), put(keys);
  file += metadata;
  const std::map<std::string, std::uint32_t> types = {{"F32", 0}, {"F16", 1}, {"F64", 28}, {"BF16", 30}};
  std::string data;
  for (const TinyTensor& tensor : tensors) {
    put_text(tensor.name), put(static_cast<std::uint32_t>(tensor.shape.size()));
    for (auto n = tensor.shape.rbegin(); n != tensor.shape.rend(); ++n) put(*n);
    put(types.at(tensor.dtype)), put(std::uint64_t{data.size()});
    data += tensor.bytes;
    data.append((32 - data.size() % 32) % 32, '\x5A');  // padding that is not zero must survive too
  }
  file.append((32 - file.size() % 32) % 32, '\0');
  write_text(path, file + data);
}

}  // namespace scalevec::testing
