// What the reader makes of GGUF data, for tests/python/test_quants.py to compare with the gguf package.
//   gguf_dump blocks TYPE           blocks from standard input, their values as float32 to standard output
//   gguf_dump blocks TYPE REPEATS   the same, printing seconds per run instead
//   gguf_dump tensors FILE          name, type, shape and SHA-256 of the float32 values of every tensor, a
//   line each gguf_dump load FILE THREADS     seconds to open the file, read every tensor and dequantise it
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <iterator>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <scalevec/core/checkpoint/gguf.h>
#include <scalevec/core/checkpoint/quants.h>
#include <scalevec/core/sha256.h>

namespace {

using namespace scalevec;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

int dump_blocks(std::string_view name, int repeats) {
  const GgmlType* type = nullptr;
  for (std::uint32_t id = 0; id < 64; ++id) {
    const GgmlType* candidate = ggml_type(id);
    if (candidate != nullptr && candidate->name == name) type = candidate;
  }
  if (type == nullptr) return std::fputs("gguf_dump: unknown type\n", stderr), 2;
  const std::string input(std::istreambuf_iterator<char>(std::cin), {});
  std::vector<float> values(input.size() / type->block.bytes * type->block.elements);
  const auto run = [&] { dequantise(type->dtype, std::as_bytes(std::span(input)), values); };
  run();
  if (repeats == 0)
    return std::fwrite(values.data(), sizeof(float), values.size(), stdout) == values.size() ? 0 : 1;
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < repeats; ++i) run();
  std::printf("%.9f\n", seconds_since(start) / repeats);
  return 0;
}

std::vector<float> load(const GgufFile& file, const TensorInfo& tensor) {
  std::vector<std::byte> stored(tensor.bytes);
  std::vector<float> values(tensor.elements());
  file.read(tensor, stored);
  dequantise(tensor, stored, values);
  return values;
}

int dump_tensors(const char* path) {
  const GgufFile file(path);
  for (const TensorInfo& tensor : file.tensors()) {
    std::string shape;
    for (const std::uint64_t size : tensor.shape) shape += (shape.empty() ? "" : "x") + std::to_string(size);
    const std::string digest = sha256_hex(std::as_bytes(std::span(load(file, tensor))));
    std::printf("%s %s %s %s\n", tensor.name.c_str(), tensor.dtype_text.c_str(), shape.c_str(),
                digest.c_str());
  }
  return 0;
}

int time_load(const char* path, int threads) {
  const auto start = std::chrono::steady_clock::now();
  const GgufFile file(path);
  std::vector<std::vector<float>> values(file.tensors().size());
  std::atomic<std::size_t> next = 0;
  const auto work = [&] {
    for (std::size_t i = next++; i < values.size(); i = next++) values[i] = load(file, file.tensors()[i]);
  };
  std::vector<std::jthread> workers;
  for (int i = 1; i < threads; ++i) workers.emplace_back(work);
  work();
  workers.clear();
  std::printf("%.6f\n", seconds_since(start));
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  const std::string_view verb = count > 2 ? arguments[1] : "";
  try {
    if (verb == "blocks") return dump_blocks(arguments[2], count > 3 ? std::atoi(arguments[3]) : 0);
    if (verb == "tensors") return dump_tensors(arguments[2]);
    if (verb == "load" && count > 3) return time_load(arguments[2], std::atoi(arguments[3]));
  } catch (const std::exception& error) {
    return std::fprintf(stderr, "%s\n", error.what()), 1;
  }
  return std::fputs("usage: gguf_dump blocks TYPE [REPEATS] | tensors FILE | load FILE THREADS\n", stderr), 2;
}
