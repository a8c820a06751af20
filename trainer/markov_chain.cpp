#include <scalevec/trainer/markov_chain.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>

#include <fmt/format.h>

#include <scalevec/core/error.h>
#include <scalevec/core/random.h>
#include <scalevec/core/sha256.h>

namespace scalevec {
namespace {

constexpr std::int64_t most_transitions = std::int64_t{1} << 24;
constexpr std::uint64_t row_streams = std::uint64_t{1} << 63;  // samples have the streams below
constexpr double whole = 0x1p32;
constexpr const char* mixing = "larger: so few ids follow each that the chain does not forget where it began";

void require(bool holds, std::string_view what, const std::string& expected, const std::string& found) {
  if (holds) return;
  fail(ErrorCode::value, fmt::format("synthetic source: {} is {}", what, found),
       {.key = std::string(what), .expected = expected, .found = found});
}

class Uniforms {
 public:
  Uniforms(std::uint64_t seed, std::uint64_t stream) : random_(seed, stream) {}
  double log() { return std::log(1.0 - random_.uniform(next_++)); }  // of (0, 1]

 private:
  Philox random_;
  std::uint64_t next_ = 0;
};

// The logarithm of a gamma variate: a value of shape 0.001 itself would underflow.
double log_gamma_variate(double shape, Uniforms& uniforms) {
  double whole_part = 0.0;  // a sum of exponential variates
  for (; shape >= 1.0; shape -= 1.0) whole_part -= uniforms.log();
  if (shape == 0.0) return std::log(whole_part);
  // Johnk (1964): an exponential variate times a beta variate.
  for (;;) {
    const double x = uniforms.log() / shape, y = uniforms.log() / (1.0 - shape);
    const double larger = std::max(x, y);
    const double sum = larger + std::log(std::exp(x - larger) + std::exp(y - larger));
    if (sum > 0.0) continue;
    const double fraction = x - sum + std::log(-uniforms.log());
    return whole_part == 0.0 ? fraction : std::log(whole_part + std::exp(fraction));
  }
}

void draw_row(double concentration, Uniforms uniforms, std::span<std::uint32_t> below) {
  std::vector<double> weights(below.size());
  for (double& weight : weights) weight = log_gamma_variate(concentration, uniforms);
  const double largest = *std::max_element(weights.begin(), weights.end());
  for (double& weight : weights) weight = std::exp(weight - largest);
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);

  const double shared = whole - static_cast<double>(below.size());  // each id has one part already
  std::uint64_t sum = 0;  // what rounding leaves falls to the last id
  for (std::size_t j = 0; j < below.size(); ++j) {
    below[j] = static_cast<std::uint32_t>(sum);
    sum += 1 + static_cast<std::uint64_t>(weights[j] / total * shared);
  }
}

double minus_p_log_p(double p) { return p > 0.0 ? -p * std::log(p) : 0.0; }

}  // namespace

std::int64_t MarkovChain::check(std::int64_t vocabulary, std::int64_t order, double concentration) {
  require(vocabulary >= 2 && vocabulary <= 65'536, "vocabulary", "2 to 65536", fmt::format("{}", vocabulary));
  require(order >= 1 && order <= 8, "order", "1 to 8", fmt::format("{}", order));
  require(concentration >= 0.001 && concentration <= 10.0, "concentration", "0.001 to 10",
          fmt::format("{}", concentration));
  std::int64_t count = 1;
  for (std::int64_t i = 0; i < order && count <= most_transitions; ++i) count *= vocabulary;
  require(count * vocabulary <= most_transitions, "vocabulary to the power of order + 1",
          fmt::format("at most {}", most_transitions), fmt::format("{} to the {}", vocabulary, order + 1));
  return count;
}

MarkovChain::MarkovChain(std::int64_t vocabulary, std::int64_t order, double concentration,
                         std::uint64_t seed)
    : vocabulary_(vocabulary), order_(order), seed_(seed) {
  const std::int64_t count = check(vocabulary, order, concentration);
  const auto width = static_cast<std::size_t>(vocabulary), states = static_cast<std::size_t>(count);
  below_.resize(states * width);
  for (std::size_t s = 0; s < states; ++s) {
    draw_row(concentration, Uniforms(seed, row_streams | s), std::span(below_).subspan(s * width, width));
  }

  // A chain that hardly ever leaves some states changes little in a step, wherever it is: it would end near
  // where it began. So it begins twice, and must end at one place.
  std::vector<double> alike(states, 1.0), one(states);
  one[0] = 1.0;
  stationary_ = settle(std::move(alike));
  const std::vector<double> again = settle(std::move(one));
  double apart = 0.0;
  for (std::size_t s = 0; s < states; ++s) apart += std::abs(stationary_[s] - again[s]);
  require(apart < 1e-10, "concentration", mixing, fmt::format("{}", concentration));
  cumulated_.resize(states);
  std::partial_sum(stationary_.begin(), stationary_.end(), cumulated_.begin());
}

std::vector<double> MarkovChain::settle(std::vector<double> weights) const {
  constexpr int most_steps = 5'000;
  const std::size_t states = weights.size(), width = static_cast<std::size_t>(vocabulary_);
  std::vector<double> next(states);
  double change = 1.0;
  for (int step = 0; change > 1e-13 && step < most_steps; ++step) {
    std::fill(next.begin(), next.end(), 0.0);
    for (std::size_t s = 0; s < states; ++s) {
      const std::size_t to = s * width % states;
      for (std::size_t j = 0; j < width; ++j)
        next[to + j] += weights[s] * probability(static_cast<std::int64_t>(s), static_cast<std::int64_t>(j));
    }
    const double sum = std::accumulate(next.begin(), next.end(), 0.0);
    change = 0.0;
    for (std::size_t s = 0; s < states; ++s) {
      next[s] /= sum;
      change += std::abs(next[s] - weights[s]);
    }
    std::swap(next, weights);
  }
  return weights;
}

double MarkovChain::probability(std::int64_t state, std::int64_t next) const {
  const auto at = static_cast<std::size_t>(state * vocabulary_ + next);
  const double end = next + 1 == vocabulary_ ? whole : static_cast<double>(below_[at + 1]);
  return (end - static_cast<double>(below_[at])) / whole;
}

double MarkovChain::entropy() const {
  double sum = 0.0;
  for (std::int64_t s = 0; s < states(); ++s) {
    double row = 0.0;
    for (std::int64_t j = 0; j < vocabulary_; ++j) row += minus_p_log_p(probability(s, j));
    sum += stationary_[static_cast<std::size_t>(s)] * row;
  }
  return sum;
}

double MarkovChain::entropy(std::int64_t predictions) const {
  require(predictions >= 1, "predictions", "1 or more", fmt::format("{}", predictions));
  const std::int64_t knowing_less = std::min(predictions + 1, order_);
  const auto knowing_all = static_cast<double>(predictions + 1 - knowing_less);
  return (block_entropy(knowing_less) - block_entropy(1) + knowing_all * entropy()) /
         static_cast<double>(predictions);
}

double MarkovChain::block_entropy(std::int64_t length) const {
  std::size_t alike = 1;  // states that begin with the same ids
  for (std::int64_t i = length; i < order_; ++i) alike *= static_cast<std::size_t>(vocabulary_);
  double sum = 0.0;
  for (auto first = stationary_.begin(); first != stationary_.end();
       first += static_cast<std::ptrdiff_t>(alike))
    sum += minus_p_log_p(std::accumulate(first, first + static_cast<std::ptrdiff_t>(alike), 0.0));
  return sum;
}

void MarkovChain::sample(std::uint64_t index, std::span<std::int64_t> ids) const {
  const Philox random(seed_, index & ~row_streams);
  const auto found = std::upper_bound(cumulated_.begin(), cumulated_.end(), random.uniform(0));
  std::int64_t state = std::min<std::int64_t>(found - cumulated_.begin(), states() - 1);

  const auto given = static_cast<std::size_t>(order_);
  std::int64_t digit = states(), rest = state;
  for (std::size_t i = 0; i < std::min(ids.size(), given); ++i) {
    digit /= vocabulary_;
    ids[i] = rest / digit;
    rest %= digit;
  }
  std::array<std::uint32_t, 4> drawn{};
  for (std::size_t i = given; i < ids.size(); ++i) {
    const std::size_t draw = i - given;
    if (draw % 4 == 0) drawn = random.block(1 + draw / 4);
    const auto row = below_.begin() + state * vocabulary_;
    ids[i] = std::upper_bound(row, row + vocabulary_, drawn[draw % 4]) - row - 1;
    state = (state * vocabulary_ + ids[i]) % states();
  }
}

std::string MarkovChain::digest() const { return "sha256:" + sha256_hex(std::as_bytes(std::span(below_))); }

}  // namespace scalevec
