#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>

namespace scalevec {

/// A mean over predictions with its 95 % interval; no interval where there is too little text to say.
struct Figure {
  double value = 0.0;
  std::optional<double> low = {}, high = {};
};

/// What an edit did to a model's output distribution, over some text. Losses and divergences in nats per
/// prediction.
struct Change {
  Figure loss_base, loss_edited;
  Figure loss_change;  // the interval is of the paired differences
  Figure perplexity_base, perplexity_edited;
  Figure kl;          // of the edited from the base distribution: sum p log(p / q), p the base
  Figure kl_reverse;  // sum q log(q / p)
  Figure flips;       // fraction of predictions whose most probable token is another
  Figure tv;          // total variation, sum |p - q| / 2
  std::int64_t predictions = 0;
  std::int64_t chunks = 0;          // what the intervals resample
  double largest_difference = 0.0;  // of any two logits; 0: every logit is the same
};

/// One entry per prediction, in the order they were added.
struct PerToken {
  std::vector<std::int64_t> document, target;
  std::vector<double> loss_base, loss_change, kl, tv;
  std::vector<std::uint8_t> flip;
};

/// Compares two streams of logits, a few rows at a time; anything that yields logits can be measured. Keeps
/// sums of 64 consecutive predictions of one document (1 byte a prediction), unless values per token are
/// asked for.
class Behaviour {
 public:
  struct Options {
    bool per_token = false;
  };
  Behaviour() : Behaviour(Options{}) {}
  explicit Behaviour(Options options) : options_(options) {}

  /// base, edited: (rows, vocabulary), both float32 or both float64 (other floating dtypes become float32),
  /// any device. targets: (rows,), int64: the token that each row should have predicted. Rows of one document
  /// follow each other. E_SHAPE, E_DTYPE; E_VALUE for a target outside the vocabulary, and for logits that
  /// are not finite (an entry that is -inf in both is a token that neither can emit).
  void add(const at::Tensor& base, const at::Tensor& edited, const at::Tensor& targets,
           std::int64_t document);

  std::int64_t predictions() const { return predictions_; }
  /// Largest |difference| of any two logits so far.
  double largest_difference() const { return largest_difference_; }
  const PerToken& per_token() const { return per_token_; }

  /// Intervals: percentile bootstrap of `resamples` over chunks, the same resamples for every figure; none
  /// below 20 chunks. The same seed gives the same interval on every machine. E_STATE if nothing was added.
  Change result(std::uint64_t seed = 0, std::int64_t resamples = 2000) const;

  static constexpr std::int64_t chunk_size = 64;
  static constexpr std::int64_t fewest_chunks = 20;
  static constexpr std::size_t figures = 7;  // loss_base, loss_edited, loss_change, kl, kl_reverse, flips, tv

 private:
  struct Chunk {
    std::int64_t document = 0, predictions = 0;
    std::array<double, figures> sums{};
  };
  Options options_;
  std::vector<Chunk> chunks_;
  PerToken per_token_;
  std::int64_t predictions_ = 0;
  double largest_difference_ = 0.0;
};

}  // namespace scalevec
