#include <scalevec/core/checkpoint/own_model.h>

#include <algorithm>
#include <array>
#include <limits>
#include <span>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <scalevec/core/checkpoint/config_reader.h>
#include <scalevec/core/checkpoint/json.h>
#include <scalevec/core/error.h>

namespace scalevec {
namespace {

using nlohmann::json;

constexpr std::int64_t schema = 1;
constexpr std::int64_t most_layers = 10000;
constexpr std::int64_t most_width = std::int64_t{1} << 24;
constexpr std::int64_t most_vocabulary = std::int64_t{1} << 31;
constexpr double largest = std::numeric_limits<double>::max();

template <class Value>
using Words = std::span<const std::pair<std::string_view, Value>>;

constexpr std::array<std::pair<std::string_view, Statistics>, 3> statistics_words{
    {{"rms", Statistics::rms}, {"layer", Statistics::layer}, {"none", Statistics::none}}};
constexpr std::array<std::pair<std::string_view, Parametrisation>, 4> forms{
    {{"plain", Parametrisation::plain},
     {"offset", Parametrisation::offset},
     {"magnitude_direction", Parametrisation::magnitude_direction},
     {"exponential", Parametrisation::exponential}}};
constexpr std::array<std::pair<std::string_view, RopeSpec::Pairing>, 2> pairings{
    {{"halves", RopeSpec::Pairing::halves}, {"interleaved", RopeSpec::Pairing::interleaved}}};
constexpr std::array<std::pair<std::string_view, RopeSpec::Scaling>, 4> scalings{
    {{"none", RopeSpec::Scaling::none},
     {"linear", RopeSpec::Scaling::linear},
     {"llama3", RopeSpec::Scaling::llama3},
     {"yarn", RopeSpec::Scaling::yarn}}};
constexpr std::array<std::pair<std::string_view, Activation>, 2> activations{
    {{"silu", Activation::silu}, {"gelu_tanh", Activation::gelu_tanh}}};

// What a spec consists of, said once for both ways: Fields is a Writer or a Reader.
template <class Fields>
void visit(Fields& fields, NormSpec& norm) {
  fields.word("statistics", norm.statistics, Words<Statistics>(statistics_words));
  fields.number("eps", norm.eps, 0.0, 1.0);
  fields.integer("group", norm.group, 1, most_vocabulary);
  fields.integer("width", norm.width, 0, most_vocabulary);
  fields.word("parametrisation", norm.parametrisation, Words<Parametrisation>(forms));
  fields.number("offset", norm.offset, -largest, largest);
  fields.flag("bias", norm.bias);
}

template <class Fields>
void visit(Fields& fields, LinearSpec& map) {
  fields.integer("in", map.in, 0, most_width);  // 0: the MLP beside a mixture that shares no expert
  fields.integer("out", map.out, 0, most_vocabulary);
  fields.flag("bias", map.bias);
  fields.flag("own_vector", map.own_vector);
  fields.optional("output", map.output);
}

template <class Fields>
void visit(Fields& fields, RopeSpec& rope) {
  using Scaling = RopeSpec::Scaling;
  fields.number("base", rope.base, std::numeric_limits<double>::min(), largest);
  fields.integer("dimensions", rope.dimensions, 0, most_width);
  fields.word("pairing", rope.pairing, Words<RopeSpec::Pairing>(pairings));
  fields.word("scaling", rope.scaling, Words<Scaling>(scalings));
  if (rope.scaling == Scaling::none) return;
  fields.number("factor", rope.factor, std::numeric_limits<double>::min(), largest);
  if (rope.scaling == Scaling::llama3) {
    fields.number("low_freq_factor", rope.low_freq_factor, 0.0, largest);
    fields.number("high_freq_factor", rope.high_freq_factor, 0.0, largest);
  }
  if (rope.scaling == Scaling::yarn) {
    fields.number("beta_fast", rope.beta_fast, 0.0, largest);
    fields.number("beta_slow", rope.beta_slow, 0.0, largest);
    fields.number("attention_factor", rope.attention_factor, 0.0, largest);
  }
  if (rope.scaling != Scaling::linear)
    fields.integer("original_context", rope.original_context, 1, most_vocabulary);
}

template <class Fields>
void visit(Fields& fields, AttentionSpec& attn) {
  fields.integer("heads", attn.heads, 1, most_width);
  fields.integer("kv_heads", attn.kv_heads, 1, most_width);
  fields.integer("head_dim", attn.head_dim, 1, most_width);
  fields.number("scale", attn.scale, std::numeric_limits<double>::min(), largest);
  fields.integer("window", attn.window, 0, most_vocabulary);
  fields.object("rope", attn.rope);
  fields.object("q", attn.q);
  fields.object("k", attn.k);
  fields.object("v", attn.v);
  fields.object("o", attn.o);
}

template <class Fields>
void visit(Fields& fields, MixtureSpec& mixture) {
  fields.integer("experts", mixture.experts, 1, most_width);
  fields.integer("active", mixture.active, 1, most_width);
  fields.flag("renormalise", mixture.renormalise);
  fields.object("router", mixture.router);
  fields.object("gate", mixture.gate);
  fields.object("up", mixture.up);
  fields.object("down", mixture.down);
}

template <class Fields>
void visit(Fields& fields, MlpSpec& mlp) {
  fields.word("activation", mlp.activation, Words<Activation>(activations));
  fields.object("gate", mlp.gate);
  fields.object("up", mlp.up);
  fields.object("down", mlp.down);
  fields.optional("mixture", mlp.mixture);
}

template <class Fields>
void visit(Fields& fields, LayerSpec& layer) {
  fields.optional("attn_input", layer.attn_input);
  fields.object("attn", layer.attn);
  fields.optional("attn_output", layer.attn_output);
  fields.optional("mlp_input", layer.mlp_input);
  fields.object("mlp", layer.mlp);
  fields.optional("mlp_output", layer.mlp_output);
}

// Layers that are equal and follow each other.
struct Run {
  std::int64_t count = 1;
  LayerSpec layer;
};

template <class Fields>
void visit(Fields& fields, Run& run) {
  fields.integer("count", run.count, 1, most_layers);
  fields.object("layer", run.layer);
}

template <class Fields>
void visit(Fields& fields, ModelSpec& spec) {
  fields.constant("model_type", own_family);
  fields.version("schema", schema);
  fields.integer("vocabulary", spec.vocabulary, 1, most_vocabulary);
  fields.integer("width", spec.width, 1, most_width);
  fields.integer("context", spec.context, 1, most_vocabulary);
  fields.number("embedding_scale", spec.embedding_scale, -largest, largest);
  fields.runs("layers", spec.layers);
  fields.optional("final_norm", spec.final_norm);
  fields.flag("tied_head", spec.tied_head);
  fields.object("head", spec.head);
}

// JSON on one line, and its members, for who would rather have a line for each.
struct Text {
  std::string line;
  char open = 0;                                      // { or [
  std::vector<std::pair<std::string, Text>> members;  // with what stands before them: "key": , or nothing
};

Text structure(char open, std::vector<std::pair<std::string, Text>> members) {
  Text out{std::string(1, open), open, std::move(members)};
  for (const auto& [key, member] : out.members) {
    if (out.line.size() > 1) out.line += ", ";
    out.line += key + member.line;
  }
  out.line += open == '{' ? '}' : ']';
  return out;
}

class Writer {
 public:
  template <class Spec>
  static Text write(const Spec& spec) {
    Spec copy = spec;
    Writer writer;
    visit(writer, copy);
    return structure('{', std::move(writer.members_));
  }

  void integer(const char* key, std::int64_t value, std::int64_t, std::int64_t) {
    add(key, {fmt::format("{}", value), 0, {}});
  }
  void number(const char* key, double value, double, double) { add(key, {json_number(value), 0, {}}); }
  void flag(const char* key, bool value) { add(key, {value ? "true" : "false", 0, {}}); }
  void constant(const char* key, std::string_view value) { add(key, {json_quoted(value), 0, {}}); }
  void version(const char* key, std::int64_t value) { integer(key, value, 0, 0); }

  template <class Value>
  void word(const char* key, Value value, Words<Value> words) {
    for (const auto& [name, each] : words) {
      if (each == value) constant(key, name);
    }
  }

  template <class Spec>
  void object(const char* key, const Spec& spec) {
    add(key, write(spec));
  }
  template <class Spec>
  void optional(const char* key, const std::optional<Spec>& spec) {
    add(key, spec ? write(*spec) : Text{"null", 0, {}});
  }

  void runs(const char* key, const std::vector<LayerSpec>& layers) {
    std::vector<std::pair<std::string, Text>> list;
    std::string last;
    std::int64_t count = 0;
    for (const LayerSpec& layer : layers) {
      std::string line = write(layer).line;
      count = line == last ? count + 1 : 1;
      if (count > 1) list.pop_back();
      list.emplace_back("", write(Run{count, layer}));
      last = std::move(line);
    }
    add(key, structure('[', std::move(list)));
  }

 private:
  void add(const char* key, Text text) { members_.emplace_back(json_quoted(key) + ": ", std::move(text)); }

  std::vector<std::pair<std::string, Text>> members_;
};

class Reader {
 public:
  template <class Spec>
  static void read(const ConfigReader& config, Spec& spec) {
    Reader reader(config);
    visit(reader, spec);
    for (const auto& [key, value] : config.values().items()) {
      if (std::find(reader.seen_.begin(), reader.seen_.end(), key) == reader.seen_.end())
        config.refuse(key, "the field is unknown", "no such field");
    }
  }

  void integer(const char* key, std::int64_t& value, std::int64_t least, std::int64_t most) {
    value = see(key).integer(key, least, most);
  }
  void number(const char* key, double& value, double least, double most) {
    value = see(key).number(key, least, most);
  }
  void flag(const char* key, bool& value) {
    const json& found = see(key).value(key);
    if (!found.is_boolean()) config_.refuse(key, "it is neither true nor false", "true or false");
    value = found.get<bool>();
  }
  void constant(const char* key, std::string_view value) {
    if (see(key).text(key) != value) config_.refuse(key, "it is another model's", std::string(value));
  }
  void version(const char* key, std::int64_t value) {
    if (see(key).integer(key, 1, std::numeric_limits<std::int32_t>::max()) != value) {
      config_.refuse(key, "a newer version of scalevec wrote it", fmt::format("{}", value));
    }
  }

  template <class Value>
  void word(const char* key, Value& value, Words<Value> words) {
    const std::string found = see(key).text(key);
    std::vector<std::string_view> names;
    for (const auto& [name, each] : words) {
      names.push_back(name);
      if (name == found) {
        value = each;
        return;
      }
    }
    config_.refuse(key, "it is none of the words known here", fmt::format("{}", fmt::join(names, ", ")));
  }

  template <class Spec>
  void object(const char* key, Spec& spec) {
    read(see(key).object(key), spec);
  }
  template <class Spec>
  void optional(const char* key, std::optional<Spec>& spec) {
    if (see(key).value(key).is_null()) return;
    read(config_.object(key), spec.emplace());
  }

  void runs(const char* key, std::vector<LayerSpec>& layers) {
    const json& list = see(key).value(key);
    if (!list.is_array()) config_.refuse(key, "it is no list", "a list of layers, each with its count");
    for (std::size_t i = 0; i < list.size(); ++i) {
      const std::string place = fmt::format("{}[{}]", key, i);
      const ConfigReader entry = ConfigReader({{place, list[i]}}, json::object(), config_.file());
      Run run;
      read(entry.object(place), run);
      if (run.count > most_layers - static_cast<std::int64_t>(layers.size())) {
        config_.refuse(key, "there are too many layers", fmt::format("at most {} layers", most_layers));
      }
      layers.insert(layers.end(), static_cast<std::size_t>(run.count), run.layer);
    }
  }

 private:
  explicit Reader(const ConfigReader& config) : config_(config) {}

  const ConfigReader& see(const char* key) {
    seen_.emplace_back(key);
    if (!config_.values().contains(key))
      config_.refuse(key, "the field is missing", "a value, or null for nothing");
    return config_;
  }

  const ConfigReader& config_;
  std::vector<std::string> seen_;
};

// On one line where it fits, else a line for each member.
void print(std::string& out, const Text& text, std::size_t indent) {
  constexpr std::size_t columns = 150;
  if (text.members.empty() || (indent > 0 && indent + text.line.size() <= columns)) {
    out += text.line;
    return;
  }
  out += text.open;
  bool first = true;
  for (const auto& [key, member] : text.members) {
    out += (first ? "\n" : ",\n") + std::string(indent + 2, ' ') + key;
    print(out, member, indent + 2);
    first = false;
  }
  out += "\n" + std::string(indent, ' ') + (text.open == '{' ? '}' : ']');
}

}  // namespace

bool is_own_model(const json& config) {
  const auto found = config.find("model_type");
  return found != config.end() && *found == own_family;
}

std::string own_config_text(const ModelSpec& spec) {
  const auto refuse = [](std::string_view key, std::string_view what, std::string found) {
    fail(ErrorCode::config, fmt::format("writing a model's configuration: {}", what),
         {.key = std::string(key), .found = std::move(found)});
  };
  if (spec.family != own_family) {
    refuse("family", "only models of family scalevec are written so; others keep their own files",
           spec.family);
  }
  for (const LayerSpec& layer : spec.layers) {
    if (!layer.attn.rope.factors_tensor.empty())
      refuse("factors_tensor", "rotary factors of a tensor have no place in it",
             layer.attn.rope.factors_tensor);
  }
  std::string text;
  print(text, Writer::write(spec), 0);
  // JSON has no infinity and no NaN; what cannot be read must not be written.
  spec_from_text(text, "the model to be written");
  return text + "\n";
}

ModelSpec spec_from_text(std::string_view text, const std::string& file) {
  return spec_from_json(parse_json(text, file), file);
}

ModelSpec spec_from_json(const json& config, const std::string& file) {
  ModelSpec spec;
  spec.family = own_family;
  Reader::read(ConfigReader(config, json::object(), file), spec);
  return spec;
}

}  // namespace scalevec
