#include <cmath>

#include <scalevec/core/checkpoint/family.h>

#include "readers/errors.h"
#include "readers/model_folder.h"

using namespace scalevec;
using namespace scalevec::testing;

namespace {

// The fields of the refusal of the small model with `key` set to `value`.
ErrorFields refused_key(const std::string& key, double value, ErrorCode code = ErrorCode::config,
                        std::string* message = nullptr) {
  const TemporaryFolder folder;
  SmallGguf model;
  model.numbers[key] = value;
  write_file(folder.path() / "model.gguf", model.build());
  return row_refusal([&] { Checkpoint::open(folder.path() / "model.gguf"); }, code, message);
}

}  // namespace

TEST_CASE("GGUF facts: metadata that does not fit is refused with key, place and value") {
  const struct {
    const char* key;
    double value;
    const char *expected, *found;
  } rows[] = {
      {"llama.block_count", -1, "1 to 20", "-1"},
      {"llama.block_count", 0, "1 to 20", "0"},
      {"llama.block_count", 2147483648.0, "1 to 20", "2147483648"},
      {"llama.block_count", 3, "tensors of 3 blocks", "none of block 2"},
      {"llama.block_count", 1, "blocks 0 to 0", "block 1"},
      {"llama.embedding_length", 0, "1 to 16777216", "0"},
      {"llama.attention.head_count", 3, "a divisor of embedding_length", "3"},
      {"llama.attention.head_count_kv", 3, "a divisor of the heads", "3"},
      {"llama.attention.key_length", 5, "an even number", "heads of 5 entries"},
      {"llama.attention.value_length", 8, "4", "8"},
      {"llama.rope.dimension_count", 6, "2 to 4", "6"},
      {"llama.rope.dimension_count", 3, "an even number", "3"},
      {"llama.rope.freq_base", 0.5, "1.000001 to 1.7976931348623157e+308", "0.5"},
      {"llama.expert_count", 8, "0 or nothing", "8"},
      {"llama.attn_logit_softcapping", 50, "0 or nothing", "50"},
      {"llama.final_logit_softcapping", 30, "0 or nothing", "30"},
      {"llama.attention.clamp_kqv", 8, "0 or nothing", "8"},
      {"llama.vocab_size", 0, "1 to 2147483648", "0"},
      {"llama.context_length", 0, "1 to 2147483648", "0"},
      {"llama.attention.causal", 0, "1 or nothing", "0"},
  };
  for (const auto& row : rows) {
    CAPTURE(row.key);
    CAPTURE(row.value);
    const ErrorFields fields = refused_key(row.key, row.value);
    CHECK(fields.key == row.key);
    CHECK(fields.offset.has_value());
    CHECK(fields.expected == row.expected);
    CHECK(fields.found == row.found);
    CHECK(contains(fields.file, "model.gguf"));
  }
  CHECK(refused_key("llama.embedding_length", 16).tensor == "output_norm.weight");
  CHECK(refused_key("llama.vocab_size", 21).tensor == "token_embd.weight");
  for (const double eps : {-1e-5, std::nan(""), double{INFINITY}, 2.0}) {
    const auto fields = refusal([&] { opened_gguf([&](SmallGguf& m) { m.eps = eps; }); }, ErrorCode::config);
    CHECK(fields.key == "llama.attention.layer_norm_rms_epsilon");
  }
  const auto missing = [](const char* key) {
    return refusal([&] { opened_gguf([&](SmallGguf& m) { m.numbers.erase(key); }); }, ErrorCode::schema).key;
  };
  CHECK(missing("llama.block_count") == "llama.block_count");
  CHECK(missing("llama.attention.head_count") == "llama.attention.head_count");
  const auto fields =
      refusal([&] { opened_gguf([&](SmallGguf& m) { m.texts.clear(); }); }, ErrorCode::schema);
  CHECK(fields.key == "general.architecture");
  std::string message;
  refusal([&] { opened_gguf([&](SmallGguf& m) { m.texts["llama.rope.scaling.type"] = "longrope"; }); },
          ErrorCode::config, &message);
  CHECK(contains(message, "none, linear or yarn"));
}

TEST_CASE("GGUF facts: rotary keys are read as llama.cpp reads them") {
  const auto rope = [](auto change) { return opened_gguf(change).spec().layers[0].attn.rope; };
  CHECK(rope([](SmallGguf&) {}).pairing == RopeSpec::Pairing::interleaved);
  CHECK(rope([](SmallGguf&) {}).scaling == RopeSpec::Scaling::none);
  const RopeSpec linear = rope([](SmallGguf& m) { m.numbers["llama.rope.scaling.factor"] = 4; });
  CHECK(linear.scaling == RopeSpec::Scaling::linear);
  CHECK(linear.factor == 4.0);
  const RopeSpec yarn = rope([](SmallGguf& m) {
    m.texts["llama.rope.scaling.type"] = "yarn";
    m.numbers["llama.rope.scaling.factor"] = 4;
    m.numbers["llama.rope.scaling.original_context_length"] = 16;
  });
  CHECK(yarn.scaling == RopeSpec::Scaling::yarn);
  CHECK(yarn.original_context == 16);
  CHECK(yarn.amplitude() == 0.1 * std::log(4.0) + 1.0);
  CHECK(rope([](SmallGguf& m) { m.numbers["llama.rope.dimension_count"] = 2; }).dimensions == 2);

  const Checkpoint factors = opened_gguf([](SmallGguf& m) { m.tensors["rope_freqs.weight"] = {{2}}; });
  CHECK(factors.spec().layers[1].attn.rope.factors_tensor == "rope_factors");
  CHECK(factors.slot("rope_factors").name == "rope_freqs.weight");
  CHECK(refusal([] { opened_gguf([](SmallGguf& m) { m.tensors["rope_freqs.weight"] = {{3}}; }); },
                ErrorCode::config)
            .tensor == "rope_freqs.weight");
}

TEST_CASE("GGUF facts: an unknown key is said") {
  const Checkpoint model = opened_gguf([](SmallGguf& m) { m.numbers["llama.unheard_of"] = 1; });
  REQUIRE(model.warnings().size() == 1);
  CHECK(contains(model.warnings()[0], "llama.unheard_of"));
}

TEST_CASE("GGUF facts: Qwen2 needs its biases, and a window in the metadata is honoured") {
  const auto biases = [](SmallGguf& m) {
    m.rename("qwen2");
    for (int i = 0; i < 2; ++i) {
      m.tensors[fmt::format("blk.{}.attn_q.bias", i)] = {{8}};
      m.tensors[fmt::format("blk.{}.attn_k.bias", i)] =
          m.tensors[fmt::format("blk.{}.attn_v.bias", i)] = {{4}};
    }
  };
  CHECK(opened_gguf(biases).spec().layers[0].attn.rope.pairing == RopeSpec::Pairing::halves);
  CHECK(refusal([&] { opened_gguf([](SmallGguf& m) { m.rename("qwen2"); }); }, ErrorCode::config).tensor ==
        "blk.0.attn_k.bias");
  const Checkpoint windowed =
      opened_gguf([](SmallGguf& m) { m.numbers["llama.attention.sliding_window"] = 16; });
  CHECK(windowed.spec().layers[1].attn.window == 16);
}

namespace {

SmallGguf small_gemma(int blocks) {
  SmallGguf model(8, blocks);
  model.rename("gemma3");
  model.numbers["gemma3.attention.sliding_window"] = 16;
  model.numbers["gemma3.rope.freq_base"] = 1e6;
  for (int i = 0; i < blocks; ++i) {
    const std::string block = fmt::format("blk.{}.", i);
    model.tensors[block + "attn_q_norm.weight"] = model.tensors[block + "attn_k_norm.weight"] = {{4}};
    model.tensors[block + "post_attention_norm.weight"] =
        model.tensors[block + "post_ffw_norm.weight"] = {{8}};
  }
  return model;
}

Checkpoint written(const SmallGguf& model) {
  return opened_gguf([&](SmallGguf& small) { small = model; });
}

}  // namespace

TEST_CASE("GGUF facts: what a Gemma file leaves out stands in the table") {
  const Checkpoint model = written(small_gemma(7));
  CHECK(model.sites().size() == 7 * 6 + 1);
  CHECK(model.sites()[3].native == "blk.0.post_attention_norm.weight");
  CHECK(model.sites()[3].address.str() == "layers.0.attn.output_norm");
  CHECK(model.spec().embedding_scale == std::sqrt(8.0));
  for (std::size_t i = 0; i < 7; ++i) {
    const AttentionSpec& attention = model.spec().layers[i].attn;
    CHECK(attention.window == (i == 5 ? 0 : 16));
    CHECK(attention.rope.base == (i == 5 ? 1e6 : 1e4));
    CHECK(attention.scale == 0.5);
    CHECK(model.spec().layers[i].mlp.activation == Activation::gelu_tanh);
  }
  // The largest one divides by the width per head, which is not its head_dim.
  SmallGguf wide = small_gemma(62);
  wide.numbers["gemma3.attention.head_count"] = 1;
  wide.numbers["gemma3.attention.key_length"] = 4;
  for (int i = 0; i < 62; ++i) {
    wide.tensors[fmt::format("blk.{}.attn_q.weight", i)] = {{4, 8}};
    wide.tensors[fmt::format("blk.{}.attn_output.weight", i)] = {{8, 4}};
  }
  CHECK(written(wide).spec().layers[0].attn.scale == 1.0 / std::sqrt(8.0));

  SmallGguf patterned = small_gemma(4);
  patterned.numbers["gemma3.attention.sliding_window_pattern"] = 2;
  CHECK(written(patterned).spec().layers[1].attn.window == 0);
  CHECK(written(patterned).spec().layers[2].attn.window == 16);
  SmallGguf windowless = small_gemma(2);
  windowless.numbers.erase("gemma3.attention.sliding_window");
  CHECK(refusal([&] { written(windowless); }, ErrorCode::config).key == "gemma3.attention.sliding_window");
}
