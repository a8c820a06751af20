#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace scalevec {

/// CRC-32C (Castagnoli; RFC 3720, B.4) of `bytes` behind those whose CRC is `before`. Uses the processor's
/// instruction where it has one.
std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t before = 0);

namespace detail {
/// Apart so that tests can compare the two.
std::uint32_t crc32c_portable(std::span<const std::byte> bytes, std::uint32_t before);
}  // namespace detail

}  // namespace scalevec
