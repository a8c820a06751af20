#include <scalevec/core/dtype.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <doctest/doctest.h>

#include <scalevec/core/error.h>

#include "readers/errors.h"

using namespace scalevec;

namespace {

template <class Bits>
double decoded(DType dtype, Bits bits) {
  return decode(dtype, std::as_bytes(std::span(&bits, 1))).at(0);
}

template <class Bits>
Bits encoded(DType dtype, double value) {
  Bits bits{};
  encode(dtype, value, std::as_writable_bytes(std::span(&bits, 1)));
  return bits;
}

bool same_bits(double a, double b) {
  return std::bit_cast<std::uint64_t>(a) == std::bit_cast<std::uint64_t>(b);
}

// The value of a finite pattern by the definition of the format, in exact arithmetic.
double by_definition(std::uint32_t bits, int exponent_bits, int mantissa_bits) {
  const int exponent = static_cast<int>(bits >> mantissa_bits & ((1u << exponent_bits) - 1));
  const double mantissa = bits & ((1u << mantissa_bits) - 1);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const double magnitude = exponent == 0
                               ? std::ldexp(mantissa, 1 - bias - mantissa_bits)
                               : std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
  return bits >> (exponent_bits + mantissa_bits) != 0 ? -magnitude : magnitude;
}

void check_small_format(DType dtype, int exponent_bits, int mantissa_bits) {
  const std::uint32_t infinity = ((1u << exponent_bits) - 1) << mantissa_bits;
  int wrong = 0;
  for (std::uint32_t pattern = 0; pattern < 65'536; ++pattern) {
    const auto bits = static_cast<std::uint16_t>(pattern);
    const double value = decoded(dtype, bits);
    const std::uint32_t magnitude = pattern & 0x7FFF;
    if (magnitude < infinity)
      wrong += !same_bits(value, by_definition(pattern, exponent_bits, mantissa_bits));
    if (magnitude == infinity) wrong += value != (pattern >> 15 != 0 ? -INFINITY : INFINITY);
    if (magnitude > infinity) wrong += !std::isnan(value) || std::signbit(value) != (pattern >> 15 != 0);
    wrong += encoded<std::uint16_t>(dtype, value) != bits;  // NaNs too, with sign and payload
  }
  CHECK(wrong == 0);

  // Between neighbours: the midpoint goes to the even one, and the next double on either side to the nearer
  // one.
  for (std::uint32_t pattern = 0; pattern < infinity; ++pattern) {
    const double low = by_definition(pattern, exponent_bits, mantissa_bits);
    const bool last = pattern + 1 == infinity;
    const double step = last ? low - by_definition(pattern - 1, exponent_bits, mantissa_bits)
                             : by_definition(pattern + 1, exponent_bits, mantissa_bits) - low;
    const double middle = low + step / 2;
    const std::uint32_t even = pattern % 2 == 0 ? pattern : pattern + 1;  // past the last: infinity
    wrong += encoded<std::uint16_t>(dtype, middle) != even;
    wrong += encoded<std::uint16_t>(dtype, std::nextafter(middle, 0)) != pattern;
    wrong += encoded<std::uint16_t>(dtype, std::nextafter(middle, INFINITY)) != pattern + 1;
    wrong += encoded<std::uint16_t>(dtype, -middle) != (even | 0x8000);
  }
  CHECK(wrong == 0);
  CHECK(encoded<std::uint16_t>(dtype, 1e300) == infinity);
  CHECK(encoded<std::uint16_t>(dtype, -INFINITY) == (infinity | 0x8000));
  CHECK(encoded<std::uint16_t>(dtype, 5e-324) == 0);
  CHECK(encoded<std::uint16_t>(dtype, -5e-324) == 0x8000);
  CHECK(encoded<std::uint16_t>(dtype, -0.0) == 0x8000);
  // A payload in the bits that are dropped still makes a NaN.
  const auto low_payload = std::bit_cast<double>(std::uint64_t{0x7FF0000000000001});
  CHECK(encoded<std::uint16_t>(dtype, low_payload) > infinity);
}

}  // namespace

TEST_CASE("dtype: all 65,536 values of F16 are decoded exactly, and every double rounds to the nearest") {
  check_small_format(DType::f16, 5, 10);
}

TEST_CASE("dtype: all 65,536 values of BF16 are decoded exactly, and every double rounds to the nearest") {
  check_small_format(DType::bf16, 8, 7);
}

TEST_CASE("dtype: BF16 and F16 round once, not first to float32") {
  // Just above the midpoint of 1 and the next BF16: float32 drops the excess and the tie would go down to 1.
  CHECK(encoded<std::uint16_t>(DType::bf16, 1 + 0x1p-8 + 0x1p-40) == 0x3F81);
  CHECK(encoded<std::uint16_t>(DType::f16, 1 + 0x1p-11 + 0x1p-40) == 0x3C01);
}

TEST_CASE("dtype: F32 agrees with the processor, subnormals and overflow included") {
  std::mt19937_64 random(1);
  int wrong = 0;
  for (int i = 0; i < 300'000; ++i) {
    const auto bits = static_cast<std::uint32_t>(random());
    const auto value = std::bit_cast<float>(bits);
    const double wide = decoded(DType::f32, bits);
    if (std::isnan(value)) {
      wrong += !std::isnan(wide) || std::signbit(wide) != std::signbit(value);
    } else {
      wrong += !same_bits(wide, static_cast<double>(value));
    }
    wrong += encoded<std::uint32_t>(DType::f32, wide) != bits;

    // A double near float32's range, subnormals and overflow included.
    const double any = std::ldexp(static_cast<double>(random() | 1), static_cast<int>(random() % 300) - 220);
    wrong += encoded<std::uint32_t>(DType::f32, any) != std::bit_cast<std::uint32_t>(static_cast<float>(any));
  }
  CHECK(wrong == 0);
}

#if defined(__x86_64__)
TEST_CASE("dtype: subnormals survive in a process that flushes them to zero") {
  const unsigned before = _mm_getcsr();
  _mm_setcsr(before | 0x8040);  // flush results, and take operands for zero
  const double value = decoded(DType::f32, std::uint32_t{1});
  const auto bits = encoded<std::uint32_t>(DType::f32, 0x1p-149);
  const double half = decoded(DType::f16, std::uint16_t{1});
  _mm_setcsr(before);
  CHECK(value == 0x1p-149);
  CHECK(bits == 1);
  CHECK(half == 0x1p-24);
}
#endif

TEST_CASE("dtype: F64 passes through") {
  for (const std::uint64_t bits :
       {0x0ull, 0x8000000000000000ull, 0x7FF0000000000001ull, 0x1ull, 0x3FF123456789ABCDull}) {
    const double value = decoded(DType::f64, bits);
    CHECK(encoded<std::uint64_t>(DType::f64, value) == bits);
  }
}

TEST_CASE("dtype: names, blocks, and what a scale vector can be") {
  CHECK(dtype_name(DType::bf16) == "BF16");
  CHECK(dtype_name(DType::q4_k) == "Q4_K");
  CHECK(dtype_name(DType::boolean) == "BOOL");
  for (const DType dtype : {DType::f64, DType::f32, DType::f16, DType::bf16}) {
    CHECK(is_scale_dtype(dtype));
    CHECK(!is_quantised(dtype));
    CHECK(scale_dtype_bytes(dtype) == block_layout(dtype).bytes);
  }
  for (const DType dtype : {DType::i8, DType::u64, DType::f8_e4m3, DType::c64}) {
    CHECK(!is_scale_dtype(dtype));
    CHECK(!is_quantised(dtype));
    CHECK(scale_dtype_bytes(dtype) == 0);
  }
  for (const DType dtype : {DType::q4_0, DType::q8_k, DType::other}) {
    CHECK(!is_scale_dtype(dtype));
    CHECK(is_quantised(dtype));
  }
  CHECK(block_layout(DType::q6_k).elements == 256);
  CHECK(block_layout(DType::q6_k).bytes == 210);
  CHECK(block_layout(DType::other).bytes == 0);
}

TEST_CASE("dtype: other types and wrong sizes are refused") {
  std::array<std::byte, 6> bytes{};
  CHECK(refusal([&] { decode(DType::q8_0, bytes); }, ErrorCode::dtype).found == "Q8_0");
  CHECK(refusal([&] { encode(DType::i8, 1, std::span(bytes).first(1)); }, ErrorCode::dtype).found == "I8");
  CHECK(refusal([&] { decode(DType::f32, bytes); }, ErrorCode::size).found == "6");
  CHECK(refusal([&] { encode(DType::f32, 1, bytes); }, ErrorCode::size).found == "6");
  CHECK(decode(DType::f16, bytes) == std::vector<double>(3));
  CHECK(decode(DType::f32, {}).empty());
}
