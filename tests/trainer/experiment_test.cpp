#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <support/errors.h>

#include <scalevec/core/strategy.h>
#include <scalevec/trainer/experiment.h>
#include <scalevec/trainer/groups.h>
#include <scalevec/trainer/schedule.h>

using namespace scalevec;
using scalevec::testing::error_of;

TEST_CASE("experiment: every field is written, read back and explained") {
  const Experiment plain = Experiment::parse("");
  CHECK(plain.toml() == Experiment().toml());
  CHECK(Experiment::parse(plain.toml()).toml() == plain.toml());
  const std::vector<ExperimentField> fields = experiment_fields();
  CHECK(fields.size() > 40);
  for (const ExperimentField& field : fields) {
    CAPTURE(field.key);
    CHECK_FALSE(field.meaning.empty());
    // Another value than the default comes through, and differs in this field alone.
    const std::string& value = field.type == "text"               ? "\"\""
                               : field.type == "table of numbers" ? "{ \"linear\" = 0.25 }"
                               : field.type == "true or false" ? (field.fallback == "true" ? "false" : "true")
                                                               : "1";
    const std::size_t dot = field.key.find('.');
    std::string changed = value;
    if (field.key == "model.preset") changed = "\"micro\"";
    if (field.key == "model.strategy") changed = "\"hg+dnp+or\"";
    if (field.key == "optimizer.rule") changed = "\"muon\"";
    if (field.key == "optimizer.decay_vectors") changed = "\"none\"";
    if (field.key == "schedule.kind") changed = "\"wsd\"";
    if (field.key == "train.precision") changed = "\"bfloat16\"";
    if (field.key == "data.corpus" || field.key == "name") changed = "\"a \\\\ \\\"b\\\" \\u0007\"";
    if (field.key == "model.width") changed = "256";
    if (field.key == "model.head_dim") changed = "64";
    if (field.key == "model.experts") changed = "4";
    if (field.key == "data.vocabulary") changed = "64";
    for (const char* below_one : {"beta1", "beta2", "momentum", "muon_momentum"}) {
      if (field.key == fmt::format("optimizer.{}", below_one)) changed = "0.5";
    }
    if (field.fallback == "1" || field.fallback == "1.0") changed = "2";
    std::string text = dot == std::string::npos ? fmt::format("{} = {}\n", field.key, changed)
                                                : fmt::format("[{}]\n{} = {}\n", field.key.substr(0, dot),
                                                              field.key.substr(dot + 1), changed);
    Experiment before = plain;
    if (field.key == "trace.curvature") {  // only beside rows
      text += "every = 1\n";
      before.trace.every = 1;
    }
    if (field.key == "data.order") {
      text += "vocabulary = 64\n";
      before.data.vocabulary = 64;
    }
    for (const char* of_mixture : {"model.experts", "model.active", "model.expert_inner"}) {
      if (field.key != of_mixture) continue;
      text += "preset = \"moe-nano\"\n";
      before.model.preset = "moe-nano";
    }
    const Experiment other = Experiment::parse(text);
    CHECK(other.toml() != plain.toml());
    CHECK(Experiment::parse(other.toml()).toml() == other.toml());
    const auto difference = first_difference(before, other);
    REQUIRE(difference);
    CHECK(difference->key == field.key);
    if (field.key == "data.corpus") {  // where one lies is no difference
      before.data.corpus = "elsewhere";
      CHECK_FALSE(first_difference(before, other));
    }
  }
}

TEST_CASE("experiment: a table of decay may be written in either way") {
  const std::string model = "[model]\nstrategy = \"hg+dnp+or\"\n";
  const Experiment dotted = Experiment::parse(model + "[optimizer.decay]\ninput.beta = 0.5\noutput = 0\n");
  const Experiment quoted =
      Experiment::parse(model + "[optimizer]\ndecay = { \"input.beta\" = 0.5, output = 0.0 }\n");
  CHECK(dotted.optimizer.decay == quoted.optimizer.decay);
  CHECK(dotted.optimizer.decay.at("input.beta") == 0.5);
}

TEST_CASE("experiment: a mixture of any size") {
  const Experiment e =
      Experiment::parse("[model]\npreset = \"nano\"\nexperts = 6\nactive = 3\nexpert_inner = 40\n");
  ModelShape shape = find_preset("nano").shape;
  shape.experts = 6, shape.active = 3, shape.expert_inner = 40;
  const std::int64_t dense = parameter_count(Experiment::parse("").spec(2048));
  CHECK(parameter_count(e.spec(2048)) == parameter_count(make_spec(shape, {})));
  // A router, six experts of three maps, and the shared one as wide as the dense MLP, in each of four layers.
  CHECK(parameter_count(e.spec(2048)) == dense + 4 * (6 * 128 + 6 * 3 * 128 * 40));
}

TEST_CASE("experiment: what is refused") {
  struct Row {
    std::string toml;
    ErrorCode code;
    std::string key, expected;
  };
  const std::vector<Row> rows = {
      {"[model", ErrorCode::format, "", ""},
      {"name = 1", ErrorCode::schema, "name", "text"},
      {"seed = 1.5", ErrorCode::schema, "seed", "whole number"},
      {"seed = true", ErrorCode::schema, "seed", "whole number"},
      {"seed = -1", ErrorCode::value, "seed", "0 or more"},
      {"model = 3", ErrorCode::schema, "model", ""},
      {"[model]\ntied_head = 1", ErrorCode::schema, "model.tied_head", "true or false"},
      {"[model]\npreset = \"giant\"", ErrorCode::value, "model.preset", "nano"},
      {"[model]\nexperts = -4", ErrorCode::value, "model.experts", "0 or more"},
      {"[model]\nstrategy = \"hg+xx\"", ErrorCode::value, "model.strategy", "removal"},
      {"[model]\nexperts = 4", ErrorCode::config, "model", ""},
      {"[model]\nwidth = 100", ErrorCode::config, "model", ""},
      {"[model]\nstrategy = \"removal\"\n[trace]\nevery = 10", ErrorCode::value, "trace.every", "0"},
      {"[model]\ninit_std = 3.5e38", ErrorCode::value, "model.init_std", "float32"},
      {"[model]\neps = -1.0", ErrorCode::value, "model.eps", "0"},
      {"[model]\nrope_base = -5.0", ErrorCode::value, "model.rope_base", "0"},
      {"[optimizer]\nbeta1 = 1.5", ErrorCode::value, "optimizer", "[0, 1)"},
      {"[optimizer]\nclip = -1.0", ErrorCode::value, "optimizer", "0 or more"},
      {"[optimizer.decay]\noutputs = 0.1", ErrorCode::value, "optimizer.decay", "input"},
      {"[optimizer.rates]\ninput.beta = 0.1", ErrorCode::value, "optimizer.rates", "input"},
      {"[data]\norder = 40", ErrorCode::value, "data", "1 to 8"},
      {"[data]\nconcentration = 11.0", ErrorCode::value, "data", "0.001 to 10"},
      {"[optimizer]\nlearningrate = 1", ErrorCode::schema, "optimizer.learningrate",
       "optimizer.learning_rate"},
      {"[optimizer]\nlearning_rate = \"fast\"", ErrorCode::schema, "optimizer.learning_rate", "number"},
      {"[optimizer]\nlearning_rate = 3.5e38", ErrorCode::value, "optimizer.learning_rate", "float32"},
      {"[optimizer]\nlearning_rate = nan", ErrorCode::value, "optimizer.learning_rate", "float32"},
      {"[optimizer]\nweight_decay = -0.1", ErrorCode::value, "optimizer.weight_decay", "0 to"},
      {"[optimizer.rates]\nlinear = inf", ErrorCode::value, "optimizer.rates.linear", "float32"},
      {"[optimizer.decay]\noutput = \"no\"", ErrorCode::schema, "optimizer.decay.output", "number"},
      {"[optimizer]\nrule = \"adam\"", ErrorCode::value, "optimizer.rule", "adamw sgd muon"},
      {"[optimizer]\ndecay_vectors = \"some\"", ErrorCode::value, "optimizer.decay_vectors",
       "iwd, all, none"},
      {"[schedule]\nkind = \"linear\"", ErrorCode::value, "schedule.kind", "constant, cosine, wsd"},
      {"[schedule]\nwarmup = 1000", ErrorCode::value, "schedule.warmup", "fewer than train.steps, 1000"},
      {"[schedule]\nkind = \"wsd\"\nwarmup = 801", ErrorCode::value, "schedule.warmup", "800 or fewer"},
      {"[schedule]\nfloor = 2.0", ErrorCode::value, "schedule.floor", "0 to 1"},
      {"[train]\nsteps = 0", ErrorCode::value, "train.steps", "1 or more"},
      {"[train]\nprecision = \"float16\"", ErrorCode::value, "train.precision",
       "float32 bfloat16 pure-bfloat16"},
      {"[data]\nbatch = 6\nmicro_batch = 4", ErrorCode::value, "data.micro_batch", "a divisor of data.batch"},
      {"[trace]\nevery = -3", ErrorCode::value, "trace.every", "0 or more"},
      {"[extra]\na = 1", ErrorCode::schema, "extra", ""},
      {"seeds = [0]\n[arms.one]", ErrorCode::schema, "arms", ""},
  };
  for (const Row& row : rows) {
    CAPTURE(row.toml);
    const auto caught = error_of([&] { Experiment::parse(row.toml, "e.toml"); });
    CHECK(caught.code == row.code);
    CHECK(caught.fields.key == row.key);
    CHECK(caught.fields.file == "e.toml");
    if (!row.expected.empty()) CHECK(caught.fields.expected.find(row.expected) != std::string::npos);
  }
}

TEST_CASE("experiment: the longest warm-up") {
  CHECK(Experiment::parse("[schedule]\nwarmup = 999").schedule.warmup == 999);
  // 0.29 * 100 is less than 29 in floating point.
  const char* const wsd = "[schedule]\nkind = \"wsd\"\nstable = 0.29\nwarmup = 29\n[train]\nsteps = 100";
  CHECK(Experiment::parse(wsd).schedule.warmup == 29);
}

TEST_CASE("groups: every slot is in one group, and what decays is told by role and component") {
  ModelShape shape = find_preset("nano").shape;
  for (const char* strategy : {"standard", "removal", "unified", "gemma", "hg+dp+or", "hg+dnp+er", "ap"}) {
    CAPTURE(strategy);
    const ModelSpec spec = make_spec(shape, Strategy::parse(strategy));
    const std::vector<ParameterGroup> groups = parameter_groups(spec);
    std::map<std::string, int> seen;
    for (const ParameterGroup& group : groups) {
      for (const std::string& slot : group.slots) ++seen[slot];
    }
    const auto slots = spec.tensor_slots();
    CHECK(seen.size() == slots.size());
    for (const auto& [slot, count] : seen) {
      CHECK(slots.contains(slot));
      CHECK(count == 1);
    }
    for (const Site& site : spec.sites()) {
      if (site.width == 0) continue;
      const std::string slot = site.address.str();
      const std::string role(role_name(site.role));
      for (const ParameterGroup& group : groups) {
        for (const std::string& member : group.slots) {
          if (!member.starts_with(slot + ".") || member == slot + ".weight.weight") continue;
          const std::string part = member.substr(slot.size());
          if (part != ".weight" && part != ".alpha" && part != ".beta") continue;
          if (part == ".weight" && spec.tensor_slots().at(member).size() == 2) continue;
          CHECK(group.name == (part == ".weight" ? role : role + part));
          CHECK(group.is_vector);
        }
      }
    }
  }
  const auto decay = [&](const char* strategy, VectorDecay vectors,
                         std::map<std::string, double> named = {}) {
    return group_decay(parameter_groups(make_spec(shape, Strategy::parse(strategy))), 0.1, vectors, named);
  };
  using Values = std::map<std::string, double>;
  CHECK(decay("gemma", VectorDecay::input_norms) == Values{{"embedding", 0.1},
                                                           {"final", 0.1},
                                                           {"head", 0.1},
                                                           {"input", 0.1},
                                                           {"linear", 0.1},
                                                           {"output", 0.0}});
  CHECK(decay("gemma", VectorDecay::all).at("output") == 0.1);
  CHECK(decay("gemma", VectorDecay::none).at("input") == 0.0);
  const Values unified = decay("unified", VectorDecay::input_norms);
  CHECK(unified.at("input.beta") == 0.1);
  CHECK(unified.at("input.alpha") == 0.0);
  CHECK(unified.at("output.beta") == 0.0);
  const Values named = decay("unified", VectorDecay::input_norms, {{"output", 0.3}, {"output.beta", 0.2}});
  CHECK(named.at("output.alpha") == 0.3);
  CHECK(named.at("output.beta") == 0.2);
  CHECK(error_of([&] { decay("standard", VectorDecay::all, {{"output", 0.0}}); }).code == ErrorCode::value);
  CHECK(error_of([&] { decay("standard", VectorDecay::all, {{"input", -1.0}}); }).code == ErrorCode::value);
}

TEST_CASE("schedule: closed forms at the corners") {
  const auto near = [](double a, double b) { CHECK(a == doctest::Approx(b).epsilon(1e-14)); };
  const Schedule cosine{.kind = Schedule::Kind::cosine, .steps = 101, .warmup = 20, .floor = 0.05};
  near(cosine.at(0), 1.0 / 20);
  near(cosine.at(19), 1.0);
  near(cosine.at(20), 1.0);
  near(cosine.at(60), 0.05 + 0.95 / 2);
  near(cosine.at(100), 0.05);
  const Schedule wsd{.kind = Schedule::Kind::wsd, .steps = 101, .warmup = 10, .floor = 0.0, .stable = 0.8};
  near(wsd.at(80), 1.0);
  near(wsd.at(81), 1.0 - 0.2 / 19.2);
  CHECK(wsd.at(100) == doctest::Approx(0.0).epsilon(1e-14));
  const Schedule constant{.kind = Schedule::Kind::constant, .steps = 10, .warmup = 0, .floor = 0.0};
  near(constant.at(9), 1.0);
  // Nothing left to decline over.
  near(Schedule{.kind = Schedule::Kind::wsd, .steps = 10, .warmup = 0, .floor = 0.0, .stable = 1.0}.at(9),
       1.0);
  near(Schedule{.kind = Schedule::Kind::cosine, .steps = 1, .warmup = 0, .floor = 0.1}.at(0), 1.0);
}
