// config.json of our own models: exact both ways, readable, and refused where it is anything else.
#include <cmath>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <scalevec/core/checkpoint/json.h>
#include <scalevec/core/checkpoint/own_model.h>
#include <scalevec/core/checkpoint/write_model.h>
#include <scalevec/core/error.h>
#include <scalevec/core/strategy.h>

#include "errors.h"
#include "model_folder.h"

using namespace scalevec;
using namespace scalevec::testing;
using nlohmann::json;
using nlohmann::ordered_json;

namespace {

const std::vector<std::string> words = {"standard", "removal",   "hg",       "hg[q,k]",    "ap",
                                        "dp[v,up]", "hg+dnp[v]", "or",       "er-input",   "hg+dnp+or",
                                        "unified",  "hg+dnp+er", "or-input", "dp[o,down]", "gemma",
                                        "ap+er",    "hg+dp+or"};

// Compared field by field, so that nothing is judged by what the code under test wrote.
void check_equal(const NormSpec& a, const NormSpec& b) {
  CHECK(a.statistics == b.statistics);
  CHECK(a.eps == b.eps);
  CHECK(a.group == b.group);
  CHECK(a.width == b.width);
  CHECK(a.parametrisation == b.parametrisation);
  CHECK(a.offset == b.offset);
  CHECK(a.bias == b.bias);
}

void check_equal(const std::optional<NormSpec>& a, const std::optional<NormSpec>& b) {
  REQUIRE(a.has_value() == b.has_value());
  if (a) check_equal(*a, *b);
}

void check_equal(const LinearSpec& a, const LinearSpec& b) {
  CHECK(a.in == b.in);
  CHECK(a.out == b.out);
  CHECK(a.bias == b.bias);
  CHECK(a.own_vector == b.own_vector);
  check_equal(a.output, b.output);
}

void check_equal(const RopeSpec& a, const RopeSpec& b) {
  CHECK(a.base == b.base);
  CHECK(a.dimensions == b.dimensions);
  CHECK(a.pairing == b.pairing);
  CHECK(a.scaling == b.scaling);
  CHECK(a.factor == b.factor);
  CHECK(a.low_freq_factor == b.low_freq_factor);
  CHECK(a.high_freq_factor == b.high_freq_factor);
  CHECK(a.beta_fast == b.beta_fast);
  CHECK(a.beta_slow == b.beta_slow);
  CHECK(a.attention_factor == b.attention_factor);
  CHECK(a.original_context == b.original_context);
}

void check_equal(const LayerSpec& a, const LayerSpec& b) {
  check_equal(a.attn_input, b.attn_input);
  check_equal(a.attn_output, b.attn_output);
  check_equal(a.mlp_input, b.mlp_input);
  check_equal(a.mlp_output, b.mlp_output);
  CHECK(a.attn.heads == b.attn.heads);
  CHECK(a.attn.kv_heads == b.attn.kv_heads);
  CHECK(a.attn.head_dim == b.attn.head_dim);
  CHECK(a.attn.scale == b.attn.scale);
  CHECK(a.attn.window == b.attn.window);
  check_equal(a.attn.rope, b.attn.rope);
  check_equal(a.attn.q, b.attn.q);
  check_equal(a.attn.k, b.attn.k);
  check_equal(a.attn.v, b.attn.v);
  check_equal(a.attn.o, b.attn.o);
  CHECK(a.mlp.activation == b.mlp.activation);
  check_equal(a.mlp.gate, b.mlp.gate);
  check_equal(a.mlp.up, b.mlp.up);
  check_equal(a.mlp.down, b.mlp.down);
  REQUIRE(a.mlp.mixture.has_value() == b.mlp.mixture.has_value());
  if (!a.mlp.mixture) return;
  CHECK(a.mlp.mixture->experts == b.mlp.mixture->experts);
  CHECK(a.mlp.mixture->active == b.mlp.mixture->active);
  CHECK(a.mlp.mixture->renormalise == b.mlp.mixture->renormalise);
  check_equal(a.mlp.mixture->router, b.mlp.mixture->router);
  check_equal(a.mlp.mixture->gate, b.mlp.mixture->gate);
  check_equal(a.mlp.mixture->up, b.mlp.mixture->up);
  check_equal(a.mlp.mixture->down, b.mlp.mixture->down);
}

void check_equal(const ModelSpec& a, const ModelSpec& b) {
  CHECK(a.family == b.family);
  CHECK(a.vocabulary == b.vocabulary);
  CHECK(a.width == b.width);
  CHECK(a.context == b.context);
  CHECK(a.embedding_scale == b.embedding_scale);
  REQUIRE(a.layers.size() == b.layers.size());
  for (std::size_t i = 0; i < a.layers.size(); ++i) check_equal(a.layers[i], b.layers[i]);
  check_equal(a.final_norm, b.final_norm);
  CHECK(a.tied_head == b.tied_head);
  check_equal(a.head, b.head);
}

ModelSpec read(const std::string& text) {
  return spec_from_json(parse_json(text, "config.json"), "config.json");
}

ModelSpec spec_of(std::string_view strategy) {
  return make_spec({.vocabulary = 32, .width = 16, .layers = 3, .head_dim = 8, .context = 64},
                   Strategy::parse(strategy));
}

// Everything that the format has: three kinds of scaling, a mixture, biases, offsets, layers that differ.
ModelSpec rich() {
  ModelSpec spec = spec_of("hg+dnp+or");
  spec.embedding_scale = 1.0 / 3.0;
  spec.tied_head = true;
  RopeSpec& linear = spec.layers[0].attn.rope;
  linear.scaling = RopeSpec::Scaling::linear, linear.factor = 2.5;
  RopeSpec& llama3 = spec.layers[1].attn.rope;
  llama3.scaling = RopeSpec::Scaling::llama3, llama3.factor = 8, llama3.low_freq_factor = 1.5;
  llama3.high_freq_factor = 3.7, llama3.original_context = 32,
  llama3.pairing = RopeSpec::Pairing::interleaved;
  RopeSpec& yarn = spec.layers[2].attn.rope;
  yarn.scaling = RopeSpec::Scaling::yarn, yarn.factor = 4, yarn.beta_fast = 31, yarn.beta_slow = 1.25;
  yarn.attention_factor = 1.1, yarn.original_context = 16;
  spec.layers[1].attn_output = NormSpec{.statistics = Statistics::layer,
                                        .eps = 1e-6,
                                        .group = 16,
                                        .width = 16,
                                        .parametrisation = Parametrisation::offset,
                                        .offset = 1.0,
                                        .bias = true};
  spec.layers[2].mlp_input.reset();
  spec.layers[2].mlp.activation = Activation::gelu_tanh;
  spec.layers[2].attn.window = 7;
  spec.layers[0].mlp.down.bias = true;
  const auto map = [](std::int64_t in, std::int64_t out) {
    return LinearSpec{.in = in, .out = out, .output = {}};
  };
  spec.layers[1].mlp.mixture = MixtureSpec{.experts = 4,
                                           .active = 2,
                                           .renormalise = false,
                                           .router = map(16, 4),
                                           .gate = map(16, 5),
                                           .up = map(16, 5),
                                           .down = map(5, 16)};
  return spec;
}

// Every place of the value, as a JSON pointer.
void collect(const json& value, const json::json_pointer& at, std::vector<json::json_pointer>& out) {
  if (!at.empty()) out.push_back(at);
  if (!value.is_structured()) return;
  for (const auto& [key, member] : value.items()) {
    collect(member, value.is_object() ? at / key : at / static_cast<std::size_t>(std::stoul(key)), out);
  }
}

// "layers[1].layer.attn.q" as refusals name it, of "/layers/1/layer/attn/q".
std::string place_of(const json::json_pointer& at) {
  std::string out;
  for (json::json_pointer rest = at; !rest.empty(); rest.pop_back()) {
    const std::string& part = rest.back();
    const bool number = part.find_first_not_of("0123456789") == std::string::npos;
    const std::string before = number ? "[" + part + "]" : (rest.parent_pointer().empty() ? "" : ".") + part;
    out = before + out;
  }
  return out;
}

}  // namespace

TEST_CASE("own model: every preset and strategy comes back from its text, field for field") {
  for (const Preset& preset : presets()) {
    for (const std::string& word : words) {
      CAPTURE(preset.name);
      CAPTURE(word);
      const ModelSpec spec = make_spec(preset.shape, Strategy::parse(word));
      check_equal(spec, read(own_config_text(spec)));
    }
  }
  ModelShape odd{.eps = 1e-7, .rope_base = 123456.789, .tied_head = true};
  odd.kv_heads = 3;
  check_equal(make_spec(odd, {}), read(own_config_text(make_spec(odd, {}))));
  check_equal(rich(), read(own_config_text(rich())));
}

TEST_CASE("own model: a person can read it") {
  const ModelSpec spec = make_spec(find_preset("1B").shape, Strategy::parse("unified"));
  const std::string text = own_config_text(spec);
  CHECK(std::count(text.begin(), text.end(), '\n') < 100);  // 22 equal layers stand once
  CHECK(contains(text, "\"count\": 22,"));
  CHECK(contains(text, "\n  \"vocabulary\": 50304,\n  \"width\": 1792,\n"));
  const json rich_config = json::parse(own_config_text(rich()));
  CHECK(rich_config["layers"].size() == 3);
  ModelSpec mended = rich();
  mended.layers[1] = mended.layers[0];
  CHECK(json::parse(own_config_text(mended))["layers"][0]["count"] == 2);
}

TEST_CASE("own model: every field is needed, and of its type") {
  const json config = json::parse(own_config_text(rich()));
  std::vector<json::json_pointer> places;
  collect(config, json::json_pointer(), places);
  CHECK(places.size() > 300);
  for (const json::json_pointer& at : places) {
    CAPTURE(at.to_string());
    const auto refused = [](const json& changed) {
      const ErrorFields fields = refusal([&] { spec_from_json(changed, "c.json"); }, ErrorCode::config);
      CHECK(fields.file == "c.json");
      CHECK(!fields.expected.empty());
      CHECK(!fields.found.empty());
      return fields;
    };
    const json& value = config.at(at);
    const std::string place = place_of(at), name = at.back();
    if (!config.at(at.parent_pointer()).is_array()) {
      json dropped = config;
      dropped.at(at.parent_pointer()).erase(name);
      const ErrorFields fields = refused(dropped);
      CHECK(fields.key == place);
      CHECK(fields.found == "nothing");
    }
    for (const json& other : {json::array({1}), json("words"), json(""), json(1e300), json(-1), json(true),
                              json::object(), json()}) {
      const bool both_numbers = value.is_number() && other.is_number(), same = value.type() == other.type();
      if (both_numbers || (same && !value.is_string())) continue;  // of the right type
      CAPTURE(other.dump());
      json changed = config;
      changed.at(at) = other;
      if (other.is_null() && (name.ends_with("put") || name == "final_norm" || name == "mixture")) {
        CHECK_NOTHROW(spec_from_json(changed, "c.json"));
        continue;
      }
      const std::string key = refused(changed).key;
      CHECK((key == place || (other.is_object() && key.starts_with(place + "."))));
    }
    if (value.is_object()) {
      json more = config;
      more.at(at)["colour"] = 1;
      const ErrorFields fields = refused(more);
      CHECK(fields.key == place + ".colour");
      CHECK(fields.expected == "no such field");
      CHECK(fields.found == "1");
    }
  }
}

TEST_CASE("own model: numbers out of range and words that are none") {
  struct Row {
    const char* at;
    json value;
    std::string expected, found;
  };
  const std::string layer = "/layers/1/layer/";
  const Row rows[] = {
      {"/schema", 2, "1", "2"},
      {"/schema", 0, "an integer from 1 to 2147483647", "0"},
      {"/model_type", "llama", "scalevec", "\"llama\""},
      {"/vocabulary", 0, "an integer from 1 to 2147483648", "0"},
      {"/vocabulary", 1.5, "an integer from 1 to 2147483648", "1.5"},
      {"/width", 16777217, "an integer from 1 to 16777216", "16777217"},
      {"/context", -1, "an integer from 1 to 2147483648", "-1"},
      {"/layers/0/count", 0, "an integer from 1 to 10000", "0"},
      {"/layers/0/count", 10001, "an integer from 1 to 10000", "10001"},
      {"/final_norm/eps", -1e-9, "a number from 0 to 1", "-1e-09"},
      {"/final_norm/statistics", "batch", "rms, layer, none", "\"batch\""},
      {"/final_norm/parametrisation", "or", "plain, offset, magnitude_direction, exponential", "\"or\""},
      {"/layers/1/layer/attn/heads", 0, "an integer from 1 to 16777216", "0"},
      {"/layers/1/layer/attn/window", -1, "an integer from 0 to 2147483648", "-1"},
      {"/layers/1/layer/attn/rope/pairing", "thirds", "halves, interleaved", "\"thirds\""},
      {"/layers/1/layer/attn/rope/scaling", "ntk", "none, linear, llama3, yarn", "\"ntk\""},
      {"/layers/1/layer/attn/q/in", -1, "an integer from 0 to 16777216", "-1"},
      {"/layers/1/layer/mlp/activation", "relu", "silu, gelu_tanh", "\"relu\""},
      {"/layers/1/layer/mlp/mixture/active", 0, "an integer from 1 to 16777216", "0"},
  };
  for (const Row& row : rows) {
    const json::json_pointer at(row.at);
    CAPTURE(row.at);
    json config = json::parse(own_config_text(rich()));
    config.at(at) = row.value;
    const ErrorFields fields = row_refusal([&] { spec_from_json(config, "c.json"); }, ErrorCode::config);
    check_fields(fields,
                 {.file = "c.json", .key = place_of(at), .expected = row.expected, .found = row.found});
  }
  // Many layers in many runs.
  json config = json::parse(own_config_text(rich()));
  config["layers"][0]["count"] = config["layers"][1]["count"] = 5000;
  refusal([&] { spec_from_json(config, "c.json"); }, ErrorCode::config);
  config["layers"][1]["count"] = 4999;
  CHECK(spec_from_json(config, "c.json").layers.size() == 10000);
}

TEST_CASE("own model: what cannot be read is not written") {
  ModelSpec spec = spec_of("standard");
  spec.family = "llama";
  CHECK(refusal([&] { own_config_text(spec); }, ErrorCode::config).key == "family");
  spec = spec_of("standard");
  spec.final_norm->eps = std::numeric_limits<double>::quiet_NaN();
  CHECK(refusal([&] { own_config_text(spec); }, ErrorCode::config).key == "final_norm.eps");
  spec = spec_of("standard");
  spec.layers[1].attn.rope.factors_tensor = "rope_factors";
  CHECK(refusal([&] { own_config_text(spec); }, ErrorCode::config).key == "factors_tensor");
}

namespace {

// Tensors of a spec as float32 or float64, each entry a function of its slot and place.
NewModel model_of(const ModelSpec& spec, DType vectors = DType::f32) {
  NewModel model{.config = own_config_text(spec), .tensors = {}, .metadata = {{"note", "kept"}}, .files = {}};
  for (const auto& [slot, shape] : spec.tensor_slots()) {
    const bool vector = shape.size() == 1;
    const DType dtype = vector ? vectors : DType::bf16;
    std::uint64_t count = 1;
    for (const std::int64_t size : shape) count *= static_cast<std::uint64_t>(size);
    model.tensors.push_back(
        {.name = slot,
         .dtype = dtype,
         .shape = {shape.begin(), shape.end()},
         .write = [slot = slot, dtype, count](const NewTensor::Put& put) {
           std::vector<std::byte> bytes(scale_dtype_bytes(dtype));
           for (std::uint64_t i = 0; i < count; ++i) {
             encode(dtype, slot.ends_with(".beta") ? 0.75 : 0.5 + 0.125 * static_cast<double>(i % 9), bytes);
             put(bytes);
           }
         }});
  }
  return model;
}

}  // namespace

TEST_CASE("own model: a folder is written, opened, and its vectors composed") {
  for (const std::string& word : words) {
    CAPTURE(word);
    const TemporaryFolder folder;
    const ModelSpec spec = spec_of(word);
    const WrittenModel written = write_model(folder.path() / "m", model_of(spec, DType::f64));
    CHECK(written.files == 2);
    const Checkpoint model = Checkpoint::open(folder.path() / "m");
    check_equal(spec, model.spec());
    CHECK(model.family() == "scalevec");
    CHECK(model.container() == Container::safetensors);
    CHECK(model.warnings().empty());
    CHECK(metadata_of(model.files()) ==
          std::map<std::string, std::string>{{"format", "pt"}, {"note", "kept"}});
    for (const Site& site : model.sites()) {
      CAPTURE(site.address.str());
      const std::vector<double> g = model.effective(site);
      REQUIRE(static_cast<std::int64_t>(g.size()) == site.width);
      // The defining identities (arXiv 2605.26895, section 4): rms(g) = |beta|, mean(log g) = beta, and the
      // direction alpha.
      double squares = 0.0, logs = 0.0;
      const auto n = static_cast<double>(g.size());
      for (const double value : g) squares += value * value / n, logs += std::log(value) / n;
      const double first = g[1] / g[0], stored = (0.5 + 0.125) / 0.5;
      switch (site.parametrisation) {
        case Parametrisation::magnitude_direction:
          CHECK(site.native == site.address.str() + ".alpha");
          CHECK(std::sqrt(squares) == doctest::Approx(0.75).epsilon(1e-14));
          CHECK(first == doctest::Approx(stored).epsilon(1e-14));
          break;
        case Parametrisation::exponential:
          CHECK(logs == doctest::Approx(0.75).epsilon(1e-14));
          CHECK(first == doctest::Approx(std::exp(0.125)).epsilon(1e-14));
          break;
        default:
          CHECK(site.native == site.address.str() + ".weight");
          CHECK(g[0] == 0.5);
          CHECK(g[1] == 0.625);
      }
    }
  }
}

TEST_CASE("own model: the digest of a vector with components is of alpha and beta") {
  const TemporaryFolder folder;
  ModelSpec spec = spec_of("or");
  write_model(folder.path() / "a", model_of(spec));
  NewModel other = model_of(spec);
  for (NewTensor& tensor : other.tensors) {
    if (!tensor.name.ends_with(".beta")) continue;
    tensor.write = [](const NewTensor::Put& put) {
      std::vector<std::byte> bytes(4);
      encode(DType::f32, 0.5, bytes);
      put(bytes);
    };
  }
  write_model(folder.path() / "b", other);
  const Checkpoint a = Checkpoint::open(folder.path() / "a"), b = Checkpoint::open(folder.path() / "b");
  const Site& site = a.sites()[0];
  CHECK(a.digest(site) != b.digest(site));
  std::vector<std::byte> bytes = a.read(a.slot(site.address.str() + ".alpha"));
  const std::vector<std::byte> beta = a.read(a.slot(site.address.str() + ".beta"));
  bytes.insert(bytes.end(), beta.begin(), beta.end());
  CHECK(a.digest(site) == vector_digest(DType::f32, site.width, 0.0, bytes));
}

TEST_CASE("own model: tensors and configuration must be of one model") {
  const TemporaryFolder folder;
  const auto attempt = [&](auto&& change, ErrorCode code) {
    NewModel model = model_of(spec_of("or"));
    change(model);
    std::string message;
    const ErrorFields fields = refusal([&] { write_model(folder.path() / "m", model); }, code, &message);
    CHECK(!std::filesystem::exists(folder.path() / "m"));
    return fields;
  };
  const auto named = [](NewModel& model, const std::string& name) -> NewTensor& {
    for (NewTensor& tensor : model.tensors) {
      if (tensor.name == name) return tensor;
    }
    throw std::runtime_error(name);
  };
  const std::string alpha = "layers.1.mlp.input_norm.alpha", beta = "layers.1.mlp.input_norm.beta";
  CHECK(attempt([&](NewModel& m) { named(m, beta).name += "x"; }, ErrorCode::config).tensor == beta);
  CHECK(attempt([&](NewModel& m) { named(m, alpha).shape = {4, 4}; }, ErrorCode::shape).tensor == alpha);
  CHECK(attempt([&](NewModel& m) { named(m, "final_norm.alpha").shape = {15}; }, ErrorCode::size).tensor ==
        "final_norm.alpha");
  const std::string extra = "layers.0.attn.v.output_scale.alpha";
  CHECK(attempt(
            [&](NewModel& m) {
              m.tensors.push_back(named(m, alpha));
              m.tensors.back().name = extra;
            },
            ErrorCode::config)
            .tensor == extra);
  attempt([&](NewModel& m) { m.config = "{}"; }, ErrorCode::config);
  attempt([&](NewModel& m) { m.files["../tokenizer.json"] = "{}"; }, ErrorCode::path);
  // A folder that holds something is never touched.
  std::filesystem::create_directory(folder.path() / "m");
  write_file(folder.path() / "m" / "mine", "mine");
  refusal([&] { write_model(folder.path() / "m", model_of(spec_of("or"))); }, ErrorCode::path);
  CHECK(std::filesystem::file_size(folder.path() / "m" / "mine") == 4);
}
