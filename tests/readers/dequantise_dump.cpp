// Reads blocks of the type named by the argument from standard input and writes their values as float32: what
// tests/python/test_quants.py compares with the gguf package. With a count after the type it repeats the work
// that often and prints seconds per run instead.
#include <scalevec/core/checkpoint/quants.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

int main(int count, char** arguments) {
  using namespace scalevec;
  if (count < 2) return std::fputs("usage: dequantise_dump TYPE [REPEATS] < blocks > values\n", stderr), 2;
  const std::string input(std::istreambuf_iterator<char>(std::cin), {});
  const GgmlType* type = nullptr;
  for (std::uint32_t id = 0; id < 64; ++id) {
    const GgmlType* candidate = ggml_type(id);
    if (candidate != nullptr && candidate->name == std::string_view(arguments[1])) type = candidate;
  }
  if (type == nullptr) return std::fputs("dequantise_dump: unknown type\n", stderr), 2;

  std::vector<float> values(input.size() / type->block.bytes * type->block.elements);
  const auto run = [&] { dequantise(type->dtype, std::as_bytes(std::span(input)), values); };
  try {
    run();
    if (count > 2) {
      const int repeats = std::atoi(arguments[2]);
      const auto start = std::chrono::steady_clock::now();
      for (int i = 0; i < repeats; ++i) run();
      std::printf("%.9f\n",
                  std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / repeats);
      return 0;
    }
  } catch (const std::exception& error) {
    return std::fprintf(stderr, "%s\n", error.what()), 1;
  }
  return std::fwrite(values.data(), sizeof(float), values.size(), stdout) == values.size() ? 0 : 1;
}
