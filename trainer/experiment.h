#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <scalevec/core/model_spec.h>

namespace scalevec {

struct OptimizerOptions;

/// A training run as data: what an experiment file (TOML) says. Every field has a default;
/// experiment_fields() lists them with what they mean.
struct Experiment {
  std::string name = "run";
  std::int64_t seed = 0;

  struct Model {
    std::string preset = "nano", strategy = "standard";
    // 0: the preset's
    std::int64_t width = 0, layers = 0, head_dim = 0, kv_heads = 0, inner = 0;
    std::int64_t experts = 0, active = 0, expert_inner = 0;
    double eps = 0.0, rope_base = 0.0;
    bool tied_head = false;
    double init_std = 0.02;
    bool scale_residual = true;
  } model;

  struct Data {
    std::string corpus;  // folder, relative to the experiment file; empty: synthetic
    std::int64_t vocabulary = 256, order = 1, seed = 0;
    double concentration = 0.1;
    std::int64_t context = 256, batch = 32, micro_batch = 0;
  } data;

  struct Optimizer {
    std::string rule = "adamw";
    double learning_rate = 1e-3, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, momentum = 0.9, muon_momentum = 0.95;
    double weight_decay = 0.1, clip = 1.0;
    std::string decay_vectors = "iwd";
    std::map<std::string, double> decay, rates;
  } optimizer;

  struct Schedule {
    std::string kind = "cosine";
    std::int64_t warmup = 0;
    double floor = 0.05, stable = 0.8;
  } schedule;

  struct Train {
    std::int64_t steps = 1000;
    std::string precision = "float32";
    double balance = 0.01;
    std::int64_t validate_every = 100, validation_windows = 64;
    std::int64_t checkpoint_every = 0, keep = 2;
  } train;

  struct Trace {
    std::int64_t every = 0;  // 0: no trace
    bool inputs = false;
    std::int64_t curvature = 0;  // 0: never
    std::int64_t curvature_windows = 1;
  } trace;

  /// E_FORMAT with line and column for what is no TOML; E_SCHEMA for an unknown field (with the nearest), one
  /// of another type, or a plan of several trainings; E_VALUE for a value out of range; E_CONFIG for a model
  /// that cannot be. `file` is named in errors.
  static Experiment parse(std::string_view toml, const std::string& file = "experiment");
  static Experiment read(const std::filesystem::path& file);
  /// TOML with every field; parse gives the same experiment back.
  std::string toml() const;

  /// For a corpus of that vocabulary.
  ModelSpec spec(std::int64_t vocabulary) const;
  OptimizerOptions optimizer_options() const;
};

/// A field in which two experiments differ, with both values as TOML; nothing if they are the same, wherever
/// their corpora lie.
struct ExperimentDifference {
  std::string key, left, right;
};
std::optional<ExperimentDifference> first_difference(const Experiment& left, const Experiment& right);

/// One field of an experiment file, for people.
struct ExperimentField {
  std::string key, type, fallback, meaning;
};
std::vector<ExperimentField> experiment_fields();

}  // namespace scalevec
