#include <scalevec/core/checkpoint/checkpoint.h>

#include <sys/stat.h>

#include <chrono>
#include <cstring>

#include <scalevec/core/selector.h>

#include "readers/errors.h"
#include "readers/model_folder.h"

using namespace scalevec;
using namespace scalevec::testing;
namespace fs = std::filesystem;

namespace {

std::string halves(const std::vector<std::uint16_t>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * 2};
}

// The small model with one vector in bfloat16: 1, -2, 0.5, -0, 3, 1, 1, 1.
SmallFolder folder_with_values() {
  SmallFolder model;
  model.tensors["model.layers.1.post_attention_layernorm.weight"] = {
      {8}, "BF16", halves({0x3F80, 0xC000, 0x3F00, 0x8000, 0x4040, 0x3F80, 0x3F80, 0x3F80})};
  return model;
}

}  // namespace

TEST_CASE("Checkpoint: a folder, a file of it and a GGUF file are opened") {
  const TemporaryFolder folder;
  folder_with_values().write(folder.path());
  const Checkpoint model = Checkpoint::open(folder.path());
  CHECK(model.container() == Container::safetensors);
  CHECK(model.path() == folder.path());
  CHECK(model.family() == "llama");
  CHECK(model.files() == std::vector<fs::path>{folder.path() / "model.safetensors"});
  REQUIRE(model.sites().size() == 5);
  const Site& site = model.sites()[3];
  CHECK(site.address.str() == "layers.1.mlp.input_norm");
  CHECK(site.native == "model.layers.1.post_attention_layernorm.weight");
  CHECK(site.consumers[1].native == "model.layers.1.mlp.up_proj.weight");
  CHECK(model.sites().back().consumers[0].native == "model.embed_tokens.weight");
  CHECK(model.effective(site) == std::vector<double>{1, -2, 0.5, -0.0, 3, 1, 1, 1});
  CHECK(model.slot("layers.1.mlp.input_norm.weight").dtype == DType::bf16);
  CHECK(nlohmann::json::parse(model.config_json())["hidden_size"] == 8);
  CHECK(model.tokenizer_json() == "null");
  CHECK(Checkpoint::open(folder.path() / "model.safetensors").sites().size() == 5);

  for (const char* name : {"model.gguf", "no extension"}) {
    write_file(folder.path() / name, SmallGguf().build());
    const Checkpoint gguf = Checkpoint::open(folder.path() / name);
    CHECK(gguf.container() == Container::gguf);
    CHECK(gguf.sites().size() == 5);
    CHECK(gguf.sites()[3].native == "blk.1.ffn_norm.weight");
  }
}

TEST_CASE("Checkpoint: parts of a tensor are read, and sites are selected by both names") {
  const TemporaryFolder folder;
  folder_with_values().write(folder.path());
  const Checkpoint model = Checkpoint::open(folder.path());
  const TensorInfo& tensor = model.tensor("model.layers.1.post_attention_layernorm.weight");
  const std::vector<std::byte> all = model.read(tensor);
  REQUIRE(all.size() == 16);
  std::vector<std::byte> part(4);
  model.read(tensor, 2, part);
  CHECK(std::memcmp(part.data(), all.data() + 2, 4) == 0);
  std::vector<std::byte> late(4);
  refusal([&] { model.read(tensor, 14, late); }, ErrorCode::size);
  CHECK(Selector::parse("model.layers.{-1}.post_attention_layernorm").select(model.sites())[0].site == 3);
}

TEST_CASE("Checkpoint: the digest is of what its header says") {
  const TemporaryFolder folder;
  folder_with_values().write(folder.path());
  const Checkpoint model = Checkpoint::open(folder.path());
  // printf 'scalevec vector 1\nBF16\n8\n0\n\x80\x3f\x00\xc0\x00\x3f\x00\x80\x40\x40\x80\x3f\x80\x3f\x80\x3f'
  // | sha256sum
  CHECK(model.digest(model.sites()[3]) ==
        "sha256:e4b40557075178439ecdb114b9008a10bc4e022ae5cffc6b31d5787bd1bfcc88");
  const std::vector<std::byte> bytes(4);
  CHECK(vector_digest(DType::f32, 1, 0.0, bytes) != vector_digest(DType::f32, 1, 1.0, bytes));
  CHECK(vector_digest(DType::f32, 1, 0.0, bytes) != vector_digest(DType::f16, 2, 0.0, bytes));
}

TEST_CASE("Checkpoint: what is absent or something else is refused in one line") {
  const TemporaryFolder folder;
  std::string message;
  refusal([] { Checkpoint::open("HuggingFaceTB/SmolLM2-135M"); }, ErrorCode::path, &message);
  CHECK(message ==
        "E_PATH: opening a model: no such file or folder: HuggingFaceTB/SmolLM2-135M; models are never "
        "downloaded, give "
        "a local path");
  CHECK_THROWS_AS(Checkpoint::open("org/model"), std::runtime_error);

  const auto code_of = [&](const std::string& name, const std::string& bytes, ErrorCode code) {
    write_file(folder.path() / name, bytes);
    refusal([&] { Checkpoint::open(folder.path() / name); }, code, &message);
    return message;
  };
  CHECK(contains(code_of("a.safetensors", SmallGguf().build(), ErrorCode::format), "GGUF"));
  CHECK(contains(code_of("b.gguf", safetensors(SmallFolder().tensors), ErrorCode::format), "b.gguf"));
  CHECK(contains(code_of("c.pt", std::string("\x80\x02}q\x00.", 6) + std::string(64, 'x'), ErrorCode::format),
                 "pickle"));
  code_of("d.safetensors", "", ErrorCode::trunc);
  refusal([&] { Checkpoint::open(folder.path()); }, ErrorCode::format);
  const fs::path pipe = folder.path() / "pipe";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  refusal([&] { Checkpoint::open(pipe); }, ErrorCode::path);
}

TEST_CASE("Checkpoint: names that are not there come with the nearest") {
  const TemporaryFolder folder;
  SmallFolder().write(folder.path());
  const Checkpoint model = Checkpoint::open(folder.path());
  CHECK(
      contains(address_refusal([&] { model.tensor("model.norm.weights"); }), "nearest: model.norm.weight,"));
  CHECK(contains(address_refusal([&] { model.slot("layers.0.attn.query.weight"); }), "layers.0.attn."));
  CHECK_FALSE(model.has_slot("head.weight"));
}

TEST_CASE("Checkpoint: a quantised vector is listed and read") {
  const TemporaryFolder folder;
  SmallGguf small(32);
  // One block: scale 0.5 as float16, every nibble 9, so (9 - 8) / 2.
  small.tensors["blk.0.attn_norm.weight"] = {
      {32}, "Q4_0", std::string("\x00\x38", 2) + std::string(16, '\x99')};
  write_file(folder.path() / "q.gguf", small.build());
  const Checkpoint model = Checkpoint::open(folder.path() / "q.gguf");
  CHECK(model.tensor(model.sites()[0].native).dtype == DType::q4_0);
  CHECK(model.effective(model.sites()[0]) == std::vector<double>(32, 0.5));
}

TEST_CASE("Checkpoint: GGUF metadata as JSON, tokenizer and all") {
  const TemporaryFolder folder;
  SmallGguf small;
  small.texts["tokenizer.ggml.model"] = "gpt2";
  small.texts["general.name"] = "caf\xc3\xa9 \xff";
  write_file(folder.path() / "m.gguf", small.build());
  const Checkpoint model = Checkpoint::open(folder.path() / "m.gguf");
  const auto config = nlohmann::json::parse(model.config_json());
  CHECK(config["llama.block_count"] == 2);
  CHECK(config["general.name"] == "caf\xc3\xa9 \xef\xbf\xbd");
  CHECK(model.tokenizer_json() == R"({"tokenizer.ggml.model":"gpt2"})");
}

TEST_CASE("Checkpoint: 140 GB in 30 shards are listed in under a second") {
  const TemporaryFolder folder;
  // Llama 2 70B in bfloat16; the shards are sparse files.
  const std::uint64_t width = 8192, inner = 28672, keys = 1024;
  SmallFolder small;
  small.config.update({{"hidden_size", width},
                       {"intermediate_size", inner},
                       {"num_hidden_layers", 80},
                       {"num_attention_heads", 64},
                       {"num_key_value_heads", 8},
                       {"vocab_size", 32000},
                       {"tie_word_embeddings", false}});
  std::vector<Tensors> shards(30);
  const auto bf16 = [](std::vector<std::uint64_t> shape) { return Tensor{std::move(shape), "BF16"}; };
  shards[0]["model.embed_tokens.weight"] = bf16({32000, width});
  shards[29]["lm_head.weight"] = bf16({32000, width});
  shards[29]["model.norm.weight"] = bf16({width});
  for (std::size_t i = 0; i < 80; ++i) {
    Tensors& shard = shards[i * 30 / 80];
    const std::string layer = fmt::format("model.layers.{}.", i);
    shard[layer + "input_layernorm.weight"] = shard[layer + "post_attention_layernorm.weight"] =
        bf16({width});
    shard[layer + "self_attn.q_proj.weight"] = shard[layer + "self_attn.o_proj.weight"] =
        bf16({width, width});
    shard[layer + "self_attn.k_proj.weight"] = shard[layer + "self_attn.v_proj.weight"] = bf16({keys, width});
    shard[layer + "mlp.gate_proj.weight"] = shard[layer + "mlp.up_proj.weight"] = bf16({inner, width});
    shard[layer + "mlp.down_proj.weight"] = bf16({width, inner});
  }
  nlohmann::json weights = nlohmann::json::object();
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const std::string name = fmt::format("model-{:05}-of-00030.safetensors", i + 1);
    nlohmann::json header = nlohmann::json::object();
    std::uint64_t end = 0;
    for (const auto& [tensor_name, tensor] : shards[i]) {
      const std::uint64_t begin = end;
      end += byte_count(tensor);
      header[tensor_name] = {{"dtype", "BF16"}, {"shape", tensor.shape}, {"data_offsets", {begin, end}}};
      weights[tensor_name] = name;
    }
    const std::string text = Bytes().string(header.dump()).text();
    write_file(folder.path() / name, text);
    std::error_code error;
    fs::resize_file(folder.path() / name, text.size() + end, error);
    if (error) {
      MESSAGE("skipped: this file system has no sparse files of 5 GB: ", error.message());
      return;
    }
    total += end;
  }
  write_file(folder.path() / "config.json", small.config.dump());
  write_file(folder.path() / "model.safetensors.index.json",
             nlohmann::json{{"metadata", {{"total_size", total}}}, {"weight_map", weights}}.dump());
  CHECK(total > 137'000'000'000);

  const auto begin = std::chrono::steady_clock::now();
  const Checkpoint model = Checkpoint::open(folder.path());
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
  CHECK(model.sites().size() == 161);
  CHECK(model.files().size() == 30);
  CHECK(model.effective(model.sites()[160]) == std::vector<double>(width, 0.0));
  MESSAGE("listed in ", spent.count(), " s");
  CHECK(spent.count() < 1.0);
}
