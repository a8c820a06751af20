#pragma once

#include <array>
#include <cstdint>

namespace scalevec {

/// Philox 4x32-10 (Salmon et al., 2011): random numbers as a function of (seed, stream, counter), so that a
/// bootstrap or a sampled text is the same on every machine, in any order of evaluation.
class Philox {
 public:
  Philox(std::uint64_t seed, std::uint64_t stream) : seed_(seed), stream_(stream) {}

  /// 128 random bits for one counter.
  std::array<std::uint32_t, 4> block(std::uint64_t counter) const {
    std::array<std::uint32_t, 4> x{low(counter), high(counter), low(stream_), high(stream_)};
    std::uint32_t key0 = low(seed_), key1 = high(seed_);
    for (int round = 0; round < 10; ++round) {
      const std::uint64_t a = std::uint64_t{0xD2511F53} * x[0], b = std::uint64_t{0xCD9E8D57} * x[2];
      x = {high(b) ^ x[1] ^ key0, low(b), high(a) ^ x[3] ^ key1, low(a)};
      key0 += 0x9E3779B9;
      key1 += 0xBB67AE85;
    }
    return x;
  }

  /// Uniform in [0, 1), 53 bits: number `index` of this stream.
  double uniform(std::uint64_t index) const {
    const auto x = block(index / 2);
    const std::size_t half = index % 2 == 0 ? 0 : 2;
    const std::uint64_t bits = (std::uint64_t{x[half + 1]} << 32) | x[half];
    return static_cast<double>(bits >> 11) * 0x1p-53;
  }

 private:
  static std::uint32_t low(std::uint64_t v) { return static_cast<std::uint32_t>(v); }
  static std::uint32_t high(std::uint64_t v) { return static_cast<std::uint32_t>(v >> 32); }
  std::uint64_t seed_, stream_;
};

}  // namespace scalevec
