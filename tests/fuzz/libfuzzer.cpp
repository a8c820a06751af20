// Gives libFuzzer the seeds and the mutations that know the format.
#include <algorithm>
#include <cstring>
#include <string>

#include "fuzz.h"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t most);

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most,
                                               unsigned seed) {
  scalevec::fuzz::Random random(seed);
  if (random() % 3 == 0) {
    size = LLVMFuzzerMutate(data, size, most);
    if (random() % 2 == 0) return size;
  }
  std::string input(reinterpret_cast<const char*>(data), size);
  if (size < 4) {
    const auto all = scalevec::fuzz::seeds();
    input = all[random() % all.size()];
  } else {
    scalevec::fuzz::mutate(input, random);
  }
  size = std::min(input.size(), most);
  std::memcpy(data, input.data(), size);
  return size;
}
