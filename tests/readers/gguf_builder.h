#pragma once

#include <cstdint>
#include <cstring>
#include <ctime>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace scalevec::testing {

/// Little-endian bytes, written one after the other.
class Bytes {
 public:
  template <class T>
  Bytes& add(T value) {
    static_assert(std::is_arithmetic_v<T>);
    text_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Bytes& raw(std::string_view bytes) {
    text_ += bytes;
    return *this;
  }
  Bytes& string(std::string_view bytes) { return add<std::uint64_t>(bytes.size()).raw(bytes); }
  Bytes& zeros(std::size_t count) {
    text_.append(count, '\0');
    return *this;
  }
  const std::string& text() const { return text_; }
  operator const std::string&() const { return text_; }

 private:
  std::string text_;
};

/// Numbers of the value types.
inline constexpr std::uint32_t kv_u8 = 0, kv_i8 = 1, kv_u32 = 4, kv_i32 = 5, kv_f32 = 6, kv_bool = 7,
                               kv_string = 8, kv_array = 9, kv_u64 = 10, kv_i64 = 11, kv_f64 = 12;

/// Numbers of some element types.
inline constexpr std::uint32_t type_f32 = 0, type_q4_0 = 2, type_q8_0 = 8, type_i8 = 24, type_bf16 = 30;

/// A GGUF file as its parts say, right or wrong: nothing is checked, and counts can be overruled.
struct GgufBuilder {
  std::string magic = "GGUF";
  std::uint32_t version = 3;
  std::uint64_t alignment = 32;  // of the data; says nothing in the metadata
  std::vector<std::string> pairs = {};
  std::vector<std::string> infos = {};
  std::string data = {};
  std::uint64_t more_pairs = 0, more_tensors = 0;  // added to the counts

  GgufBuilder& pair(std::string_view key, std::uint32_t type, const std::string& value) {
    pairs.push_back(Bytes().string(key).add(type).raw(value).text());
    return *this;
  }
  template <class T>
  GgufBuilder& value(std::string_view key, std::uint32_t type, T number) {
    return pair(key, type, Bytes().add(number).text());
  }
  GgufBuilder& text(std::string_view key, std::string_view value) {
    return pair(key, kv_string, Bytes().string(value).text());
  }
  /// dims: innermost first, as in the file.
  GgufBuilder& info(std::string_view name, const std::vector<std::uint64_t>& dims, std::uint32_t type,
                    std::uint64_t offset) {
    Bytes bytes;
    bytes.string(name).add(static_cast<std::uint32_t>(dims.size()));
    for (const std::uint64_t dim : dims) bytes.add(dim);
    infos.push_back(bytes.add(type).add(offset).text());
    return *this;
  }
  /// An info, and its data at the end of what there is.
  GgufBuilder& tensor(std::string_view name, const std::vector<std::uint64_t>& dims, std::uint32_t type,
                      std::string_view bytes) {
    info(name, dims, type, data.size());
    data += bytes;
    data.resize((data.size() + alignment - 1) / alignment * alignment, '\0');
    return *this;
  }

  std::string header() const {
    Bytes bytes;
    bytes.raw(magic).add(version).add(infos.size() + more_tensors).add(pairs.size() + more_pairs);
    for (const std::string& part : pairs) bytes.raw(part);
    for (const std::string& part : infos) bytes.raw(part);
    return bytes.text();
  }
  std::uint64_t data_begin() const { return (header().size() + alignment - 1) / alignment * alignment; }
  std::string build() const {
    std::string file = header();
    file.resize(data_begin(), '\0');
    return file + data;
  }
};

inline std::string floats(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

/// A model of two blocks with a vocabulary, in about 900 bytes.
inline GgufBuilder small_model() {
  GgufBuilder file;
  file.text("general.architecture", "llama");
  file.value<std::uint32_t>("llama.block_count", kv_u32, 2);
  file.value<float>("llama.attention.layer_norm_rms_epsilon", kv_f32, 1e-5f);
  file.value<std::uint8_t>("tokenizer.ggml.add_bos_token", kv_bool, 1);
  file.pair("tokenizer.ggml.tokens", kv_array,
            Bytes().add(kv_string).add<std::uint64_t>(3).string("<s>").string("a").string("\xff"));
  file.pair("tokenizer.ggml.scores", kv_array,
            Bytes().add(kv_f32).add<std::uint64_t>(3).add(0.f).add(-1.f).add(-2.f));
  file.tensor("blk.0.attn_norm.weight", {4}, type_f32, floats({1, 2, 3, 4}));
  file.tensor("blk.1.attn_norm.weight", {4}, type_f32, floats({5, 6, 7, 8}));
  file.tensor("blk.1.ffn_up.weight", {32, 2}, type_q8_0, std::string(68, '\1'));
  return file;
}

/// Time that this process has used: what a limit can hold to on a machine with other work.
inline double processor_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

inline std::span<const std::byte> as_span(const std::string& text) { return std::as_bytes(std::span(text)); }

}  // namespace scalevec::testing
