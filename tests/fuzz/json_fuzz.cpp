#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include <scalevec/core/checkpoint/json.h>
#include <scalevec/core/checkpoint/shard_index.h>

#include "fuzz.h"

namespace scalevec::fuzz {

std::vector<std::string> seeds() {
  return {
      R"({"metadata":{"total_size":16},"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}})",
      R"([null,true,false,-1.5e-7,"\u00e9\ud83d\ude00\n",{"a":{},"":[[],{}]},18446744073709551616])",
      "\"\\\\\"", "3"};
}

std::vector<std::string> words() {
  return {"{",
          "}",
          "[",
          "]",
          ",",
          ":",
          "\"",
          "\\",
          "\\u",
          "\\ud83d",
          "\\udc00",
          "null",
          "tru",
          "-",
          "1e",
          ".",
          "\xff",
          "\xed\xa0\x80",
          "\xf0\x9f\x98\x80",
          "\xEF\xBB\xBF",
          "\"a\":",
          "\"weight_map\":",
          "\"total_size\":",
          "../x",
          "/*",
          "//",
          "NaN",
          " ",
          "\n"};
}

void repair(std::string&, Random&) {}

}  // namespace scalevec::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace scalevec;
  using fuzz::require;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  // What nlohmann parses and we do not read alike: a byte order mark, a NUL as the end, overflowing numbers,
  // depth.
  const auto theirs = nlohmann::json::parse(text, nullptr, false);
  try {
    const nlohmann::json ours = parse_json(text, "input");
    require(theirs.is_discarded() || ours == theirs, "the value that nlohmann reads");
  } catch (const Error& error) {
    fuzz::require_sound(error);
    const bool special = text.find('\0') != text.npos || text.starts_with("\xEF\xBB\xBF");
    const bool syntax = error.code() == ErrorCode::json || error.code() == ErrorCode::utf8;
    require(!syntax || special || theirs.is_discarded(), "a refusal that nlohmann shares");
  }
  try {
    for (const std::string& shard : parse_shard_index(text, "input").shards)
      require(shard.find('/') == shard.npos && shard != "..", "shards inside the folder");
  } catch (const Error& error) {
    fuzz::require_sound(error);
  }
  return 0;
}
