// What the reader makes of GGUF data, for tests/python/test_quants.py to compare with the gguf package.
//   gguf_dump types                 number, name, block (elements, bytes) and whether it is dequantised
//   gguf_dump blocks TYPE           blocks from standard input, their values as float32 to standard output
//   gguf_dump blocks TYPE REPEATS   the same, printing seconds per run instead
//   gguf_dump tensors FILE          name, type, shape and SHA-256 of the float32 values of every tensor, a
//   line each gguf_dump load FILE THREADS     seconds to open the file, read every tensor and dequantise it
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <iterator>
#include <memory>
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

int dump_types() {
  for (std::uint32_t id = 0; id < 1000; ++id) {
    const GgmlType* type = ggml_type(id);
    if (type == nullptr) continue;
    std::printf("%u %s %zu %zu %d\n", id, std::string(type->name).c_str(), type->block.elements,
                type->block.bytes, can_dequantise(type->dtype));
  }
  return 0;
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

int dump_tensors(const char* path, std::uint64_t most_rows) {
  const GgufFile file(path);
  for (const TensorInfo& tensor : file.tensors()) {
    std::string shape;
    for (const std::uint64_t size : tensor.shape) shape += (shape.empty() ? "" : "x") + std::to_string(size);
    const std::uint64_t rows = tensor.shape.size() > 1 ? tensor.shape[0] : 1;
    const std::uint64_t kept = std::min(rows, most_rows);
    std::vector<std::byte> stored(rows == 0 ? 0 : tensor.bytes / rows * kept);
    std::vector<float> values(rows == 0 ? 0 : tensor.elements() / rows * kept);
    file.read(tensor, 0, stored);
    dequantise(tensor, stored, values);
    const std::string digest = sha256_hex(std::as_bytes(std::span(values)));
    std::printf("%s %s %s %s\n", tensor.name.c_str(), tensor.dtype_text.c_str(), shape.c_str(),
                digest.c_str());
  }
  return 0;
}

// As the model loader does it: pieces of whole blocks, a megabyte of values each, straight to where they
// stay.
int time_load(const char* path, int threads) {
  const auto start = std::chrono::steady_clock::now();
  const GgufFile file(path);
  struct Piece {
    const TensorInfo* tensor;
    std::uint64_t first_byte, bytes;
    std::span<float> values;
  };
  std::vector<Piece> pieces;
  std::vector<std::unique_ptr<float[]>> owners;
  for (const TensorInfo& tensor : file.tensors()) {
    const BlockLayout block = block_layout(tensor.dtype);
    const std::uint64_t blocks = tensor.bytes / block.bytes, step = (1 << 18) / block.elements;
    owners.push_back(std::make_unique_for_overwrite<float[]>(tensor.elements()));
    for (std::uint64_t first = 0; first < blocks; first += step) {
      const std::uint64_t count = std::min(step, blocks - first);
      pieces.push_back({&tensor,
                        first * block.bytes,
                        count * block.bytes,
                        {owners.back().get() + first * block.elements, count * block.elements}});
    }
  }
  std::atomic<std::size_t> next = 0;
  const auto work = [&] {
    std::vector<std::byte> stored;
    for (std::size_t i = next++; i < pieces.size(); i = next++) {
      stored.resize(pieces[i].bytes);
      file.read(*pieces[i].tensor, pieces[i].first_byte, stored);
      dequantise(*pieces[i].tensor, stored, pieces[i].values);
    }
  };
  std::vector<std::jthread> workers;
  for (int i = 1; i < threads; ++i) workers.emplace_back(work);
  work();
  workers.clear();
  std::printf("%.6f\n", seconds_since(start));
  return 0;
}

int usage() {
  std::fputs("usage: gguf_dump types | blocks TYPE [REPEATS] | tensors FILE ROWS | load FILE THREADS\n",
             stderr);
  return 2;
}

}  // namespace

int main(int count, char** arguments) {
  const std::string_view verb = count > 1 ? arguments[1] : "";
  try {
    if (verb == "types") return dump_types();
    if (count < 3) return usage();
    if (verb == "blocks") return dump_blocks(arguments[2], count > 3 ? std::atoi(arguments[3]) : 0);
    if (verb == "tensors" && count > 3)
      return dump_tensors(arguments[2], std::strtoull(arguments[3], nullptr, 10));
    if (verb == "load" && count > 3) return time_load(arguments[2], std::atoi(arguments[3]));
  } catch (const std::exception& error) {
    return std::fprintf(stderr, "%s\n", error.what()), 1;
  }
  return usage();
}
