#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include <scalevec/core/checkpoint/gguf.h>
#include <scalevec/core/checkpoint/gguf_cursor.h>

namespace scalevec {

/// Reads and checks everything before the data: see GgufFile. name: the file's, for messages.
GgufHeader parse_gguf_header(std::uint64_t file_size, const ReadBytes& read, const std::string& name);

}  // namespace scalevec
