// What an experiment file may not say.
#include <scalevec/trainer/experiment_check.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <scalevec/core/error.h>
#include <scalevec/core/strategy.h>
#include <scalevec/trainer/groups.h>
#include <scalevec/trainer/markov_chain.h>
#include <scalevec/trainer/optimizer.h>
#include <scalevec/trainer/schedule.h>

namespace scalevec {
namespace {

std::string number(double value) { return fmt::format("{}", value); }

}  // namespace

void check(const Experiment& e, const std::string& file) {
  const auto refuse = [&](const std::string& key, const std::string& found, const std::string& expected) {
    fail(ErrorCode::value, fmt::format("experiment: {} is {}", key, found),
         {.file = file, .key = key, .expected = expected, .found = found});
  };
  const auto at_least = [&](const char* key, std::int64_t value, std::int64_t least) {
    if (value < least) refuse(key, std::to_string(value), least == 1 ? "1 or more" : "0 or more");
  };
  at_least("seed", e.seed, 0);
  for (const auto& [key, value] : {std::pair{"model.width", e.model.width},
                                   {"model.layers", e.model.layers},
                                   {"model.head_dim", e.model.head_dim},
                                   {"model.kv_heads", e.model.kv_heads},
                                   {"model.inner", e.model.inner},
                                   {"model.experts", e.model.experts},
                                   {"model.active", e.model.active},
                                   {"model.expert_inner", e.model.expert_inner},
                                   {"data.micro_batch", e.data.micro_batch},
                                   {"schedule.warmup", e.schedule.warmup},
                                   {"train.validate_every", e.train.validate_every},
                                   {"train.checkpoint_every", e.train.checkpoint_every},
                                   {"trace.every", e.trace.every},
                                   {"trace.curvature", e.trace.curvature}}) {
    at_least(key, value, 0);
  }
  for (const auto& [key, value] : {std::pair{"data.context", e.data.context},
                                   {"data.batch", e.data.batch},
                                   {"train.steps", e.train.steps},
                                   {"train.validation_windows", e.train.validation_windows},
                                   {"train.keep", e.train.keep},
                                   {"trace.curvature_windows", e.trace.curvature_windows}}) {
    at_least(key, value, 1);
  }
  if (e.data.micro_batch > 0 && e.data.batch % e.data.micro_batch != 0) {
    refuse("data.micro_batch", std::to_string(e.data.micro_batch), "a divisor of data.batch");
  }
  if (e.trace.curvature > 0 && (e.trace.every == 0 || e.trace.curvature % e.trace.every != 0)) {
    refuse("trace.curvature", std::to_string(e.trace.curvature), "a multiple of trace.every");
  }
  if (e.trace.curvature > 0 && e.trace.curvature_windows > e.data.batch) {
    refuse("trace.curvature_windows", std::to_string(e.trace.curvature_windows), "data.batch or fewer");
  }
  if (!(e.schedule.floor >= 0.0 && e.schedule.floor <= 1.0)) {
    refuse("schedule.floor", number(e.schedule.floor), "0 to 1");
  }
  if (!(e.schedule.stable >= 0.0 && e.schedule.stable <= 1.0)) {
    refuse("schedule.stable", number(e.schedule.stable), "0 to 1");
  }
  if (e.schedule.warmup >= e.train.steps) {
    refuse("schedule.warmup", std::to_string(e.schedule.warmup),
           fmt::format("fewer than train.steps, {}", e.train.steps));
  }
  const double level = std::ceil(e.schedule.stable * static_cast<double>(e.train.steps));
  if (e.schedule.kind == "wsd" && static_cast<double>(e.schedule.warmup) > level) {
    refuse("schedule.warmup", std::to_string(e.schedule.warmup),
           fmt::format("{} or fewer: it is part of schedule.stable, {} of train.steps, {}", level,
                       e.schedule.stable, e.train.steps));
  }
  const auto in_float = [&](const std::string& key, double value) {
    if (!(value >= 0.0 && value <= std::numeric_limits<float>::max())) {
      refuse(key, number(value), "0 to 3.4e38, the largest of float32");
    }
  };
  in_float("model.init_std", e.model.init_std);
  in_float("model.eps", e.model.eps);
  in_float("model.rope_base", e.model.rope_base);
  in_float("train.balance", e.train.balance);
  in_float("optimizer.learning_rate", e.optimizer.learning_rate);
  in_float("optimizer.weight_decay", e.optimizer.weight_decay);
  for (const auto& [group, value] : e.optimizer.decay) in_float("optimizer.decay." + printable(group), value);
  for (const auto& [group, value] : e.optimizer.rates) in_float("optimizer.rates." + printable(group), value);
  const auto one_of = [&](const char* key, const std::string& value, const char* known) {
    std::istringstream words(known);
    for (std::string word; words >> word;) {
      if (word == value) return;
    }
    refuse(key, printable(value), known);
  };
  one_of("train.precision", e.train.precision, "float32 bfloat16 pure-bfloat16");
  one_of("optimizer.rule", e.optimizer.rule, "adamw sgd muon");
  // What is refused elsewhere, with the field that it is of.
  const auto in_field = [&](const char* key, const auto& read) {
    try {
      return read();
    } catch (const Error& error) {
      std::string why = error.message().substr(code_name(error.code()).size() + 2);
      if (const std::string again = fmt::format("{}: ", key); why.starts_with(again))
        why.erase(0, again.size());
      ErrorFields fields = error.fields();
      fields.file = file, fields.key = key;
      fail(error.code(), fmt::format("experiment: {}: {}", key, why), std::move(fields));
    }
  };
  in_field("schedule.kind", [&] { return parse_schedule(e.schedule.kind); });
  in_field("optimizer.decay_vectors", [&] { return parse_vector_decay(e.optimizer.decay_vectors); });
  in_field("model.preset", [&] { return &find_preset(e.model.preset); });
  in_field("model.strategy", [&] { return Strategy::parse(e.model.strategy); });
  Experiment one = e;  // all layers are alike
  one.model.layers = 1;
  const ModelSpec spec = in_field("model", [&] { return one.spec(1); });
  const OptimizerOptions options = e.optimizer_options();
  in_field("optimizer", [&] { return check(options); });
  const std::vector<ParameterGroup> groups = parameter_groups(spec);
  in_field("optimizer.decay",
           [&] { return group_decay(groups, options.weight_decay, options.decay_vectors, options.decay); });
  in_field("optimizer.rates", [&] { return group_rates(groups, options.rates); });
  if (e.data.corpus.empty()) {
    in_field("data",
             [&] { return MarkovChain::check(e.data.vocabulary, e.data.order, e.data.concentration); });
  }
  const std::vector<Site> sites = spec.sites();
  if (e.trace.every > 0 && std::ranges::all_of(sites, [](const Site& site) { return site.width == 0; })) {
    refuse("trace.every", std::to_string(e.trace.every),
           fmt::format("0: a model of strategy {} has no scale vectors to trace", e.model.strategy));
  }
}

}  // namespace scalevec
