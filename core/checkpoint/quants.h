#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include <scalevec/core/checkpoint/tensor_file.h>
#include <scalevec/core/dtype.h>

namespace scalevec {

/// One element type of GGUF, by the number that stands in the file.
struct GgmlType {
  std::uint32_t id = 0;
  std::string_view name;       // "F32", "Q4_K", "IQ2_XXS"
  DType dtype = DType::other;  // `other` where blocks are sized but not dequantised
  BlockLayout block;           // along the innermost dimension
};

/// Null for numbers that were never used or whose type was removed.
const GgmlType* ggml_type(std::uint32_t id);

/// F64, F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q2_K to Q6_K.
bool can_dequantise(DType dtype);

/// The values of whole blocks as float32, bit for bit those of `gguf.quants.dequantize`; F64 is rounded once.
///
/// `in` may have any alignment; `out` has exactly as many elements as the blocks of `in` hold. Any part of a
/// tensor that begins and ends between blocks will do, so several threads can share one. E_DTYPE where the
/// type is not one of can_dequantise, E_SIZE where in and out do not fit.
void dequantise(DType dtype, std::span<const std::byte> in, std::span<float> out);

/// The same; an error names the tensor and its type as the file writes it.
void dequantise(const TensorInfo& tensor, std::span<const std::byte> in, std::span<float> out);

/// Refuses what cannot hold an edited scale vector: E_QUANT for a block type, since writing one value would
/// re-quantise its neighbours; E_DTYPE for an integer type. `file` is for the message.
void require_editable(const TensorInfo& tensor, std::string_view file);

}  // namespace scalevec
