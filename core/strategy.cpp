#include <scalevec/core/strategy.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <scalevec/core/error.h>

namespace scalevec {
namespace {

constexpr std::string_view known_words =
    "standard, removal, unified, gemma, or hg, ap, dp, dnp, or, er, or-input, er-input joined by '+'";

using Branches = std::vector<std::string>;
const Branches input_branches{"q", "k", "v", "gate", "up"};
const Branches output_branches{"q", "k", "v", "gate", "up", "head"};
const Branches scaled_branches{"q", "k", "v", "o", "gate", "up", "down", "head"};

bool has(const Branches& list, std::string_view name) {
  return std::find(list.begin(), list.end(), name) != list.end();
}

[[noreturn]] void refuse(std::string_view text, const std::string& why) {
  fail(ErrorCode::value, fmt::format("strategy '{}': {}; known are {}", printable(text), why, known_words),
       {.expected = std::string(known_words), .found = std::string(printable(text))});
}

struct Word {
  std::string_view name;
  std::optional<Branches> branches;  // "dp[v,up]"
};

Word parse_word(std::string_view text, std::string_view word) {
  const std::size_t open = std::min(word.find('['), word.size());
  Word out{word.substr(0, open), std::nullopt};
  if (open == word.size()) return out;
  if (!word.ends_with(']')) refuse(text, fmt::format("'{}' has no closing bracket", printable(word)));
  std::string_view list = word.substr(open + 1, word.size() - open - 2);
  out.branches.emplace();
  for (bool more = true; more;) {
    const std::size_t comma = std::min(list.find(','), list.size());
    out.branches->emplace_back(list.substr(0, comma));
    more = comma < list.size();
    if (more) list.remove_prefix(comma + 1);
  }
  return out;
}

Branches branches_of(std::string_view text, const Word& word, const Branches& otherwise,
                     const Branches& allowed) {
  if (!word.branches) return otherwise;
  for (const std::string& branch : *word.branches) {
    if (has(allowed, branch)) continue;
    refuse(text, fmt::format("'{}' has no branch '{}' but {}", word.name, printable(branch),
                             fmt::join(allowed, ", ")));
  }
  return *word.branches;
}

void apply_word(Strategy& out, std::string_view text, const Word& word) {
  const std::string_view name = word.name;
  if (name == "hg") {
    out.own = branches_of(text, word, input_branches, input_branches);
  } else if (name == "ap" || name == "dp" || name == "dnp") {
    if (out.output != Strategy::Output::none) refuse(text, "two of ap, dp and dnp");
    out.input = name != "ap";
    out.output = name == "dnp" ? Strategy::Output::norm : Strategy::Output::scale;
    out.outputs = branches_of(text, word, output_branches, scaled_branches);
  } else if (word.branches) {
    refuse(text, fmt::format("'{}' takes no branches", printable(name)));
  } else if (name == "or" || name == "or-input" || name == "er" || name == "er-input") {
    if (out.input_form != Parametrisation::plain) refuse(text, "two of or and er");
    out.input_form =
        name.starts_with("or") ? Parametrisation::magnitude_direction : Parametrisation::exponential;
    if (!name.ends_with("-input")) out.output_form = out.input_form;
  } else {
    refuse(text, fmt::format("'{}' is unknown here", printable(name)));
  }
}

NormSpec with_vector(const ModelShape& shape, std::int64_t width, Parametrisation form) {
  return {.eps = shape.eps, .group = width, .width = width, .parametrisation = form};
}

}  // namespace

Strategy Strategy::parse(std::string_view text) {
  Strategy out;
  if (text == "standard") return out;
  if (text == "removal") return {.input = false, .own = {}, .outputs = {}};
  if (text == "unified") return parse("hg+dnp+or");
  if (text == "gemma") return {.own = {}, .outputs = {}, .qk_norm = true, .sandwich = true};
  std::string_view rest = text;
  for (bool more = true; more;) {
    const std::size_t plus = std::min(rest.find('+'), rest.size());
    apply_word(out, text, parse_word(text, rest.substr(0, plus)));
    more = plus < rest.size();
    if (more) rest.remove_prefix(plus + 1);
  }
  return out;
}

std::int64_t ModelShape::heads() const { return width / head_dim; }

ModelSpec make_spec(const ModelShape& shape, const Strategy& strategy) {
  const auto refuse_shape = [](const std::string& why) { fail(ErrorCode::config, "making a model: " + why); };
  if (shape.vocabulary < 1 || shape.width < 1 || shape.layers < 1 || shape.head_dim < 2 ||
      shape.head_dim % 2 != 0 || shape.context < 1) {
    refuse_shape("vocabulary, width, layers and context must be positive, head_dim positive and even");
  }
  if (shape.width % shape.head_dim != 0) {
    refuse_shape(fmt::format("heads of {} entries do not divide a width of {}", shape.head_dim, shape.width));
  }
  const std::int64_t heads = shape.heads(), kv_heads = shape.kv_heads == 0 ? heads : shape.kv_heads;
  if (kv_heads < 1 || heads % kv_heads != 0) {
    refuse_shape(fmt::format("{} key-value heads do not divide {} heads", kv_heads, heads));
  }
  if (shape.experts < 0 || shape.active < 0 || shape.active > shape.experts ||
      (shape.experts > 0 && shape.active == 0) || (shape.experts == 0 && shape.expert_inner != 0)) {
    refuse_shape(
        fmt::format("{} of {} experts of {} are active; some of them must be, and none without experts",
                    shape.active, shape.experts, shape.expert_inner));
  }
  if (strategy.qk_norm && strategy.output == Strategy::Output::norm &&
      (has(strategy.outputs, "q") || has(strategy.outputs, "k"))) {
    refuse_shape("q and k have a norm behind them already: leave them out of dnp, or do without qk_norm");
  }

  const auto bare = [&](std::string_view branch, std::int64_t in, std::int64_t out) {
    return LinearSpec{
        .in = in, .out = out, .own_vector = strategy.input && has(strategy.own, branch), .output = {}};
  };
  const auto linear = [&](std::string_view branch, std::int64_t in, std::int64_t out) {
    LinearSpec made = bare(branch, in, out);
    if (strategy.qk_norm && (branch == "q" || branch == "k")) {
      made.output = with_vector(shape, shape.head_dim, Parametrisation::plain);
    } else if (strategy.output != Strategy::Output::none && has(strategy.outputs, branch)) {
      made.output = with_vector(shape, out, strategy.output_form);
      if (strategy.output == Strategy::Output::scale) {
        made.output->statistics = Statistics::none;
      } else if (branch == "q" || branch == "k" || branch == "v") {
        made.output->group = shape.head_dim;
      }
    }
    return made;
  };
  NormSpec input = with_vector(shape, shape.width, strategy.input_form);
  if (!strategy.input) input.width = 0, input.parametrisation = Parametrisation::plain;

  LayerSpec layer;
  layer.attn_input = layer.mlp_input = input;
  if (strategy.sandwich) {
    layer.attn_output = layer.mlp_output = with_vector(shape, shape.width, Parametrisation::plain);
  }
  AttentionSpec& attn = layer.attn;
  attn.heads = heads;
  attn.kv_heads = kv_heads;
  attn.head_dim = shape.head_dim;
  attn.scale = 1.0 / std::sqrt(static_cast<double>(shape.head_dim));
  attn.rope.base = shape.rope_base;
  attn.rope.dimensions = shape.head_dim;
  attn.q = linear("q", shape.width, heads * shape.head_dim);
  attn.k = linear("k", shape.width, kv_heads * shape.head_dim);
  attn.v = linear("v", shape.width, kv_heads * shape.head_dim);
  attn.o = linear("o", heads * shape.head_dim, shape.width);
  const std::int64_t inner = shape.inner == 0 ? 8 * shape.width / 3 : shape.inner;
  layer.mlp.gate = linear("gate", shape.width, inner);
  layer.mlp.up = linear("up", shape.width, inner);
  layer.mlp.down = linear("down", inner, shape.width);
  if (shape.experts > 0) {
    const std::int64_t each = shape.expert_inner == 0 ? 2 * shape.width / 3 : shape.expert_inner;
    layer.mlp.mixture = MixtureSpec{.experts = shape.experts,
                                    .active = shape.active,
                                    .router = bare("router", shape.width, shape.experts),
                                    .gate = bare("gate", shape.width, each),
                                    .up = bare("up", shape.width, each),
                                    .down = bare("down", each, shape.width)};
  }

  ModelSpec spec;
  spec.family = "scalevec";
  spec.vocabulary = shape.vocabulary;
  spec.width = shape.width;
  spec.context = shape.context;
  spec.layers.assign(static_cast<std::size_t>(shape.layers), layer);
  spec.final_norm = input;
  spec.tied_head = shape.tied_head;
  spec.head = linear("head", shape.width, shape.vocabulary);
  return spec;
}

std::int64_t parameter_count(const ModelSpec& spec) {
  std::int64_t count = 0;
  for (const auto& [slot, shape] : spec.tensor_slots()) {
    std::int64_t entries = 1;
    for (const std::int64_t size : shape) entries *= size;
    count += entries;
  }
  return count;
}

std::int64_t active_parameter_count(const ModelSpec& spec) {
  std::int64_t count = parameter_count(spec);
  for (const LayerSpec& layer : spec.layers) {
    if (const auto& mixture = layer.mlp.mixture) {
      for (const LinearSpec* map : {&mixture->gate, &mixture->up, &mixture->down})
        count -= (mixture->experts - mixture->active) * map->in * map->out;
    }
  }
  return count;
}

std::span<const Preset> presets() {
  static constexpr std::array<Preset, 14> table{{
      {"nano", {.vocabulary = 2048, .width = 128, .layers = 4, .head_dim = 32, .context = 256}},
      {"micro", {.vocabulary = 4096, .width = 256, .layers = 4, .head_dim = 32, .context = 256}},
      {"moe-nano",
       {.vocabulary = 2048,
        .width = 128,
        .layers = 4,
        .head_dim = 32,
        .context = 256,
        .experts = 8,
        .active = 2}},
      {"0.12B", {.width = 768, .layers = 6}},
      {"0.12B-wide", {.width = 768, .layers = 6, .inner = 8 * 768 / 3 + 8}},
      {"0.25B", {.width = 1024, .layers = 12}},
      {"0.5B", {.width = 1280, .layers = 18}},
      {"0.75B", {.width = 1536, .layers = 21}},
      {"1B", {.width = 1792, .layers = 22}},
      {"MoE-0.25B", {.width = 640, .layers = 6, .experts = 32, .active = 4}},
      {"MoE-0.5B", {.width = 768, .layers = 9, .experts = 32, .active = 4}},
      {"MoE-0.8B", {.width = 960, .layers = 10, .experts = 32, .active = 4}},
      {"MoE-1B", {.width = 1024, .layers = 12, .experts = 32, .active = 4}},
      {"MoE-2B", {.width = 1280, .layers = 15, .experts = 32, .active = 4}},
  }};
  return table;
}

const Preset& find_preset(std::string_view name) {
  std::vector<std::string_view> names;
  for (const Preset& preset : presets()) {
    if (preset.name == name) return preset;
    names.push_back(preset.name);
  }
  fail(ErrorCode::value, fmt::format("no preset '{}'; there are {}", printable(name), fmt::join(names, ", ")),
       {.expected = fmt::format("{}", fmt::join(names, ", ")), .found = std::string(printable(name))});
}

}  // namespace scalevec
