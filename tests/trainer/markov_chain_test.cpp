#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <numeric>
#include <vector>

#include <doctest/doctest.h>
#include <support/errors.h>

#include <scalevec/trainer/markov_chain.h>

using namespace scalevec;
using scalevec::testing::error_of;

namespace {

double binary_entropy(double p) { return -p * std::log(p) - (1.0 - p) * std::log(1.0 - p); }

// The stationary distribution by Grassmann, Taksar and Heyman's elimination: it subtracts nothing.
std::vector<double> stationary_by_elimination(const MarkovChain& chain) {
  const auto n = static_cast<std::size_t>(chain.states());
  std::vector<double> p(n * n);
  for (std::size_t s = 0; s < n; ++s)
    for (std::int64_t j = 0; j < chain.vocabulary(); ++j) {
      const auto state = static_cast<std::int64_t>(s);
      const auto to = static_cast<std::size_t>((state * chain.vocabulary() + j) % chain.states());
      p[s * n + to] += chain.probability(state, j);
    }
  for (std::size_t k = n - 1; k > 0; --k) {
    double leaving = 0.0;
    for (std::size_t j = 0; j < k; ++j) leaving += p[k * n + j];
    for (std::size_t i = 0; i < k; ++i) p[i * n + k] /= leaving;
    for (std::size_t i = 0; i < k; ++i)
      for (std::size_t j = 0; j < k; ++j) p[i * n + j] += p[i * n + k] * p[k * n + j];
  }
  std::vector<double> pi{1.0};
  for (std::size_t k = 1; k < n; ++k) {
    double sum = 0.0;
    for (std::size_t i = 0; i < k; ++i) sum += pi[i] * p[i * n + k];
    pi.push_back(sum);
  }
  const double total = std::accumulate(pi.begin(), pi.end(), 0.0);
  for (double& value : pi) value /= total;
  return pi;
}

struct Shape {
  std::int64_t vocabulary, order;
  double concentration;
};
constexpr Shape shapes[] = {{2, 1, 0.3}, {5, 1, 1.0},  {64, 1, 0.1}, {300, 1, 0.02},
                            {3, 2, 0.5}, {10, 2, 0.1}, {2, 8, 1.5},  {4, 4, 2.5}};

}  // namespace

TEST_CASE("MarkovChain: rows are probabilities, none 0") {
  for (const auto& [vocabulary, order, concentration] : shapes) {
    const MarkovChain chain(vocabulary, order, concentration, 11);
    CHECK(chain.states() == std::lround(std::pow(vocabulary, order)));
    for (std::int64_t s = 0; s < chain.states(); ++s) {
      double sum = 0.0, least = 1.0;
      for (std::int64_t j = 0; j < vocabulary; ++j) {
        sum += chain.probability(s, j);
        least = std::min(least, chain.probability(s, j));
      }
      CHECK(sum == 1.0);  // multiples of 2^-32
      CHECK(least >= 0x1p-32);
    }
  }
}

TEST_CASE("MarkovChain: the stationary distribution is that of an elimination") {
  for (const auto& [vocabulary, order, concentration] : shapes) {
    CAPTURE(vocabulary);
    CAPTURE(order);
    const MarkovChain chain(vocabulary, order, concentration, 12);
    const std::vector<double> oracle = stationary_by_elimination(chain);
    double off = 0.0;
    for (std::size_t s = 0; s < oracle.size(); ++s) off += std::abs(chain.stationary()[s] - oracle[s]);
    CHECK(off < 1e-11);
  }
}

TEST_CASE("MarkovChain: one that does not forget where it began is refused, never wrong") {
  int refused = 0, right = 0;
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    CAPTURE(seed);
    try {
      const MarkovChain chain(4, 1, seed % 2 == 0 ? 0.01 : 0.06, seed);
      const std::vector<double> oracle = stationary_by_elimination(chain);
      for (std::size_t s = 0; s < oracle.size(); ++s)
        CHECK(std::abs(chain.stationary()[s] - oracle[s]) < 1e-10);
      ++right;
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::value);
      CHECK(error.fields().key == "concentration");
      ++refused;
    }
  }
  CHECK(refused > 10);
  CHECK(right > 10);
}

TEST_CASE("MarkovChain: the entropy of a chain of two states is (q H(p) + p H(q)) / (p + q)") {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    const MarkovChain chain(2, 1, 1.0, seed);
    const double p = chain.probability(0, 1), q = chain.probability(1, 0);
    CHECK(std::abs(chain.entropy() - (q * binary_entropy(p) + p * binary_entropy(q)) / (p + q)) < 1e-11);
    CHECK(chain.entropy(7) ==
          doctest::Approx(chain.entropy()).epsilon(1e-14));  // one id decides: no id knows less
  }
}

TEST_CASE("MarkovChain: entropies of rows are those of the Dirichlet distribution") {
  // E H = psi(n a + 1) - psi(a + 1); digamma by its recurrence and asymptotic series.
  const auto psi = [](double x) {
    double shift = 0.0;
    for (; x < 20.0; x += 1.0) shift -= 1.0 / x;
    const double y = 1.0 / (x * x);
    return shift + std::log(x) - 0.5 / x - y * (1.0 / 12 - y * (1.0 / 120 - y / 252));
  };
  CHECK(std::abs(psi(1.0) + std::numbers::egamma) < 1e-12);
  for (const double a : {0.02, 0.1, 0.5, 1.0, 1.5, 4.0}) {
    CAPTURE(a);
    constexpr std::int64_t n = 200;
    const MarkovChain chain(n, 1, a, 5);
    std::vector<double> entropies(n);
    for (std::int64_t s = 0; s < n; ++s)
      for (std::int64_t j = 0; j < n; ++j) {
        const double p = chain.probability(s, j);
        entropies[static_cast<std::size_t>(s)] -= p * std::log(p);
      }
    const double mean = std::accumulate(entropies.begin(), entropies.end(), 0.0) / n;
    double variance = 0.0;
    for (const double h : entropies) variance += (h - mean) * (h - mean) / (n - 1);
    // Five standard errors, and what the least probability of 2^-32 adds: at most n * 2^-32 * log(2^32).
    CHECK(std::abs(mean - (psi(n * a + 1.0) - psi(a + 1.0))) < 5.0 * std::sqrt(variance / n) + 1.1e-6);
  }
}

TEST_CASE("MarkovChain: a long sample has the entropy, the states and the first ids that are said") {
  for (const auto& [vocabulary, order, concentration] : shapes) {
    CAPTURE(vocabulary);
    CAPTURE(order);
    const MarkovChain chain(vocabulary, order, concentration, 13);
    // Independent samples, so that the mean of each is independent of the others.
    constexpr int samples = 400;
    constexpr std::int64_t predictions = 500;
    std::vector<std::int64_t> ids(predictions + 1);
    std::vector<double> losses, of_all;
    std::vector<double> first(static_cast<std::size_t>(vocabulary));
    for (std::uint64_t i = 0; i < samples; ++i) {
      chain.sample(i, ids);
      ++first[static_cast<std::size_t>(ids[0])];
      std::int64_t state = 0;
      double sum = 0.0;
      for (std::size_t t = 0; t < ids.size(); ++t) {
        REQUIRE(ids[t] >= 0);
        REQUIRE(ids[t] < vocabulary);
        if (static_cast<std::int64_t>(t) >= order) sum -= std::log(chain.probability(state, ids[t]));
        state = (state * vocabulary + ids[t]) % chain.states();
      }
      losses.push_back(sum / static_cast<double>(predictions + 1 - order));
    }
    const double mean = std::accumulate(losses.begin(), losses.end(), 0.0) / samples;
    double variance = 0.0;
    for (const double loss : losses) variance += (loss - mean) * (loss - mean) / (samples - 1);
    CHECK(std::abs(mean - chain.entropy()) < 5.0 * std::sqrt(variance / samples));

    // The chance of each first id is that of the states that begin with it.
    const std::int64_t alike = chain.states() / vocabulary;
    for (std::int64_t id = 0; id < vocabulary; ++id) {
      const auto begin = chain.stationary().begin() + id * alike;
      const double p = std::accumulate(begin, begin + alike, 0.0);
      const double off = 5.5 * std::sqrt(samples * p * (1.0 - p)) + 5.5;
      CHECK(std::abs(first[static_cast<std::size_t>(id)] - samples * p) < off);
    }
  }
}

TEST_CASE("MarkovChain: the first ids together are as likely as the chain says") {
  const MarkovChain chain(3, 1, 1.0, 8);
  constexpr int samples = 50'000;
  std::vector<double> counts(3 * 3 * 3 * 3 * 3);
  std::vector<std::int64_t> ids(5);
  for (std::uint64_t i = 0; i < samples; ++i) {
    chain.sample(i, ids);
    std::size_t cell = 0;
    for (const std::int64_t id : ids) cell = cell * 3 + static_cast<std::size_t>(id);
    ++counts[cell];
  }
  for (std::size_t cell = 0; cell < counts.size(); ++cell) {
    auto state = static_cast<std::int64_t>(cell / 81);
    double p = chain.stationary()[cell / 81];
    for (std::size_t digit = 27; digit > 0; digit /= 3) {
      const auto next = static_cast<std::int64_t>(cell / digit % 3);
      p *= chain.probability(state, next);
      state = next;
    }
    CHECK(std::abs(counts[cell] - samples * p) < 5.5 * std::sqrt(samples * p * (1.0 - p)) + 5.5);
  }
}

TEST_CASE("MarkovChain: the entropy of a window is that of all its samples, by enumeration") {
  // The joint distribution of the ids of a short window, from the states and transitions alone.
  const MarkovChain chain(3, 2, 0.5, 21);
  for (std::int64_t predictions = 1; predictions <= 6; ++predictions) {
    std::vector<double> joint(9), first(3);
    for (std::size_t s = 0; s < 9; ++s) {
      joint[s] = chain.stationary()[s];
      first[s / 3] += joint[s];
    }
    for (std::int64_t length = 2; length < predictions + 1; ++length) {
      std::vector<double> longer(joint.size() * 3);
      for (std::size_t w = 0; w < joint.size(); ++w)
        for (std::size_t j = 0; j < 3; ++j)
          longer[w * 3 + j] =
              joint[w] * chain.probability(static_cast<std::int64_t>(w % 9), static_cast<std::int64_t>(j));
      joint = longer;
    }
    const auto entropy_of = [](const std::vector<double>& p) {
      double sum = 0.0;
      for (const double value : p) sum -= value * std::log(value);
      return sum;
    };
    CHECK(std::abs(chain.entropy(predictions) -
                   (entropy_of(joint) - entropy_of(first)) / static_cast<double>(predictions)) < 1e-11);
  }
  CHECK(chain.entropy(1) > chain.entropy());
  CHECK(std::abs(chain.entropy(1'000'000) - chain.entropy()) < 1e-5);
}

TEST_CASE("MarkovChain: a sample is a function of seed and index, and the beginning of a longer one") {
  for (const std::int64_t order : {1, 3}) {
    const MarkovChain chain(16, order, 0.5, 1), again(16, order, 0.5, 1), other(16, order, 0.5, 2);
    std::vector<std::int64_t> a(100), b(100), c(100), d(100);
    chain.sample(5, a);
    chain.sample(6, b);
    again.sample(5, c);
    other.sample(5, d);
    CHECK(a == c);
    CHECK(a != b);
    CHECK(a != d);
    CHECK(chain.digest() == again.digest());
    CHECK(chain.digest() != other.digest());
    for (const std::size_t length : {1, 2, 3, 4, 9}) {
      std::vector<std::int64_t> part(length);
      chain.sample(5, part);
      CHECK(std::equal(part.begin(), part.end(), a.begin()));
    }
  }
}

TEST_CASE("MarkovChain: refusals") {
  const auto refused = [](std::int64_t vocabulary, std::int64_t order, double concentration) {
    const auto caught = error_of([&] { MarkovChain(vocabulary, order, concentration, 0); });
    CHECK(caught.code == ErrorCode::value);
    return caught.fields.key;
  };
  CHECK(refused(1, 1, 0.1) == "vocabulary");
  CHECK(refused(65'537, 1, 0.1) == "vocabulary");
  CHECK(refused(4, 0, 0.1) == "order");
  CHECK(refused(4, 9, 0.1) == "order");
  CHECK(refused(4, 1, 0.0) == "concentration");
  CHECK(refused(4, 1, 11.0) == "concentration");
  CHECK(refused(4, 1, std::nan("")) == "concentration");
  CHECK(refused(4'097, 1, 0.1) == "vocabulary to the power of order + 1");
  CHECK(refused(65'536, 8, 0.1) == "vocabulary to the power of order + 1");
}
