#include <scalevec/core/checkpoint/family.h>

#include <algorithm>
#include <array>
#include <cmath>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <scalevec/core/checkpoint/config_reader.h>
#include <scalevec/core/checkpoint/own_model.h>
#include <scalevec/core/error.h>

namespace scalevec {
namespace {

std::string known_names(bool gguf) {
  std::vector<std::string_view> names;
  if (!gguf) names.push_back(own_family);
  for (const Family& family : families()) {
    const std::string_view name = gguf ? family.gguf : family.model_type;
    if (!name.empty()) names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return fmt::format("{}", fmt::join(names, ", "));
}

// A mixture of experts has a router between norm and linear maps, which ModelSpec has no place for.
void refuse_experts(const ConfigReader& config) {
  for (const std::string_view key :
       {"num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"}) {
    const nlohmann::json& value = config.value(key);
    if (value.is_number() && value.get<double>() > 1.0) {
      config.refuse(key, "it is a mixture of experts, which is not read yet; only dense models are",
                    "at most 1");
    }
  }
}

}  // namespace

const Family& family_of_config(const nlohmann::json& config, const std::string& file) {
  const ConfigReader reader(config, nlohmann::json::object(), file);
  refuse_experts(reader);
  if (!reader.has("model_type") && reader.value("architectures").is_array()) {
    for (const nlohmann::json& architecture : reader.value("architectures")) {
      for (const Family& family : families()) {
        if (architecture.is_string() && architecture.get<std::string>() == family.architecture) return family;
      }
    }
  }
  const std::string type = reader.text("model_type");
  for (const Family& family : families()) {
    if (type == family.model_type) return family;
  }
  reader.refuse("model_type", "the family is unknown", fmt::format("one of {}", known_names(false)));
}

const Family& family_of_gguf(const GgufFile& file) {
  const std::string architecture(file.architecture());
  for (const Family& family : families()) {
    if (!family.gguf.empty() && architecture == family.gguf) return family;
  }
  fail(ErrorCode::config,
       fmt::format("model configuration: the architecture '{}' is unknown; known are {}",
                   printable(architecture, 60), known_names(true)),
       {.file = file.path().string(),
        .key = "general.architecture",
        .expected = fmt::format("one of {}", known_names(true)),
        .found = printable(architecture, 60)});
}

std::string native_name(const Family& family, const Naming& naming, std::string_view slot) {
  // "layers.12.attn.q.weight" is row "layers.{}.attn.q", layer "12", suffix ".weight".
  std::string_view suffix, layer;
  for (const std::string_view known : {".weight", ".bias"}) {
    if (slot.ends_with(known)) {
      suffix = known;
      slot.remove_suffix(known.size());
    }
  }
  std::string pattern(slot);
  constexpr std::string_view prefix = "layers.";
  if (slot.starts_with(prefix)) {
    layer = slot.substr(prefix.size(), slot.find('.', prefix.size()) - prefix.size());
    pattern.replace(prefix.size(), layer.size(), "{}");
  }
  for (const FamilyRow& row : family.rows) {
    if (row.slot != pattern) continue;
    std::string name(naming.container == Container::gguf ? row.gguf : row.hf);
    if (name.empty()) return name;
    if (const std::size_t at = name.find("{}"); at != std::string::npos) name.replace(at, 2, layer);
    if (naming.container == Container::safetensors) {
      constexpr std::string_view body = "model.";
      name = name.starts_with(body) ? naming.body + name.substr(body.size()) : naming.head + name;
    }
    return name + std::string(suffix);
  }
  return "";
}

std::string address_elsewhere(std::string_view name, std::span<const Site> sites) {
  const std::array namings{Naming{.container = Container::gguf}, Naming{.container = Container::safetensors}};
  const auto bare = [](std::string_view text) {
    if (text.ends_with(".weight")) text.remove_suffix(7);
    return text;
  };
  for (const Family& family : families()) {
    std::string found;
    const bool fits = std::all_of(sites.begin(), sites.end(), [&](const Site& site) {
      if (site.native.empty()) return true;
      bool own = false;
      for (const Naming& naming : namings) {
        const std::string here = native_name(family, naming, site.address.str() + ".weight");
        if (here.empty()) continue;
        // A body of its own stands for "model.".
        own = own || site.native.ends_with(here) || here.ends_with(site.native);
        if (bare(here) == bare(name)) found = site.address.str();
      }
      return own;
    });
    if (fits) return found;  // a family with more norms would fit too
  }
  return "";
}

ModelSpec assemble(const Family& family, const ModelFacts& facts) {
  const auto norm = [&](std::int64_t width) {
    NormSpec made;
    made.eps = facts.eps;
    made.group = width;
    made.width = width;
    made.offset = facts.offset;
    made.parametrisation = facts.offset == 0.0 ? Parametrisation::plain : Parametrisation::offset;
    return made;
  };
  const auto linear = [](std::int64_t in, std::int64_t out, bool bias) {
    LinearSpec made;
    made.in = in;
    made.out = out;
    made.bias = bias;
    return made;
  };
  ModelSpec spec;
  spec.family = family.name;
  spec.vocabulary = facts.vocabulary;
  spec.width = facts.width;
  spec.context = facts.context;
  if (family.scaled_embedding) spec.embedding_scale = std::sqrt(static_cast<double>(facts.width));
  const std::int64_t queries = facts.heads * facts.head_dim, keys = facts.kv_heads * facts.head_dim;
  for (const LayerFacts& from : facts.layers) {
    LayerSpec layer;
    layer.attn_input = norm(facts.width);
    layer.mlp_input = norm(facts.width);
    if (family.sandwich) {
      layer.attn_output = norm(facts.width);
      layer.mlp_output = norm(facts.width);
    }
    layer.attn.heads = facts.heads;
    layer.attn.kv_heads = facts.kv_heads;
    layer.attn.head_dim = facts.head_dim;
    layer.attn.scale = facts.attention_scale;
    layer.attn.window = from.window;
    layer.attn.rope = from.rope;
    layer.attn.q = linear(facts.width, queries, from.q_bias);
    layer.attn.k = linear(facts.width, keys, from.k_bias);
    layer.attn.v = linear(facts.width, keys, from.v_bias);
    layer.attn.o = linear(queries, facts.width, from.o_bias);
    if (family.qk_norm) {
      layer.attn.q.output = norm(facts.head_dim);
      layer.attn.k.output = norm(facts.head_dim);
    }
    layer.mlp.activation = facts.activation;
    layer.mlp.gate = linear(facts.width, facts.inner, from.gate_bias);
    layer.mlp.up = linear(facts.width, facts.inner, from.up_bias);
    layer.mlp.down = linear(facts.inner, facts.width, from.down_bias);
    spec.layers.push_back(std::move(layer));
  }
  spec.final_norm = norm(facts.width);
  spec.tied_head = facts.tied_head;
  spec.head = linear(facts.width, facts.vocabulary, facts.head_bias);
  return spec;
}

}  // namespace scalevec
