#include <cstdint>
#include <limits>

#include "fuzz.h"
#include "readers/gguf_builder.h"

namespace scalevec::fuzz {
namespace {

template <class T>
std::string raw(T value) {
  return testing::Bytes().add(value).text();
}

}  // namespace

std::vector<std::string> seeds() {
  testing::GgufBuilder bare, aligned;
  aligned.alignment = 64;
  aligned.value<std::uint32_t>("general.alignment", testing::kv_u32, 64);
  aligned.tensor("a", {}, testing::type_f32, std::string(4, 'x'));
  aligned.tensor("b", {0, 3}, testing::type_f32, "");
  aligned.tensor("c", {32}, testing::type_q4_0, std::string(18, '\2'));
  return {testing::small_model().build(), bare.build(), aligned.build()};
}

std::vector<std::string> words() {
  std::vector<std::string> all{"GGUF", std::string(8, '\0'), std::string(8, '\xff'), "general.alignment",
                               "general.architecture"};
  for (const std::uint64_t value :
       {1ULL, 2ULL, 64ULL, 1ULL << 16, 1ULL << 31, 1ULL << 32, 1ULL << 62, 1ULL << 63})
    all.push_back(raw(value));
  for (std::uint32_t value = 0; value < 16; ++value) all.push_back(raw(value));
  all.push_back(raw(std::numeric_limits<std::int64_t>::max()));
  return all;
}

void repair(std::string& input, Random& random) {
  if (input.size() < 24) return;
  const std::uint32_t version = 2 + random() % 2;
  const std::uint64_t tensors = random() % 5, pairs = random() % 8;
  input.replace(0, 24, "GGUF" + raw(version) + raw(tensors) + raw(pairs));
}

}  // namespace scalevec::fuzz
