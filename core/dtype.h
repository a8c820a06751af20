#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace scalevec {

/// Element types of tensors in files: those of safetensors, and the blocks of GGUF.
enum class DType {
  f64,
  f32,
  f16,
  bf16,
  i64,
  u64,
  i32,
  u32,
  i16,
  u16,
  i8,
  u8,
  boolean,
  c64,
  f8_e5m2,
  f8_e4m3,
  f8_e8m0,
  f8_e4m3fnuz,
  f8_e5m2fnuz,
  f6_e2m3,
  f6_e3m2,
  f4,
  q4_0,
  q4_1,
  q5_0,
  q5_1,
  q8_0,
  q8_1,
  q2_k,
  q3_k,
  q4_k,
  q5_k,
  q6_k,
  q8_k,
  other,  // a block type of GGUF that is sized but not dequantised (IQ*, TQ*, MXFP4)
};

/// "F32", "BF16", "Q4_K", ...: as safetensors and GGUF write them.
std::string_view dtype_name(DType dtype);

/// Elements are stored in blocks: `elements` of them fill `bytes`. Plain types have blocks of one.
struct BlockLayout {
  std::size_t elements = 0;
  std::size_t bytes = 0;
};

/// {0, 0} for `other`, where the container's own table must say.
BlockLayout block_layout(DType dtype);

/// The block types of GGUF, `other` included: values that share a scale, so that none can be edited alone.
bool is_quantised(DType dtype);

/// F64, F32, F16, BF16: what a scale vector can be stored in.
bool is_scale_dtype(DType dtype);

/// Bytes of one element of a scale dtype; 0 for the others.
std::size_t scale_dtype_bytes(DType dtype);

/// The stored bytes (little-endian) of a scale dtype as float64, exactly; NaNs keep sign and payload.
/// E_DTYPE for another dtype, E_SIZE where the bytes are no whole number of elements.
std::vector<double> decode(DType dtype, std::span<const std::byte> bytes);

/// The nearest value of `dtype` (ties to even, IEEE; overflow gives infinity), written to `out`, rounded once
/// from float64. A NaN keeps its sign and the leading bits of its payload. E_DTYPE for another dtype, E_SIZE
/// where `out` is not one element.
void encode(DType dtype, double value, std::span<std::byte> out);

}  // namespace scalevec
