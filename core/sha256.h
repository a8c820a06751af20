#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace scalevec {

/// SHA-256 (FIPS 180-4) of bytes that come in pieces. Uses the processor's SHA instructions where it has
/// them.
class Sha256 {
 public:
  Sha256();
  void update(std::span<const std::byte> bytes);

  /// Of everything so far; more may follow.
  std::array<std::byte, 32> digest() const;
  /// 64 lower-case digits.
  std::string hex() const;

 private:
  std::array<std::uint32_t, 8> state_;
  std::array<std::byte, 64> pending_{};  // the last total_ % 64 bytes
  std::uint64_t total_ = 0;
};

/// Sha256 of one span, as 64 lower-case digits.
std::string sha256_hex(std::span<const std::byte> bytes);

namespace detail {
/// Advances `state` over whole 64-byte blocks; the portable version is apart so that tests can compare the
/// two.
void sha256_blocks_portable(std::array<std::uint32_t, 8>& state, std::span<const std::byte> blocks);
void sha256_blocks(std::array<std::uint32_t, 8>& state, std::span<const std::byte> blocks);
}  // namespace detail

}  // namespace scalevec
