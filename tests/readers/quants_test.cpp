#include <scalevec/core/checkpoint/quants.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <thread>

#include <doctest/doctest.h>

#include <scalevec/core/error.h>

#include "readers/errors.h"

// Bit equality with the gguf package is tests/python/test_quants.py. Here: one element at a time by the
// formulas of the format, in another arrangement than the library's loops, and the edges of the interface.

using namespace scalevec;

namespace {

using Block = std::vector<unsigned char>;

constexpr DType block_types[] = {DType::q4_0, DType::q4_1, DType::q5_0, DType::q5_1, DType::q8_0,
                                 DType::q2_k, DType::q3_k, DType::q4_k, DType::q5_k, DType::q6_k};

float half_at(const Block& b, std::size_t at) {
  const std::byte bytes[] = {std::byte{b[at]}, std::byte{b[at + 1]}};
  return static_cast<float>(decode(DType::f16, bytes)[0]);
}

int signed_at(const Block& b, std::size_t at) { return static_cast<signed char>(b[at]); }

void six_bits(const Block& b, std::size_t j, int& scale, int& minimum) {
  const auto sc = [&](std::size_t i) { return static_cast<int>(b[4 + i]); };
  scale = j < 4 ? sc(j) & 63 : (sc(j + 4) & 15) | (sc(j - 4) >> 6) << 4;
  minimum = j < 4 ? sc(j + 4) & 63 : sc(j + 4) >> 4 | (sc(j) >> 6) << 4;
}

// Element i of a block, written down from the layout tables.
float element(DType dtype, const Block& b, std::size_t i) {
  const auto nibble = [&](std::size_t qs) { return i < 16 ? b[qs + i] & 15 : b[qs + i - 16] >> 4; };
  const auto fifth = [&](std::size_t qh) { return (b[qh + i / 8] >> i % 8 & 1) << 4; };
  const std::size_t low = 32 * (i / 128) + i % 32;  // where the two-bit types keep element i
  const int shift = 2 * static_cast<int>(i % 128 / 32);
  int scale = 0, minimum = 0;
  switch (dtype) {
    case DType::q4_0:
      return half_at(b, 0) * static_cast<float>(nibble(2) - 8);
    case DType::q4_1:
      return half_at(b, 0) * static_cast<float>(nibble(4)) + half_at(b, 2);
    case DType::q5_0:
      return half_at(b, 0) * static_cast<float>((nibble(6) | fifth(2)) - 16);
    case DType::q5_1:
      return half_at(b, 0) * static_cast<float>(nibble(8) | fifth(4)) + half_at(b, 2);
    case DType::q8_0:
      return half_at(b, 0) * static_cast<float>(signed_at(b, 2 + i));
    case DType::q2_k: {
      const float quant = static_cast<float>(b[16 + low] >> shift & 3);
      return half_at(b, 80) * static_cast<float>(b[i / 16] & 15) * quant -
             half_at(b, 82) * static_cast<float>(b[i / 16] >> 4);
    }
    case DType::q3_k: {
      const std::size_t g = i / 16;
      scale = ((b[96 + g % 8] >> 4 * (g / 8) & 15) | (b[104 + g % 4] >> 2 * (g / 4) & 3) << 4) - 32;
      const int quant = (b[32 + low] >> shift & 3) - ((b[i % 32] >> i / 32 & 1) != 0 ? 0 : 4);
      return half_at(b, 108) * static_cast<float>(scale) * static_cast<float>(quant);
    }
    case DType::q4_k:
    case DType::q5_k: {
      six_bits(b, i / 32, scale, minimum);
      const std::size_t qs = dtype == DType::q4_k ? 16 : 48;
      int quant = b[qs + 32 * (i / 64) + i % 32] >> 4 * (i / 32 % 2) & 15;
      if (dtype == DType::q5_k) quant |= (b[16 + i % 32] >> i / 32 & 1) << 4;
      return half_at(b, 0) * static_cast<float>(scale) * static_cast<float>(quant) -
             half_at(b, 2) * static_cast<float>(minimum);
    }
    case DType::q6_k: {
      const std::size_t h = i / 128, k = i % 128 / 32, l = i % 32;
      const int quant =
          (b[64 * h + 32 * (k % 2) + l] >> 4 * (k / 2) & 15) | (b[128 + 32 * h + l] >> 2 * k & 3) << 4;
      return half_at(b, 208) * static_cast<float>(signed_at(b, 192 + i / 16)) *
             static_cast<float>(quant - 32);
    }
    default:
      return 0;
  }
}

// Random bytes; the scales are random too, so that infinities, NaNs and subnormals come by themselves.
Block random_blocks(DType dtype, std::size_t count, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  Block bytes(count * block_layout(dtype).bytes);
  for (unsigned char& b : bytes) b = static_cast<unsigned char>(random());
  return bytes;
}

std::vector<float> values_of(DType dtype, const Block& bytes) {
  const BlockLayout layout = block_layout(dtype);
  std::vector<float> values(bytes.size() / layout.bytes * layout.elements);
  dequantise(dtype, std::as_bytes(std::span(bytes)), values);
  return values;
}

bool same(float a, float b) {
  return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b) ||
         (std::isnan(a) && std::isnan(b));
}

}  // namespace

TEST_CASE("dequantise: every element of random blocks is what the layout says, bit for bit") {
  for (const DType dtype : block_types) {
    CAPTURE(dtype_name(dtype));
    const BlockLayout layout = block_layout(dtype);
    constexpr std::size_t count = 2000;
    const Block bytes = random_blocks(dtype, count, 1);
    const std::vector<float> values = values_of(dtype, bytes);
    int wrong = 0, odd = 0;
    for (std::size_t block = 0; block < count; ++block) {
      const auto at = bytes.begin() + static_cast<std::ptrdiff_t>(block * layout.bytes);
      const Block one(at, at + static_cast<std::ptrdiff_t>(layout.bytes));
      for (std::size_t i = 0; i < layout.elements; ++i) {
        const float value = values[block * layout.elements + i];
        wrong += !same(value, element(dtype, one, i));
        odd += !std::isfinite(value);
      }
    }
    CHECK(wrong == 0);
    CHECK(odd > 0);
  }
}

TEST_CASE("dequantise: every F16 and BF16, with the bits of NaNs, and F32 and F64") {
  std::vector<std::uint16_t> all(65'536);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::uint16_t>(i);
  std::vector<float> values(all.size());
  for (const DType dtype : {DType::f16, DType::bf16}) {
    dequantise(dtype, std::as_bytes(std::span(all)), values);
    const std::vector<double> exact = decode(dtype, std::as_bytes(std::span(all)));
    int wrong = 0;
    for (std::size_t i = 0; i < all.size(); ++i) {
      std::uint32_t bits = 0;
      encode(DType::f32, exact[i], std::as_writable_bytes(std::span(&bits, 1)));
      wrong += std::bit_cast<std::uint32_t>(values[i]) != bits;
    }
    CHECK(wrong == 0);
  }
  const std::vector<double> wide{0.1, -0.0, 1e300, 1e-46, INFINITY};
  std::vector<float> narrow(wide.size());
  dequantise(DType::f64, std::as_bytes(std::span(wide)), narrow);
  CHECK(narrow == std::vector<float>{0.1f, -0.0f, INFINITY, 0.0f, INFINITY});
  CHECK(std::signbit(narrow[1]));
  std::vector<float> copy(narrow.size());
  dequantise(DType::f32, std::as_bytes(std::span(narrow)), copy);
  CHECK(copy == narrow);
}

TEST_CASE("dequantise: parts of a tensor, from any address and from several threads, make the whole") {
  for (const DType dtype : block_types) {
    CAPTURE(dtype_name(dtype));
    const BlockLayout layout = block_layout(dtype);
    const Block bytes = random_blocks(dtype, 97, 2);
    const std::vector<float> whole = values_of(dtype, bytes);
    Block shifted(bytes.size() + 1);
    std::copy(bytes.begin(), bytes.end(), shifted.begin() + 1);
    std::vector<float> parts(whole.size());
    {
      std::vector<std::jthread> threads;
      for (std::size_t first = 0; first < 97; first += 25) {
        threads.emplace_back([&, first] {
          const std::size_t blocks = std::min<std::size_t>(25, 97 - first);
          dequantise(
              dtype,
              std::as_bytes(std::span(shifted)).subspan(1 + first * layout.bytes, blocks * layout.bytes),
              std::span(parts).subspan(first * layout.elements, blocks * layout.elements));
        });
      }
    }
    CHECK(std::memcmp(parts.data(), whole.data(), whole.size() * sizeof(float)) == 0);
  }
}

TEST_CASE("dequantise: sizes that do not fit and types without values are refused") {
  std::vector<std::byte> in(36);
  std::vector<float> out(64);
  dequantise(DType::q4_0, in, out);
  dequantise(DType::q4_0, {}, {});
  refusal([&] { dequantise(DType::q4_0, std::span(in).first(35), out); }, ErrorCode::size);
  refusal([&] { dequantise(DType::q4_0, in, std::span(out).first(63)); }, ErrorCode::size);
  refusal([&] { dequantise(DType::q4_0, in, std::span(out).first(32)); }, ErrorCode::size);
  const TensorInfo tensor{.name = "w", .dtype = DType::other, .dtype_text = "IQ2_XXS", .shape = {256}};
  const ErrorFields fields = refusal([&] { dequantise(tensor, in, out); }, ErrorCode::dtype);
  CHECK(fields.tensor == "w");
  CHECK(fields.found == "IQ2_XXS");
  for (const DType dtype : {DType::q8_1, DType::q8_k, DType::i8, DType::other, DType::f8_e4m3}) {
    CHECK(!can_dequantise(dtype));
    refusal([&] { dequantise(dtype, in, out); }, ErrorCode::dtype);
  }
}

TEST_CASE("ggml types: numbers, names and blocks; removed numbers are unknown") {
  int known = 0;
  for (std::uint32_t id = 0; id < 1000; ++id) {
    const GgmlType* type = ggml_type(id);
    if (type == nullptr) continue;
    ++known;
    CHECK(type->id == id);
    if (type->dtype == DType::other) continue;
    CHECK(type->name == dtype_name(type->dtype));
    CHECK(type->block.elements == block_layout(type->dtype).elements);
    CHECK(type->block.bytes == block_layout(type->dtype).bytes);
  }
  CHECK(known == 34);
  for (const std::uint32_t id : {4u, 5u, 31u, 32u, 33u, 36u, 37u, 38u, 1000u, ~0u})
    CHECK(ggml_type(id) == nullptr);
  CHECK(ggml_type(16)->name == "IQ2_XXS");
}
