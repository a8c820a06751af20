#include <scalevec/core/checkpoint/family.h>

#include <set>

#include "readers/errors.h"
#include "readers/model_folder.h"
#include "support/files.h"

using namespace scalevec;
using namespace scalevec::testing;
using nlohmann::json;

namespace {

// Opens the small folder after `change`.
template <class Change>
Checkpoint opened(Change&& change) {
  const TemporaryFolder folder;
  SmallFolder model;
  change(model);
  model.write(folder.path());
  return Checkpoint::open(folder.path());
}

// The fields of the refusal of the small folder after `change`.
template <class Change>
ErrorFields refused_folder(Change&& change, ErrorCode code, std::string* message = nullptr) {
  const TemporaryFolder folder;
  SmallFolder model;
  change(model);
  model.write(folder.path());
  const auto before = listing(folder.path());
  ErrorFields fields = row_refusal([&] { Checkpoint::open(folder.path()); }, code, message);
  CHECK(listing(folder.path()) == before);
  return fields;
}

// The same of a config.json with `key` set to `value`.
ErrorFields refused_config(const std::string& key, const json& value, ErrorCode code = ErrorCode::config,
                           std::string* message = nullptr) {
  return refused_folder([&](SmallFolder& model) { model.config[key] = value; }, code, message);
}

}  // namespace

TEST_CASE("Family: each row names every container's tensor once") {
  for (const Family& family : families()) {
    CAPTURE(std::string(family.model_type));
    std::set<std::string> slots, hf, gguf;
    for (const FamilyRow& row : family.rows) {
      CHECK(slots.insert(std::string(row.slot)).second);
      if (!row.hf.empty()) CHECK(hf.insert(std::string(row.hf)).second);
      CHECK(gguf.insert(std::string(row.gguf)).second);
      for (const std::string_view name : {row.hf, row.gguf}) {
        CHECK((name.empty() || (name.find("{}") != std::string_view::npos) ==
                                   (row.slot.find("{}") != std::string_view::npos)));
      }
    }
    CHECK_NOTHROW(json::parse(family.defaults));
  }
}

TEST_CASE("Family: native names follow the container and the prefix") {
  const Family& gemma = family_of_config({{"model_type", "gemma3_text"}}, "config.json");
  const auto name = [&](const Naming& naming, const char* slot) { return native_name(gemma, naming, slot); };
  CHECK(name({}, "layers.11.attn.output_norm.weight") == "model.layers.11.post_attention_layernorm.weight");
  CHECK(name({}, "layers.11.attn.q.bias") == "model.layers.11.self_attn.q_proj.bias");
  CHECK(name({.body = "language_model.model.", .head = "language_model."}, "head.weight") ==
        "language_model.lm_head.weight");
  CHECK(name({.body = ""}, "embed.weight") == "embed_tokens.weight");
  CHECK(name({.container = Container::gguf}, "layers.3.mlp.output_norm.weight") ==
        "blk.3.post_ffw_norm.weight");
  CHECK(name({}, "layers.3.mixer.gate_norm.weight") == "");
}

TEST_CASE("Family: config.json fields that do not fit are refused with the field and what was found") {
  const char* const layers = "an integer from 1 to 10000";
  const char* const width = "an integer from 1 to 16777216";
  const char* const tokens = "an integer from 1 to 2147483648";
  const char* const below_one = "a number from 0 to 1";
  const char* const base = "a number from 1.000001 to 1.7976931348623157e+308";
  const char* const factor = "a number from 2.2250738585072014e-308 to 1.7976931348623157e+308";
  const struct {
    const char* key;  // of the refusal: the field that is set, or one within it
    json value;
    const char *expected, *found;
  } rows[] = {
      {"num_hidden_layers", -1, layers, "-1"},
      {"num_hidden_layers", 0, layers, "0"},
      {"num_hidden_layers", 1.5, layers, "1.5"},
      {"num_hidden_layers", "32", layers, "\"32\""},
      {"num_hidden_layers", std::int64_t{1} << 40, layers, "1099511627776"},
      {"num_hidden_layers", nullptr, layers, "nothing"},
      {"num_hidden_layers", 3, "2", "3"},
      {"num_hidden_layers", 1, "2", "1"},
      {"num_hidden_layers", json::array({2}), layers, "[2]"},
      {"hidden_size", 0, width, "0"},
      {"hidden_size", true, width, "true"},
      {"intermediate_size", -4, width, "-4"},
      {"vocab_size", 1.0, tokens, "1.0"},
      {"num_attention_heads", 3, "a divisor of hidden_size", "3"},
      {"num_attention_heads", 8, "an even head_dim", "8"},
      {"num_key_value_heads", 3, "a divisor of num_attention_heads", "3"},
      {"head_dim", 3, "an even head_dim", "3"},
      {"rms_norm_eps", -1e-6, below_one, "-1e-06"},
      {"rms_norm_eps", "1e-6", below_one, "\"1e-6\""},
      {"rms_norm_eps", 2.0, below_one, "2.0"},
      {"hidden_act", "relu", "silu or gelu_pytorch_tanh", "\"relu\""},
      {"hidden_act", 1, "a string", "1"},
      {"max_position_embeddings", 0, tokens, "0"},
      {"tie_word_embeddings", 1, "true or false", "1"},
      {"model_type", "mamba", "one of gemma3, gemma3_text, llama, mistral, qwen2, qwen3, scalevec",
       "\"mamba\""},
      {"model_type", json::array({"llama"}), "a string", "[\"llama\"]"},
      {"rope_theta", -5.0, base, "-5.0"},
      {"rope_theta", "10000", base, "\"10000\""},
      {"attn_logit_softcapping", 50.0, "0 or nothing", "50.0"},
      {"final_logit_softcapping", 30.0, "0 or nothing", "30.0"},
      {"partial_rotary_factor", 0.5, "1 or nothing", "0.5"},
      {"use_bidirectional_attention", true, "0 or nothing", "true"},
      {"num_local_experts", 8, "at most 1", "8"},
      {"num_experts", 128, "at most 1", "128"},
      {"sliding_window", 16, "nothing", "16"},
      {"query_pre_attn_scalar", 64, "nothing", "64"},
      {"quantization_config", {{"bits", 4}}, "nothing", "{\"bits\":4}"},
      {"logit_scale", 0.5, "1 or nothing", "0.5"},
      {"rope_scaling.type",
       {{"type", "dynamic"}, {"factor", 2.0}},
       "default, linear, llama3 or yarn",
       "\"dynamic\""},
      {"rope_scaling.factor", {{"type", "linear"}}, factor, "nothing"},
      {"rope_scaling.factor", {{"type", "linear"}, {"factor", 0}}, factor, "0"},
      {"rope_scaling", "linear", "a JSON object", "\"linear\""},
      {"rope_scaling.truncate",
       {{"type", "yarn"}, {"factor", 2}, {"truncate", false}},
       "true or nothing",
       "false"},
      {"rope_scaling.mrope_section", {{"type", "default"}, {"mrope_section", {1, 2}}}, "nothing", "[1,2]"},
  };
  for (const auto& row : rows) {
    CAPTURE(row.key);
    CAPTURE(row.value.dump());
    const std::string key = row.key;
    const ErrorFields fields = refused_config(key.substr(0, key.find('.')), row.value);
    CHECK(fields.key == key);
    CHECK(fields.expected == row.expected);
    CHECK(fields.found == row.found);
    CHECK(contains(fields.file, "config.json"));
  }
}

TEST_CASE("Family: numbers that are none are refused with their field, also those that Python writes") {
  const TemporaryFolder folder;
  SmallFolder model;
  model.write(folder.path());
  for (const char* number : {"1e400", "-1e400", "NaN", "Infinity", "-Infinity"}) {
    CAPTURE(number);
    std::string text = model.config.dump();
    text.replace(text.find("1e-05"), 5, number);
    write_file(folder.path() / "config.json", text);
    const bool is_json = contains(number, "1e400");  // infinite in float64, and shown as null
    const ErrorFields fields = row_refusal([&] { Checkpoint::open(folder.path()); }, ErrorCode::config);
    CHECK(fields.key == "rms_norm_eps");
    CHECK(fields.expected == (is_json ? "a number from 0 to 1" : "a finite number"));
    CHECK(fields.found == (is_json ? "null" : number));
    CHECK(fields.file == (folder.path() / "config.json").string());
  }
  write_file(folder.path() / "config.json", "{\"hidden_size\": Nope}");
  row_refusal([&] { Checkpoint::open(folder.path()); }, ErrorCode::json);
}

TEST_CASE("Family: neutral and harmless fields are accepted") {
  const Checkpoint model = opened([](SmallFolder& small) {
    small.config.update(json::parse(R"({"attn_logit_softcapping": null, "partial_rotary_factor": 1.0,
      "final_logit_softcapping": 0, "pretraining_tp": 2, "rope_scaling": null, "torch_dtype": "float16",
      "head_dim": null, "sliding_window": null, "num_experts": 0, "some_tool": {"a": [1]}})"));
  });
  CHECK(model.spec().layers[0].attn.head_dim == 4);
  CHECK(model.warnings().empty());
}

TEST_CASE("Family: refusals say what is known and why") {
  std::string message;
  refused_config("model_type", "mamba", ErrorCode::config, &message);
  CHECK(contains(message, "gemma3, gemma3_text, llama, mistral, qwen2, qwen3"));
  refused_config("num_local_experts", 8, ErrorCode::config, &message);
  CHECK(contains(message, "mixture of experts"));
  refused_config("num_hidden_layers", 3, ErrorCode::config, &message);
  CHECK(contains(message, "the tensors are of 2 layers"));
  refusal([] { opened_gguf([](SmallGguf& model) { model.rename("mamba"); }); }, ErrorCode::config, &message);
  CHECK(contains(message, "gemma3, llama, qwen2, qwen3"));
}

TEST_CASE("Family: code that a configuration asks for is not run, and said") {
  const Checkpoint model = opened([](SmallFolder& small) {
    small.config["auto_map"] = {{"AutoModel", "x.Y"}};
  });
  REQUIRE(model.warnings().size() == 1);
  CHECK(contains(model.warnings()[0], "auto_map"));
}

TEST_CASE("Family: tensors are held against the configuration") {
  const auto refused = [](ErrorCode code, auto change) {
    std::string message;
    ErrorFields fields = refused_folder(change, code, &message);
    CAPTURE(message);
    return fields;
  };
  const std::string gamma = "model.layers.0.input_layernorm.weight",
                    q = "model.layers.1.self_attn.q_proj.weight";
  // A wrong width shows in the vectors first.
  ErrorFields fields = refused(ErrorCode::config, [](SmallFolder& m) { m.config["hidden_size"] = 16; });
  CHECK(fields.expected == "[16]");
  CHECK(fields.found == "[8]");
  CHECK(contains(fields.tensor, "norm"));
  CHECK(fields.key == "hidden_size");
  CHECK(refused(ErrorCode::config, [&](SmallFolder& m) { m.tensors[gamma] = {{9}}; }).tensor == gamma);
  CHECK(refused(ErrorCode::config, [&](SmallFolder& m) { m.tensors[q] = {{8, 9}}; }).tensor == q);
  CHECK(refused(ErrorCode::config, [](SmallFolder& m) { m.config["vocab_size"] = 21; }).found == "[20, 8]");
  CHECK(refused(ErrorCode::config, [&](SmallFolder& m) { m.tensors.erase(q); }).tensor == q);
  CHECK(refused(ErrorCode::shape, [&](SmallFolder& m) { m.tensors[gamma] = {{1, 8}}; }).tensor == gamma);
  CHECK(refused(ErrorCode::shape, [&](SmallFolder& m) { m.tensors[gamma] = {{0}}; }).tensor == gamma);
  CHECK(refused(ErrorCode::shape, [&](SmallFolder& m) { m.tensors[gamma] = {{}}; }).tensor == gamma);
  CHECK(refused(ErrorCode::dtype, [&](SmallFolder& m) { m.tensors[gamma] = {{8}, "I32"}; }).tensor == gamma);
  // What no slot claims.
  for (const char* extra :
       {"model.layers.0.self_attn.q_norm.weight", "model.layers.0.self_attn.q_proj.bias",
        "vision_tower.x.weight", "score.weight", "model.layers.0.mlp.gate_proj.weight_scale"}) {
    CHECK(refused(ErrorCode::config, [&](SmallFolder& m) { m.tensors[extra] = {{8}}; }).tensor == extra);
  }
  // Layers that exist beyond the configuration's, or a hole among them.
  CHECK(refused(ErrorCode::config, [](SmallFolder& m) {
          m.tensors["model.layers.2.input_layernorm.weight"] = {{8}};
        }).key == "num_hidden_layers");

  const Checkpoint harmless = opened([](SmallFolder& m) {
    m.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = {{2}};
    m.tensors["model.something_else"] = {{2}};
  });
  REQUIRE(harmless.warnings().size() == 1);
  CHECK(contains(harmless.warnings()[0], "model.something_else"));
}

TEST_CASE("Family: biases are those of the configuration, or in GGUF those of the file") {
  const Checkpoint folder = opened([](SmallFolder& m) {
    m.config["attention_bias"] = true;
    for (int i = 0; i < 2; ++i) {
      const std::string attention = fmt::format("model.layers.{}.self_attn.", i);
      m.tensors[attention + "q_proj.bias"] = m.tensors[attention + "o_proj.bias"] = {{8}};
      m.tensors[attention + "k_proj.bias"] = m.tensors[attention + "v_proj.bias"] = {{4}};
    }
  });
  CHECK(folder.has_slot("layers.1.attn.o.bias"));
  CHECK_FALSE(folder.has_slot("layers.1.mlp.up.bias"));
  const Checkpoint gguf = opened_gguf([](SmallGguf& m) { m.tensors["blk.1.attn_q.bias"] = {{8}}; });
  CHECK(gguf.has_slot("layers.1.attn.q.bias"));
  CHECK_FALSE(gguf.has_slot("layers.0.attn.q.bias"));
}

TEST_CASE("Family: the window of Mistral and the windows of Qwen follow their rules") {
  const auto window = [](const char* type, const json& fields, std::size_t layer) {
    const Checkpoint model = opened([&](SmallFolder& m) {
      m.config["model_type"] = type;
      m.config.update(fields);
      if (std::string(type) == "qwen2") {
        for (int i = 0; i < 2; ++i) {
          const std::string attention = fmt::format("model.layers.{}.self_attn.", i);
          m.tensors[attention + "q_proj.bias"] = {{8}};
          m.tensors[attention + "k_proj.bias"] = m.tensors[attention + "v_proj.bias"] = {{4}};
        }
      }
    });
    return model.spec().layers[layer].attn.window;
  };
  CHECK(window("mistral", {{"sliding_window", 16}}, 0) == 16);
  CHECK(window("mistral", {{"sliding_window", nullptr}}, 0) == 0);
  CHECK(window("mistral", json::object(), 1) == 4096);
  CHECK(window("qwen2", {{"sliding_window", 16}}, 1) == 0);
  CHECK(window("qwen2", {{"sliding_window", 16}, {"use_sliding_window", true}, {"max_window_layers", 1}},
               0) == 0);
  CHECK(window("qwen2", {{"sliding_window", 16}, {"use_sliding_window", true}, {"max_window_layers", 1}},
               1) == 16);
  const json types = {"sliding_attention", "full_attention"};
  CHECK(window("qwen2", {{"sliding_window", 16}, {"use_sliding_window", true}, {"layer_types", types}}, 0) ==
        16);

  for (const json& wrong :
       {json{{"layer_types", {"full_attention"}}}, json{{"layer_types", {"full_attention", "chunked"}}},
        json{{"layer_types", types}}, json{{"layer_types", "full"}}}) {
    CAPTURE(wrong.dump());
    refusal([&] { window("qwen2", wrong, 0); }, ErrorCode::config);
  }
  refusal([&] { window("mistral", {{"layer_types", types}}, 0); }, ErrorCode::config);
}

TEST_CASE("Family: without a model_type the architecture tells, and a part of a larger model is found") {
  const Checkpoint named = opened([](SmallFolder& m) {
    m.config.erase("model_type");
    m.config["architectures"] = {"Unheard", "LlamaForCausalLM"};
  });
  CHECK(named.family() == "llama");
  CHECK(
      refusal([] { opened([](SmallFolder& m) { m.config.erase("model_type"); }); }, ErrorCode::config).key ==
      "model_type");

  for (const char* prefix : {"language_model.model.", "model.language_model.", ""}) {
    CAPTURE(prefix);
    const Checkpoint part = opened([&](SmallFolder& m) {
      Tensors renamed;
      for (const auto& [name, tensor] : m.tensors) renamed[prefix + name.substr(6)] = tensor;
      m.tensors = renamed;
    });
    CHECK(part.sites()[0].native == std::string(prefix) + "layers.0.input_layernorm.weight");
  }
}

TEST_CASE("Family: a Gemma for images and text is read where only the text is stored") {
  const auto gemma = [](SmallFolder& m) {
    for (int i = 0; i < 2; ++i) {
      const std::string layer = fmt::format("model.layers.{}.", i);
      for (const char* norm : {"pre_feedforward_layernorm", "post_feedforward_layernorm"}) {
        m.tensors[layer + norm + ".weight"] = {{8}};
      }
      m.tensors[layer + "self_attn.q_norm.weight"] = m.tensors[layer + "self_attn.k_norm.weight"] = {{4}};
    }
    json text = m.config;
    text["model_type"] = "gemma3_text";
    text["head_dim"] = 4;
    text["sliding_window"] = 16;
    text["sliding_window_pattern"] = 2;
    m.config = {{"model_type", "gemma3"}, {"text_config", text}};
  };
  const Checkpoint model = opened(gemma);
  CHECK(model.family() == "gemma3");
  CHECK(model.sites()[0].offset == 1.0);
  CHECK(model.sites()[0].parametrisation == Parametrisation::offset);
  CHECK(model.spec().layers[0].attn.window == 16);
  CHECK(model.spec().layers[1].attn.window == 0);
  CHECK(model.spec().layers[0].attn.scale == 1.0 / 16.0);
  std::string message;
  refusal(
      [&] {
        opened([&](SmallFolder& m) {
          gemma(m);
          m.tensors["vision_tower.encoder.layers.0.layer_norm1.weight"] = {{8}};
        });
      },
      ErrorCode::config, &message);
  CHECK(contains(message, "only models of text are read"));
  const ErrorFields fields = refusal(
      [&] {
        opened([&](SmallFolder& m) {
          gemma(m);
          m.config["text_config"]["rms_norm_eps"] = -1;
        });
      },
      ErrorCode::config);
  CHECK(fields.key == "text_config.rms_norm_eps");
}
