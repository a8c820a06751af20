#include <scalevec/core/dtype.h>

#include <bit>
#include <cmath>

#include <fmt/format.h>

#include <scalevec/core/error.h>

namespace scalevec {
namespace {

// An IEEE binary format narrower than float64, or float64 itself.
struct Layout {
  int bytes;
  int exponent_bits;
  int mantissa_bits;
  int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  std::uint64_t infinity() const { return ((std::uint64_t{1} << exponent_bits) - 1) << mantissa_bits; }
  std::uint64_t sign() const { return std::uint64_t{1} << (exponent_bits + mantissa_bits); }
};

constexpr Layout f64{8, 11, 52};

Layout layout_of(DType dtype, std::string_view operation) {
  switch (dtype) {
    case DType::f64:
      return f64;
    case DType::f32:
      return {4, 8, 23};
    case DType::f16:
      return {2, 5, 10};
    case DType::bf16:
      return {2, 8, 7};
    default:
      fail(ErrorCode::dtype,
           fmt::format("{}: {} holds no scale vector; expected F64, F32, F16 or BF16", operation,
                       dtype_name(dtype)),
           {.expected = "F64, F32, F16 or BF16", .found = std::string(dtype_name(dtype))});
  }
}

// All arithmetic is on integers: a float32 subnormal would be lost where the caller has set the processor to
// flush them to zero, as torch.set_flush_denormal does.
double widen(std::uint64_t bits, const Layout& from) {
  const std::uint64_t sign = (bits & from.sign()) != 0 ? f64.sign() : 0;
  const std::uint64_t magnitude = bits & (from.sign() - 1);
  const std::uint64_t mantissa = magnitude & ((std::uint64_t{1} << from.mantissa_bits) - 1);
  const int raised = f64.mantissa_bits - from.mantissa_bits;
  if (magnitude >= from.infinity()) return std::bit_cast<double>(sign | f64.infinity() | mantissa << raised);
  const auto exponent = static_cast<int>(magnitude >> from.mantissa_bits);
  if (exponent == 0) {
    const double value = std::ldexp(static_cast<double>(mantissa), 1 - from.bias() - from.mantissa_bits);
    return std::bit_cast<double>(sign | std::bit_cast<std::uint64_t>(value));
  }
  const auto rebased = static_cast<std::uint64_t>(exponent - from.bias() + f64.bias());
  return std::bit_cast<double>(sign | rebased << f64.mantissa_bits | mantissa << raised);
}

std::uint64_t narrow(double value, const Layout& to) {
  const auto bits = std::bit_cast<std::uint64_t>(value);
  const std::uint64_t sign = (bits & f64.sign()) != 0 ? to.sign() : 0;
  const std::uint64_t magnitude = bits & (f64.sign() - 1);
  const int lowered = f64.mantissa_bits - to.mantissa_bits;
  if (magnitude > f64.infinity()) {
    const std::uint64_t payload = (magnitude & ~f64.infinity()) >> lowered;
    // A payload that lies in the low bits alone would turn the NaN into an infinity.
    return sign | to.infinity() | (payload != 0 ? payload : std::uint64_t{1} << (to.mantissa_bits - 1));
  }
  const int exponent = static_cast<int>(magnitude >> f64.mantissa_bits) - f64.bias() + to.bias();
  if (magnitude == f64.infinity() || exponent > 2 * to.bias()) return sign | to.infinity();

  const std::uint64_t leading = std::uint64_t{1} << f64.mantissa_bits;
  const std::uint64_t significand = leading | (magnitude & (leading - 1));
  const int dropped = lowered + (exponent > 0 ? 0 : 1 - exponent);
  if (dropped > f64.mantissa_bits + 2) return sign;  // below half of the smallest subnormal
  const std::uint64_t rest = significand & ((std::uint64_t{1} << dropped) - 1);
  const std::uint64_t half = std::uint64_t{1} << (dropped - 1);
  std::uint64_t rounded = significand >> dropped;
  if (rest > half || (rest == half && (rounded & 1) != 0)) ++rounded;
  // The leading bit of `rounded` is the lowest bit of the exponent field, so a carry lands where it must, up
  // to infinity.
  if (exponent > 0) rounded += static_cast<std::uint64_t>(exponent - 1) << to.mantissa_bits;
  return sign | rounded;
}

}  // namespace

std::string_view dtype_name(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return "F64";
    case DType::f32:
      return "F32";
    case DType::f16:
      return "F16";
    case DType::bf16:
      return "BF16";
    case DType::i64:
      return "I64";
    case DType::u64:
      return "U64";
    case DType::i32:
      return "I32";
    case DType::u32:
      return "U32";
    case DType::i16:
      return "I16";
    case DType::u16:
      return "U16";
    case DType::i8:
      return "I8";
    case DType::u8:
      return "U8";
    case DType::boolean:
      return "BOOL";
    case DType::c64:
      return "C64";
    case DType::f8_e5m2:
      return "F8_E5M2";
    case DType::f8_e4m3:
      return "F8_E4M3";
    case DType::f8_e8m0:
      return "F8_E8M0";
    case DType::f8_e4m3fnuz:
      return "F8_E4M3FNUZ";
    case DType::f8_e5m2fnuz:
      return "F8_E5M2FNUZ";
    case DType::f6_e2m3:
      return "F6_E2M3";
    case DType::f6_e3m2:
      return "F6_E3M2";
    case DType::f4:
      return "F4";
    case DType::q4_0:
      return "Q4_0";
    case DType::q4_1:
      return "Q4_1";
    case DType::q5_0:
      return "Q5_0";
    case DType::q5_1:
      return "Q5_1";
    case DType::q8_0:
      return "Q8_0";
    case DType::q8_1:
      return "Q8_1";
    case DType::q2_k:
      return "Q2_K";
    case DType::q3_k:
      return "Q3_K";
    case DType::q4_k:
      return "Q4_K";
    case DType::q5_k:
      return "Q5_K";
    case DType::q6_k:
      return "Q6_K";
    case DType::q8_k:
      return "Q8_K";
    case DType::other:
      return "OTHER";
  }
  return "UNKNOWN";
}

BlockLayout block_layout(DType dtype) {
  switch (dtype) {
    case DType::f64:
    case DType::i64:
    case DType::u64:
    case DType::c64:
      return {1, 8};
    case DType::f32:
    case DType::i32:
    case DType::u32:
      return {1, 4};
    case DType::f16:
    case DType::bf16:
    case DType::i16:
    case DType::u16:
      return {1, 2};
    case DType::i8:
    case DType::u8:
    case DType::boolean:
    case DType::f8_e5m2:
    case DType::f8_e4m3:
    case DType::f8_e8m0:
    case DType::f8_e4m3fnuz:
    case DType::f8_e5m2fnuz:
      return {1, 1};
    case DType::f6_e2m3:
    case DType::f6_e3m2:
      return {4, 3};
    case DType::f4:
      return {2, 1};
    case DType::q4_0:
      return {32, 18};
    case DType::q4_1:
      return {32, 20};
    case DType::q5_0:
      return {32, 22};
    case DType::q5_1:
      return {32, 24};
    case DType::q8_0:
      return {32, 34};
    case DType::q8_1:
      return {32, 40};
    case DType::q2_k:
      return {256, 84};
    case DType::q3_k:
      return {256, 110};
    case DType::q4_k:
      return {256, 144};
    case DType::q5_k:
      return {256, 176};
    case DType::q6_k:
      return {256, 210};
    case DType::q8_k:
      return {256, 292};
    case DType::other:
      break;
  }
  return {};
}

bool is_quantised(DType dtype) { return dtype >= DType::q4_0; }

bool is_scale_dtype(DType dtype) { return scale_dtype_bytes(dtype) != 0; }

std::size_t scale_dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::f64:
    case DType::f32:
    case DType::f16:
    case DType::bf16:
      return block_layout(dtype).bytes;
    default:
      return 0;
  }
}

std::vector<double> decode(DType dtype, std::span<const std::byte> bytes) {
  const Layout layout = layout_of(dtype, "decode");
  const auto width = static_cast<std::size_t>(layout.bytes);
  if (bytes.size() % width != 0) {
    fail(ErrorCode::size,
         fmt::format("decode: {} bytes are no whole number of {} elements of {} bytes", bytes.size(),
                     dtype_name(dtype), width),
         {.expected = fmt::format("a multiple of {}", width), .found = std::to_string(bytes.size())});
  }
  std::vector<double> values(bytes.size() / width);
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::uint64_t bits = 0;
    for (std::size_t k = 0; k < width; ++k)
      bits |= std::to_integer<std::uint64_t>(bytes[i * width + k]) << (8 * k);
    values[i] = layout.bytes == 8 ? std::bit_cast<double>(bits) : widen(bits, layout);
  }
  return values;
}

void encode(DType dtype, double value, std::span<std::byte> out) {
  const Layout layout = layout_of(dtype, "encode");
  if (out.size() != static_cast<std::size_t>(layout.bytes)) {
    fail(ErrorCode::size,
         fmt::format("encode: one {} element takes {} bytes, but {} were given", dtype_name(dtype),
                     layout.bytes, out.size()),
         {.expected = std::to_string(layout.bytes), .found = std::to_string(out.size())});
  }
  const std::uint64_t bits = layout.bytes == 8 ? std::bit_cast<std::uint64_t>(value) : narrow(value, layout);
  for (std::size_t k = 0; k < out.size(); ++k) out[k] = static_cast<std::byte>(bits >> (8 * k) & 0xFF);
}

}  // namespace scalevec
