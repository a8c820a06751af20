#include <scalevec/core/checkpoint/quants.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include <fmt/format.h>

#include <scalevec/core/error.h>

// Every loop is compiled for AVX2 too and chosen when the program starts. Sanitizers intercept too early for
// that.
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define SCALEVEC_SANITIZED 1
#endif
#endif
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(SCALEVEC_SANITIZED) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && __has_attribute(target_clones)
#define SCALEVEC_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define SCALEVEC_CLONES
#endif
#define SCALEVEC_INLINE __attribute__((always_inline)) inline

namespace scalevec {
namespace {

using Byte = unsigned char;

static_assert(std::endian::native == std::endian::little, "blocks are read as they lie in the file");

constexpr std::array ggml_types{
    GgmlType{0, "F32", DType::f32, {1, 4}},
    GgmlType{1, "F16", DType::f16, {1, 2}},
    GgmlType{2, "Q4_0", DType::q4_0, {32, 18}},
    GgmlType{3, "Q4_1", DType::q4_1, {32, 20}},
    GgmlType{6, "Q5_0", DType::q5_0, {32, 22}},
    GgmlType{7, "Q5_1", DType::q5_1, {32, 24}},
    GgmlType{8, "Q8_0", DType::q8_0, {32, 34}},
    GgmlType{9, "Q8_1", DType::q8_1, {32, 40}},
    GgmlType{10, "Q2_K", DType::q2_k, {256, 84}},
    GgmlType{11, "Q3_K", DType::q3_k, {256, 110}},
    GgmlType{12, "Q4_K", DType::q4_k, {256, 144}},
    GgmlType{13, "Q5_K", DType::q5_k, {256, 176}},
    GgmlType{14, "Q6_K", DType::q6_k, {256, 210}},
    GgmlType{15, "Q8_K", DType::q8_k, {256, 292}},
    GgmlType{16, "IQ2_XXS", DType::other, {256, 66}},
    GgmlType{17, "IQ2_XS", DType::other, {256, 74}},
    GgmlType{18, "IQ3_XXS", DType::other, {256, 98}},
    GgmlType{19, "IQ1_S", DType::other, {256, 50}},
    GgmlType{20, "IQ4_NL", DType::other, {32, 18}},
    GgmlType{21, "IQ3_S", DType::other, {256, 110}},
    GgmlType{22, "IQ2_S", DType::other, {256, 82}},
    GgmlType{23, "IQ4_XS", DType::other, {256, 136}},
    GgmlType{24, "I8", DType::i8, {1, 1}},
    GgmlType{25, "I16", DType::i16, {1, 2}},
    GgmlType{26, "I32", DType::i32, {1, 4}},
    GgmlType{27, "I64", DType::i64, {1, 8}},
    GgmlType{28, "F64", DType::f64, {1, 8}},
    GgmlType{29, "IQ1_M", DType::other, {256, 56}},
    GgmlType{30, "BF16", DType::bf16, {1, 2}},
    GgmlType{34, "TQ1_0", DType::other, {256, 54}},
    GgmlType{35, "TQ2_0", DType::other, {256, 66}},
    GgmlType{39, "MXFP4", DType::other, {32, 17}},
    GgmlType{40, "NVFP4", DType::other, {64, 36}},
    GgmlType{41, "Q1_0", DType::other, {128, 18}},
};

template <class T>
SCALEVEC_INLINE T load(const Byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// Without branches, so that the plain F16 loop becomes vectors. Exact, whatever the processor does to
// subnormals.
SCALEVEC_INLINE float half(std::uint16_t bits) {
  const std::uint32_t exponent = bits & 0x7C00u;
  const std::uint32_t mantissa = bits & 0x03FFu;
  const std::uint32_t rebase = 112u << 23;
  const std::uint32_t moved = (bits & 0x7FFFu) << 13;
  const auto subnormal =
      std::bit_cast<std::uint32_t>(static_cast<float>(static_cast<std::int32_t>(mantissa)) * 0x1p-24f);
  const std::uint32_t normal = moved + rebase + (exponent == 0x7C00u ? rebase : 0u);
  // A mask, since a choice would let the compiler put a branch around the multiplication.
  const std::uint32_t chosen = 0u - static_cast<std::uint32_t>(exponent == 0);
  return std::bit_cast<float>((bits & 0x8000u) << 16 | (subnormal & chosen) | (normal & ~chosen));
}

SCALEVEC_INLINE float half_at(const Byte* at) { return half(load<std::uint16_t>(at)); }

SCALEVEC_INLINE float number(int value) { return static_cast<float>(value); }

// In the kernels below the order of float operations is that of gguf/quants.py; formats in llama.cpp's
// ggml-common.h.

SCALEVEC_CLONES void from_f64(const Byte* __restrict in, float* __restrict out, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) out[i] = static_cast<float>(load<double>(in + 8 * i));
}

SCALEVEC_CLONES void from_f16(const Byte* __restrict in, float* __restrict out, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) out[i] = half_at(in + 2 * i);
}

SCALEVEC_CLONES void from_bf16(const Byte* __restrict in, float* __restrict out, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t bits = load<std::uint16_t>(in + 2 * i);
    out[i] = std::bit_cast<float>(bits << 16);
  }
}

SCALEVEC_CLONES void from_q4_0(const Byte* __restrict in, float* __restrict out, std::size_t blocks) {
  for (; blocks > 0; --blocks, in += 18, out += 32) {
    const float d = half_at(in);
    for (int j = 0; j < 16; ++j) {
      out[j] = d * number((in[2 + j] & 15) - 8);
      out[j + 16] = d * number((in[2 + j] >> 4) - 8);
    }
  }
}

SCALEVEC_CLONES void from_q4_1(const Byte* __restrict in, float* __restrict out, std::size_t blocks) {
  for (; blocks > 0; --blocks, in += 20, out += 32) {
    const float d = half_at(in), m = half_at(in + 2);
    for (int j = 0; j < 16; ++j) {
      out[j] = d * number(in[4 + j] & 15) + m;
      out[j + 16] = d * number(in[4 + j] >> 4) + m;
    }
  }
}

// The fifth bit of element e is bit e of `high`.
SCALEVEC_INLINE int fifth_bit(std::uint32_t high, int element) {
  return static_cast<int>((high >> element & 1u) << 4);
}

SCALEVEC_CLONES void from_q5_0(const Byte* __restrict in, float* __restrict out, std::size_t blocks) {
  for (; blocks > 0; --blocks, in += 22, out += 32) {
    const float d = half_at(in);
    const auto high = load<std::uint32_t>(in + 2);
    for (int j = 0; j < 16; ++j) {
      out[j] = d * number(((in[6 + j] & 15) | fifth_bit(high, j)) - 16);
      out[j + 16] = d * number((in[6 + j] >> 4 | fifth_bit(high, j + 16)) - 16);
    }
  }
}

SCALEVEC_CLONES void from_q5_1(const Byte* __restrict in, float* __restrict out, std::size_t blocks) {
  for (; blocks > 0; --blocks, in += 24, out += 32) {
    const float d = half_at(in), m = half_at(in + 2);
    const auto high = load<std::uint32_t>(in + 4);
    for (int j = 0; j < 16; ++j) {
      out[j] = d * number((in[8 + j] & 15) | fifth_bit(high, j)) + m;
      out[j + 16] = d * number(in[8 + j] >> 4 | fifth_bit(high, j + 16)) + m;
    }
  }
}

SCALEVEC_CLONES void from_q8_0(const Byte* __restrict in, float* __restrict out, std::size_t blocks) {
  for (; blocks > 0; --blocks, in += 34, out += 32) {
    const float d = half_at(in);
    for (int j = 0; j < 32; ++j) out[j] = number(static_cast<signed char>(in[2 + j])) * d;
  }
}

SCALEVEC_CLONES void from_q2_k(const Byte* __restrict in, float* __restrict out, std::size_t blocks) {
  for (; blocks > 0; --blocks, in += 84, out += 256) {
    const float d = half_at(in + 80), dmin = half_at(in + 82);
    for (int group = 0; group < 16;
         ++group) {  // of 16 elements; `half_block` and `shift` say where their bits lie
      const int half_block = group / 8, shift = group / 2 % 4 * 2;
      const Byte* qs = in + 16 + 32 * half_block + 16 * (group % 2);
      const float scale = d * number(in[group] & 15);
      const float minimum = dmin * number(in[group] >> 4);
      for (int l = 0; l < 16; ++l) out[16 * group + l] = scale * number(qs[l] >> shift & 3) - minimum;
    }
  }
}

SCALEVEC_CLONES void from_q3_k(const Byte* __restrict in, float* __restrict out, std::size_t blocks) {
  for (; blocks > 0; --blocks, in += 110, out += 256) {
    const Byte* scales = in + 96;
    const float d = half_at(in + 108);
    for (int group = 0; group < 16; ++group) {
      const int low = scales[group % 8] >> group / 8 * 4 & 15;
      const int top = scales[8 + group % 4] >> group / 4 * 2 & 3;
      const float scale = d * number((low | top << 4) - 32);
      const int half_block = group / 8, shift = group / 2 % 4 * 2, bit = group / 2;
      const Byte* qs = in + 32 + 32 * half_block + 16 * (group % 2);
      const Byte* mask = in + 16 * (group % 2);
      for (int l = 0; l < 16; ++l) {
        const int clear = (mask[l] >> bit & 1) ^ 1;  // the offset of 4 applies where the bit is clear
        out[16 * group + l] = scale * number((qs[l] >> shift & 3) - (clear << 2));
      }
    }
  }
}

// The six-bit scale and minimum of sub-block j of Q4_K and Q5_K.
struct SixBits {
  int scale;
  int minimum;
};

SCALEVEC_INLINE SixBits six_bits(const Byte* packed, int j) {
  if (j < 4) return {packed[j] & 63, packed[j + 4] & 63};
  return {(packed[j + 4] & 15) | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4};
}

SCALEVEC_CLONES void from_q4_k(const Byte* __restrict in, float* __restrict out, std::size_t blocks) {
  for (; blocks > 0; --blocks, in += 144, out += 256) {
    const float d = half_at(in), dmin = half_at(in + 2);
    for (int j = 0; j < 8; ++j) {
      const SixBits bits = six_bits(in + 4, j);
      const float scale = d * number(bits.scale), minimum = dmin * number(bits.minimum);
      const Byte* qs = in + 16 + 32 * (j / 2);
      const int shift = 4 * (j % 2);
      for (int l = 0; l < 32; ++l) out[32 * j + l] = scale * number(qs[l] >> shift & 15) - minimum;
    }
  }
}

SCALEVEC_CLONES void from_q5_k(const Byte* __restrict in, float* __restrict out, std::size_t blocks) {
  for (; blocks > 0; --blocks, in += 176, out += 256) {
    const float d = half_at(in), dmin = half_at(in + 2);
    const Byte* high = in + 16;
    for (int j = 0; j < 8; ++j) {
      const SixBits bits = six_bits(in + 4, j);
      const float scale = d * number(bits.scale), minimum = dmin * number(bits.minimum);
      const Byte* qs = in + 48 + 32 * (j / 2);
      const int shift = 4 * (j % 2);
      for (int l = 0; l < 32; ++l) {
        out[32 * j + l] = scale * number((qs[l] >> shift & 15) | (high[l] >> j & 1) << 4) - minimum;
      }
    }
  }
}

SCALEVEC_CLONES void from_q6_k(const Byte* __restrict in, float* __restrict out, std::size_t blocks) {
  for (; blocks > 0; --blocks, in += 210, out += 256) {
    const float d = half_at(in + 208);
    for (int group = 0; group < 16; ++group) {
      const int half_block = group / 8, quarter = group / 2 % 4;
      const float scale = d * number(static_cast<signed char>(in[192 + group]));
      const Byte* low = in + 64 * half_block + 32 * (quarter % 2) + 16 * (group % 2);
      const Byte* high = in + 128 + 32 * half_block + 16 * (group % 2);
      const int low_shift = 4 * (quarter / 2), high_shift = 2 * quarter;
      for (int l = 0; l < 16; ++l) {
        out[16 * group + l] =
            scale * number(((low[l] >> low_shift & 15) | (high[l] >> high_shift & 3) << 4) - 32);
      }
    }
  }
}

using Kernel = void (*)(const Byte*, float*, std::size_t);

void from_f32(const Byte* in, float* out, std::size_t count) {
  if (count != 0) std::memcpy(out, in, count * sizeof(float));
}

Kernel kernel_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return from_f64;
    case DType::f32:
      return from_f32;
    case DType::f16:
      return from_f16;
    case DType::bf16:
      return from_bf16;
    case DType::q4_0:
      return from_q4_0;
    case DType::q4_1:
      return from_q4_1;
    case DType::q5_0:
      return from_q5_0;
    case DType::q5_1:
      return from_q5_1;
    case DType::q8_0:
      return from_q8_0;
    case DType::q2_k:
      return from_q2_k;
    case DType::q3_k:
      return from_q3_k;
    case DType::q4_k:
      return from_q4_k;
    case DType::q5_k:
      return from_q5_k;
    case DType::q6_k:
      return from_q6_k;
    default:
      return nullptr;
  }
}

void dequantise_named(DType dtype, std::string_view type, std::string_view tensor,
                      std::span<const std::byte> in, std::span<float> out) {
  const std::string subject = tensor.empty() ? std::string(type) : fmt::format("'{}' ({})", tensor, type);
  const Kernel kernel = kernel_of(dtype);
  if (kernel == nullptr) {
    fail(ErrorCode::dtype,
         fmt::format(
             "dequantise: {} cannot be turned into numbers; convert the model with llama-quantize to one of "
             "F64, F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K",
             subject),
         {.tensor = std::string(tensor),
          .expected = "a type that is dequantised",
          .found = std::string(type)});
  }
  const BlockLayout block = block_layout(dtype);
  const std::size_t blocks = in.size() / block.bytes;
  if (in.size() % block.bytes != 0 || out.size() % block.elements != 0 ||
      out.size() / block.elements != blocks) {
    fail(
        ErrorCode::size,
        fmt::format(
            "dequantise: {} has blocks of {} elements in {} bytes, so {} bytes do not fill {} elements; give "
            "whole blocks and room for exactly their elements",
            subject, block.elements, block.bytes, in.size(), out.size()),
        {.tensor = std::string(tensor),
         .expected = fmt::format("{} elements", blocks * block.elements),
         .found = fmt::format("{} bytes for {} elements", in.size(), out.size())});
  }
  kernel(reinterpret_cast<const Byte*>(in.data()), out.data(), blocks);
}

}  // namespace

const GgmlType* ggml_type(std::uint32_t id) {
  const auto at = std::ranges::lower_bound(ggml_types, id, {}, &GgmlType::id);
  return at != ggml_types.end() && at->id == id ? &*at : nullptr;
}

bool can_dequantise(DType dtype) { return kernel_of(dtype) != nullptr; }

void dequantise(DType dtype, std::span<const std::byte> in, std::span<float> out) {
  dequantise_named(dtype, dtype_name(dtype), "", in, out);
}

void dequantise(const TensorInfo& tensor, std::span<const std::byte> in, std::span<float> out) {
  dequantise_named(tensor.dtype, tensor.dtype_text, tensor.name, in, out);
}

void require_editable(const TensorInfo& tensor, std::string_view file) {
  if (is_scale_dtype(tensor.dtype)) return;
  const bool quantised = is_quantised(tensor.dtype);
  fail(quantised ? ErrorCode::quant : ErrorCode::dtype,
       fmt::format("edit: '{}' is stored as {}; {} Store the norms as F32 (llama-quantize leaves them so).",
                   tensor.name, tensor.dtype_text,
                   quantised ? "writing it would re-quantise every value of the blocks it touches."
                             : "a scale vector is F64, F32, F16 or BF16."),
       {.file = std::string(file),
        .tensor = tensor.name,
        .expected = "F64, F32, F16 or BF16",
        .found = tensor.dtype_text});
}

}  // namespace scalevec
