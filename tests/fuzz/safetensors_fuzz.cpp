#include <cstring>
#include <span>
#include <string>

#include <scalevec/core/checkpoint/name_index.h>
#include <scalevec/core/checkpoint/safetensors.h>

#include "fuzz.h"
#include "support/safetensors_bytes.h"

namespace scalevec::fuzz {

std::vector<std::string> seeds() { return testing::safetensors_seeds(); }

std::vector<std::string> words() {
  return {"\"dtype\":",
          "\"shape\":",
          "\"data_offsets\":",
          "\"__metadata__\":",
          "{}",
          "[]",
          "[0,0]",
          "\"F32\"",
          "\"BF16\"",
          "\"F4\"",
          "\"U8\"",
          "\"BOOL\"",
          "{\"",
          "\"}",
          "},",
          ",\"b\":",
          "null",
          "true",
          "\\u0000",
          "\\ud800",
          "\\udc00",
          "\xEF\xBB\xBF",
          "\xff",
          std::string(1, '\0'),
          "[[[[",
          "[0,8]",
          "[8,16]",
          "    ",
          "\"t\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},"};
}

void repair(std::string& input, Random& random) {
  if (input.size() < 8) return;
  // The header ends where its braces do, or anywhere.
  const std::size_t brace = input.rfind('}');
  std::size_t length = brace == std::string::npos || brace < 8 ? input.size() - 8 : brace - 7;
  if (random() % 8 == 0) length = random() % (input.size() - 7);
  input.replace(0, 8, testing::little_endian(length));
}

}  // namespace scalevec::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace scalevec;
  using fuzz::require;
  try {
    const SafetensorsHeader header =
        parse_safetensors_header(std::as_bytes(std::span(data, size)), size, "input");
    const NameIndex names(header.tensors);
    std::uint64_t end = header.data_begin;
    for (const TensorInfo& tensor : header.tensors) {
      require(tensor.begin == end, "tensors that follow one another");
      end += tensor.bytes;
      require(end <= size, "tensors inside the file");
      require(names.find(header.tensors, tensor.name) == &tensor, "names that stand once");
      require(!tensor.name.empty() && tensor.name.size() <= 1024 && tensor.shape.size() <= 8,
              "names and ranks in their limits");
      require(tensor.elements() <= 2 * tensor.bytes, "elements of half a byte or more");
    }
    require(end == size, "a file without a rest");
    header.metadata();
  } catch (const Error& error) {
    fuzz::require_sound(error);
    require(error.fields().file == "input", "the file's name in the error");
  }
  return 0;
}
