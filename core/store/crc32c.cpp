#include <scalevec/core/store/crc32c.h>

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#include <nmmintrin.h>
#endif

namespace scalevec {
namespace {

// table[0] advances by one byte; table[k] by one byte that k more follow.
using Tables = std::array<std::array<std::uint32_t, 256>, 8>;
constexpr Tables make_tables() {
  Tables tables{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1) != 0 ? 0x82F63B78u : 0u);
    tables[0][i] = value;
  }
  for (std::size_t k = 1; k < tables.size(); ++k) {
    for (std::size_t i = 0; i < 256; ++i) {
      const std::uint32_t value = tables[k - 1][i];
      tables[k][i] = (value >> 8) ^ tables[0][value & 0xFF];
    }
  }
  return tables;
}
constexpr Tables tables = make_tables();

#if defined(__x86_64__)

bool has_crc_instruction() {
  static const bool has = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_SSE4_2) != 0;
  }();
  return has;
}

__attribute__((target("sse4.2"))) std::uint32_t crc_with_instruction(std::span<const std::byte> bytes,
                                                                     std::uint32_t before) {
  std::uint64_t crc = ~before & 0xFFFFFFFFu;
  for (; bytes.size() >= 8; bytes = bytes.subspan(8)) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data(), 8);
    crc = _mm_crc32_u64(crc, word);
  }
  auto rest = static_cast<std::uint32_t>(crc);
  for (const std::byte byte : bytes) rest = _mm_crc32_u8(rest, std::to_integer<std::uint8_t>(byte));
  return ~rest;
}

#endif

}  // namespace

std::uint32_t detail::crc32c_portable(std::span<const std::byte> bytes, std::uint32_t before) {
  std::uint32_t crc = ~before;
  for (; bytes.size() >= 8; bytes = bytes.subspan(8)) {
    std::uint32_t next = 0;
    for (std::size_t i = 0; i < 8; ++i) {
      const auto byte = std::to_integer<std::uint32_t>(bytes[i]);
      next ^= tables[7 - i][i < 4 ? byte ^ ((crc >> (8 * i)) & 0xFF) : byte];
    }
    crc = next;
  }
  for (const std::byte byte : bytes) {
    crc = (crc >> 8) ^ tables[0][(crc ^ std::to_integer<std::uint32_t>(byte)) & 0xFF];
  }
  return ~crc;
}

std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t before) {
#if defined(__x86_64__)
  if (has_crc_instruction()) return crc_with_instruction(bytes, before);
#endif
  return detail::crc32c_portable(bytes, before);
}

}  // namespace scalevec
