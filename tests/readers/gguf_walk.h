#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string_view>
#include <vector>

#include <scalevec/core/checkpoint/gguf.h>
#include <scalevec/core/checkpoint/quants.h>
#include <scalevec/core/error.h>

namespace scalevec::testing {

/// Uses everything that a file offers: each value through each accessor that may refuse it, each tensor's
/// bytes and values. Only an Error may come out. Returns how many tensors were read.
inline std::size_t walk(const GgufFile& file) {
  const auto attempt = [](auto&& call) {
    try {
      call();
    } catch (const Error&) {
    }
  };
  const GgufMetadata& metadata = file.metadata();
  std::uint64_t use = 0;  // so that nothing is optimised away
  for (const std::string_view key : metadata.keys()) {
    attempt([&] { use += static_cast<std::uint64_t>(metadata.integer(key)); });
    attempt([&] { use += metadata.number(key) != 0; });
    attempt([&] { use += metadata.boolean(key); });
    attempt([&] { use += metadata.text(key).size(); });
    attempt([&] { use += metadata.strings(key).size(); });
    attempt([&] { use += metadata.integers(key).size(); });
    attempt([&] { use += metadata.numbers(key).size(); });
    attempt([&] { use += metadata.booleans(key).size(); });
  }
  attempt([&] { use += static_cast<std::uint64_t>(file.block_count()); });
  for (const TensorInfo& tensor : file.tensors()) {
    if (file.find(tensor.name) != &tensor) throw std::logic_error("find() does not find " + tensor.name);
    if (tensor.bytes != 0 && (tensor.begin > file.size() || tensor.bytes > file.size() - tensor.begin))
      throw std::logic_error("outside the file: " + tensor.name);
    std::vector<std::byte> bytes(tensor.bytes);
    file.read(tensor, bytes);
    if (!can_dequantise(tensor.dtype)) continue;
    std::vector<float> values(tensor.elements());
    dequantise(tensor, bytes, values);
    use += !values.empty() && values.back() == 1;
  }
  return file.tensors().size() + (use == 0xDEADBEEF ? 1 : 0);
}

}  // namespace scalevec::testing
