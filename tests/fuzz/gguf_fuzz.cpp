// Any bytes, given as a GGUF file, are read in full or refused with an Error.
#include <cstddef>
#include <cstdint>
#include <span>

#include <scalevec/core/checkpoint/gguf.h>
#include <scalevec/core/error.h>

#include "fuzz.h"
#include "readers/gguf_walk.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    scalevec::testing::walk(scalevec::GgufFile::from_memory(std::as_bytes(std::span(data, size))));
  } catch (const scalevec::Error& error) {
    scalevec::fuzz::require_sound(error);
  }
  return 0;
}
