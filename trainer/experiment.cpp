#include <scalevec/trainer/experiment.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <toml++/toml.h>

#include <scalevec/core/checkpoint/json.h>
#include <scalevec/core/error.h>
#include <scalevec/core/selector.h>
#include <scalevec/core/strategy.h>
#include <scalevec/trainer/experiment_check.h>
#include <scalevec/trainer/groups.h>
#include <scalevec/trainer/optimizer.h>

namespace scalevec {
namespace {

using Numbers = std::map<std::string, double>;

// The one list of fields: read, written and explained from here.
template <class E, class See>
void visit(E& e, See&& see) {
  see("name", e.name, "what the run is called");
  see("seed", e.seed, "of the weights and of the order of the data");
  see("model.preset", e.model.preset, "size: nano, micro, 0.12B, ...; 0 in a field below means the preset's");
  see("model.strategy", e.model.strategy, "where scale vectors stand: standard, unified, hg+dnp+or, ...");
  see("model.width", e.model.width, "entries of the residual stream");
  see("model.layers", e.model.layers, "layers");
  see("model.head_dim", e.model.head_dim, "entries of an attention head");
  see("model.kv_heads", e.model.kv_heads, "key-value heads");
  see("model.inner", e.model.inner, "entries inside the MLP");
  see("model.experts", e.model.experts, "routed experts of a mixture, beside the shared one");
  see("model.active", e.model.active, "routed experts of a token");
  see("model.expert_inner", e.model.expert_inner, "entries inside a routed expert");
  see("model.eps", e.model.eps, "epsilon of every norm");
  see("model.rope_base", e.model.rope_base, "base of the rotary embedding");
  see("model.tied_head", e.model.tied_head, "whether the head is the embedding");
  see("model.init_std", e.model.init_std, "standard deviation of new weights");
  see("model.scale_residual", e.model.scale_residual, "o and down begin smaller by 1 / sqrt(2 layers)");
  see("data.corpus", e.data.corpus,
      "folder of `scalevec data build`, relative to this file; empty: synthetic");
  see("data.vocabulary", e.data.vocabulary, "synthetic: ids");
  see("data.order", e.data.order, "synthetic: ids that the next one depends on");
  see("data.concentration", e.data.concentration, "synthetic: Dirichlet parameter of the transitions");
  see("data.seed", e.data.seed, "synthetic: of the transitions");
  see("data.context", e.data.context, "predictions of a window");
  see("data.batch", e.data.batch, "windows of a step");
  see("data.micro_batch", e.data.micro_batch, "windows of one forward, gradients accumulate; 0: the batch");
  see("optimizer.rule", e.optimizer.rule,
      "adamw, sgd, or muon (with AdamW for all but the blocks' linear maps)");
  see("optimizer.learning_rate", e.optimizer.learning_rate, "the largest");
  see("optimizer.beta1", e.optimizer.beta1, "AdamW");
  see("optimizer.beta2", e.optimizer.beta2, "AdamW");
  see("optimizer.eps", e.optimizer.eps, "AdamW");
  see("optimizer.momentum", e.optimizer.momentum, "SGD");
  see("optimizer.muon_momentum", e.optimizer.muon_momentum, "Muon, with Nesterov's look ahead");
  see("optimizer.weight_decay", e.optimizer.weight_decay, "of linear maps, embedding, head");
  see("optimizer.clip", e.optimizer.clip, "of the norm of all gradients; 0: not");
  see("optimizer.decay_vectors", e.optimizer.decay_vectors,
      "which scale vectors decay: iwd (all but output), all, none");
  see("optimizer.decay", e.optimizer.decay,
      "weight decay by group: input, output, final, input.beta, linear, ...");
  see("optimizer.rates", e.optimizer.rates, "factor of the learning rate by group; 0 freezes");
  see("schedule.kind", e.schedule.kind, "constant, cosine or wsd");
  see("schedule.warmup", e.schedule.warmup,
      "steps of linear rise, fewer than train.steps; wsd: part of schedule.stable");
  see("schedule.floor", e.schedule.floor, "share of the largest rate at the end");
  see("schedule.stable", e.schedule.stable, "wsd: share of the steps before the decline");
  see("train.steps", e.train.steps, "optimizer steps");
  see("train.precision", e.train.precision, "float32, bfloat16 (float32 masters) or pure-bfloat16");
  see("train.balance", e.train.balance, "mixtures: weight of the balance loss, mean over layers");
  see("train.validate_every", e.train.validate_every,
      "steps; the last one is always validated; 0: only that");
  see("train.validation_windows", e.train.validation_windows, "windows read for a validation");
  see("train.checkpoint_every", e.train.checkpoint_every, "steps; 0: only at the end and when stopped");
  see("train.keep", e.train.keep, "checkpoints kept");
  see("trace.every", e.trace.every, "steps between rows of the trace; 0: no trace");
  see("trace.inputs", e.trace.inputs, "whether it also holds what the maps behind norms read");
  see("trace.curvature", e.trace.curvature,
      "steps between rows with the loss's curvature, a multiple of trace.every; 0: none");
  see("trace.curvature_windows", e.trace.curvature_windows, "windows of the step that curvature is of");
}

template <class T>
constexpr const char* type_name() {
  if constexpr (std::is_same_v<T, std::string>) return "text";
  if constexpr (std::is_same_v<T, std::int64_t>) return "whole number";
  if constexpr (std::is_same_v<T, double>) return "number";
  if constexpr (std::is_same_v<T, bool>) return "true or false";
  if constexpr (std::is_same_v<T, Numbers>) return "table of numbers";
}

[[noreturn]] void refuse_type(const std::string& file, const std::string& key, const char* expected,
                              const toml::node& found) {
  std::ostringstream kind;
  kind << found.type();
  fail(ErrorCode::schema, fmt::format("experiment: {} is to be a {}", key, expected),
       {.file = file, .key = key, .expected = expected, .found = kind.str()});
}

class TomlReader {
 public:
  TomlReader(const toml::table& table, const std::string& file, bool lines)
      : table_(table), file_(file), lines_(lines) {}

  template <class T>
  void operator()(const std::string& key, T& value, const char*) {
    known_.push_back(key);
    const toml::node* const node = table_.at_path(key).node();
    if (!node) return;
    if constexpr (std::is_same_v<T, Numbers>) {
      if (!node->is_table()) refuse_type(file_, key, type_name<T>(), *node);
      flatten(*node->as_table(), key, "", value);
    } else {
      // A whole number may stand for a number, nothing else for anything else.
      const bool fits = std::is_same_v<T, double>         ? node->is_number()
                        : std::is_same_v<T, bool>         ? node->is_boolean()
                        : std::is_same_v<T, std::int64_t> ? node->is_integer()
                                                          : node->is_string();
      if (!fits) refuse_type(file_, key, type_name<T>(), *node);
      value = *node->value<T>();
    }
  }

  // Every key of the file must be one that was asked for.
  void refuse_unknown() const { refuse_unknown(table_, ""); }

 private:
  // [optimizer.decay] may hold input.beta = 0, which TOML reads as a table within a table.
  void flatten(const toml::table& table, const std::string& key, const std::string& prefix,
               Numbers& out) const {
    for (const auto& [name, node] : table) {
      const std::string full = prefix + std::string(name.str());
      if (const toml::table* inner = node.as_table()) {
        flatten(*inner, key, full + ".", out);
      } else if (node.is_number()) {
        out[full] = *node.value<double>();
      } else {
        refuse_type(file_, key + "." + full, "number", node);
      }
    }
  }

  void refuse_unknown(const toml::table& table, const std::string& prefix) const {
    for (const auto& [name, node] : table) {
      const std::string key = prefix + std::string(name.str());
      if (std::find(known_.begin(), known_.end(), key) != known_.end()) continue;
      const bool section = std::any_of(known_.begin(), known_.end(),
                                       [&](const std::string& k) { return k.starts_with(key + "."); });
      if (section && node.is_table()) {
        refuse_unknown(*node.as_table(), key + ".");
        continue;
      }
      const std::string close = fmt::format("{}", fmt::join(nearest(key, known_), ", "));
      const std::string line = lines_ ? fmt::format(" in line {}", node.source().begin.line) : "";
      fail(ErrorCode::schema,
           fmt::format("experiment: unknown field {}{}; nearest: {}", printable(key), line, close),
           {.file = file_, .key = printable(key), .expected = close});
    }
  }

  const toml::table& table_;
  const std::string& file_;
  bool lines_;  // whether the text's are those of the file: not of one arm of a plan
  std::vector<std::string> known_;
};

// As JSON's texts, but that TOML has no bare DEL.
std::string quoted(const std::string& text) {
  std::string out = json_quoted(text);
  for (std::size_t at = 0; (at = out.find('\x7f', at)) != std::string::npos;) out.replace(at, 1, "\\u007f");
  return out;
}

std::string written(const std::string& value) { return quoted(value); }
std::string written(std::int64_t value) { return std::to_string(value); }
std::string written(bool value) { return value ? "true" : "false"; }
std::string written(double value) {
  const std::string text = fmt::format("{}", value);  // the shortest that reads back
  return text.find_first_of(".en") == std::string::npos ? text + ".0" : text;
}
std::string written(const Numbers& values) {
  std::vector<std::string> entries;
  for (const auto& [name, value] : values)
    entries.push_back(fmt::format("{} = {}", quoted(name), written(value)));
  return entries.empty() ? "{}" : fmt::format("{{ {} }}", fmt::join(entries, ", "));
}

Experiment parsed(std::string_view text, const std::string& file, bool lines) {
  const toml::table table = [&] {
    try {
      return toml::parse(text, file);
    } catch (const toml::parse_error& error) {
      fail(ErrorCode::format,
           fmt::format("experiment: this is no TOML: line {}, column {}: {}", error.source().begin.line,
                       error.source().begin.column, error.description()),
           {.file = file});
    }
  }();
  if (table.contains("arms")) {
    fail(ErrorCode::schema,
         "experiment: this file has arms, so it is a plan of several trainings; run it with `scalevec "
         "experiment`",
         {.file = file, .key = "arms"});
  }
  Experiment out;
  TomlReader reader(table, file, lines);
  visit(out, reader);
  reader.refuse_unknown();
  check(out, file);
  return out;
}

}  // namespace

Experiment Experiment::parse(std::string_view text, const std::string& file) {
  return parsed(text, file, false);
}

Experiment Experiment::read(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  if (!in) {
    fail(ErrorCode::path, fmt::format("experiment: cannot read {}", printable(file.string())),
         {.file = file.string()});
  }
  std::ostringstream text;
  text << in.rdbuf();
  Experiment out = parsed(text.str(), file.string(), true);
  if (!out.data.corpus.empty()) {
    const std::filesystem::path folder = std::filesystem::absolute(file).parent_path();
    out.data.corpus = (folder / out.data.corpus).lexically_normal().string();
  }
  return out;
}

std::string Experiment::toml() const {
  std::string out, section;
  visit(*this, [&](const std::string& key, const auto& value, const char*) {
    const std::size_t dot = key.find('.');
    if (dot != std::string::npos && key.substr(0, dot) != section) {
      section = key.substr(0, dot);
      out += fmt::format("\n[{}]\n", section);
    }
    out += fmt::format("{} = {}\n", dot == std::string::npos ? key : key.substr(dot + 1), written(value));
  });
  return out;
}

ModelSpec Experiment::spec(std::int64_t vocabulary) const {
  ModelShape shape = find_preset(model.preset).shape;
  shape.vocabulary = vocabulary;
  shape.context = data.context;
  shape.tied_head = model.tied_head;
  const auto given = [](auto& field, auto value) {
    if (value != 0) field = value;
  };
  given(shape.width, model.width);
  given(shape.layers, model.layers);
  given(shape.head_dim, model.head_dim);
  given(shape.kv_heads, model.kv_heads);
  given(shape.inner, model.inner);
  given(shape.experts, model.experts);
  given(shape.active, model.active);
  given(shape.expert_inner, model.expert_inner);
  given(shape.eps, model.eps);
  given(shape.rope_base, model.rope_base);
  return make_spec(shape, Strategy::parse(model.strategy));
}

OptimizerOptions Experiment::optimizer_options() const {
  return {.rule = parse_rule(optimizer.rule),
          .learning_rate = optimizer.learning_rate,
          .beta1 = optimizer.beta1,
          .beta2 = optimizer.beta2,
          .eps = optimizer.eps,
          .momentum = optimizer.momentum,
          .muon_momentum = optimizer.muon_momentum,
          .weight_decay = optimizer.weight_decay,
          .decay_vectors = parse_vector_decay(optimizer.decay_vectors),
          .decay = optimizer.decay,
          .rates = optimizer.rates,
          .clip = optimizer.clip};
}

std::optional<ExperimentDifference> first_difference(const Experiment& left, const Experiment& right) {
  std::vector<std::string> values;
  visit(left, [&](const std::string&, const auto& value, const char*) { values.push_back(written(value)); });
  std::optional<ExperimentDifference> out;
  std::size_t i = 0;
  visit(right, [&](const std::string& key, const auto& value, const char*) {
    const std::string other = written(value);
    // Where a corpus lies is no part of what it is; none is the synthetic source.
    const bool elsewhere = key == "data.corpus" && !left.data.corpus.empty() && !right.data.corpus.empty();
    if (!out && other != values[i] && !elsewhere) out = {key, values[i], other};
    ++i;
  });
  return out;
}

std::vector<ExperimentField> experiment_fields() {
  std::vector<ExperimentField> out;
  const Experiment defaults;
  visit(defaults, [&](const std::string& key, const auto& value, const char* meaning) {
    out.push_back({key, type_name<std::decay_t<decltype(value)>>(), written(value), meaning});
  });
  return out;
}

}  // namespace scalevec
