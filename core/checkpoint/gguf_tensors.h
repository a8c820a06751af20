#pragma once

#include <cstdint>
#include <vector>

#include <scalevec/core/checkpoint/gguf_cursor.h>
#include <scalevec/core/checkpoint/tensor_file.h>

namespace scalevec {

/// The tensor infos of a GGUF header, and whether the data that they describe is what the file holds.
struct GgufTensors {
  std::vector<TensorInfo> tensors;  // `begin` counted from the start of the file
  std::uint64_t data_begin = 0;
};

/// Reads `count` infos from the cursor, which the caller has bounded, and checks names, sizes and layout.
GgufTensors read_gguf_tensors(GgufCursor& cursor, std::uint64_t count, std::uint64_t alignment);

}  // namespace scalevec
