#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace scalevec {

/// A language of known entropy: `order` ids decide over the next. Ids and transitions are functions of the
/// seed, the same on every machine whose log and exp round alike; `digest` tells.
class MarkovChain {
 public:
  /// Every row of transition probabilities is drawn from the symmetric Dirichlet distribution with
  /// `concentration` (small: few ids may follow; 1: any row is as likely as any other) and rounded to
  /// multiples of 2^-32, none of them 0. E_VALUE unless vocabulary is 2 to 65,536, order 1 to 8,
  /// concentration in [0.001, 10], and vocabulary^(order + 1) at most 2^24; or if the chain mixes so slowly
  /// that its stationary distribution is not found.
  MarkovChain(std::int64_t vocabulary, std::int64_t order, double concentration, std::uint64_t seed);

  /// E_VALUE as the constructor, but for the mixing, which takes its work; how many states it would have.
  static std::int64_t check(std::int64_t vocabulary, std::int64_t order, double concentration);

  std::int64_t vocabulary() const { return vocabulary_; }
  std::int64_t order() const { return order_; }
  /// vocabulary^order: a state is the last `order` ids, the oldest the most significant digit.
  std::int64_t states() const { return static_cast<std::int64_t>(stationary_.size()); }
  double probability(std::int64_t state, std::int64_t next) const;
  std::span<const double> stationary() const { return stationary_; }

  /// Entropy rate in nats: h = -sum_s pi(s) sum_j P(j | s) log P(j | s), with pi = pi P.
  double entropy() const;
  /// Mean entropy of id 1 to id `predictions` of a sample, each given all before it: the least loss that a
  /// model can reach. Differs from `entropy` by the first ids of an order of 2 or more, which know less.
  double entropy(std::int64_t predictions) const;

  /// Fills `ids` with the sample `index`, which begins with a draw from the stationary distribution; a
  /// function of (seed, index), and the beginning of every longer one.
  void sample(std::uint64_t index, std::span<std::int64_t> ids) const;

  /// "sha256:..." of the transition probabilities.
  std::string digest() const;

 private:
  std::vector<double> settle(std::vector<double> weights) const;  // pi, stepped until it changes no more
  double block_entropy(std::int64_t length) const;                // of `length` ids in a row, at most `order`

  std::int64_t vocabulary_, order_;
  std::uint64_t seed_;
  std::vector<std::uint32_t> below_;  // (states, vocabulary): 2^32 * sum of P(i | s) over i < j
  std::vector<double> stationary_, cumulated_;
};

}  // namespace scalevec
