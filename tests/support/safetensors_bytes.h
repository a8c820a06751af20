#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace scalevec::testing {

/// The eight bytes of a header's length.
inline std::string little_endian(std::uint64_t value) {
  std::string out;
  for (int i = 0; i < 8; ++i) out.push_back(static_cast<char>(value >> (8 * i) & 0xFF));
  return out;
}

/// A safetensors file with this header, whatever it says, and this data.
inline std::string safetensors(std::string_view header, std::string_view data = {}) {
  return little_endian(header.size()) + std::string(header) + std::string(data);
}

/// `"name":{...}` as it stands in a header.
inline std::string entry(std::string_view name, std::string_view dtype, std::string_view shape,
                         std::string_view range) {
  std::string out = "\"";
  out.append(name).append("\":{\"dtype\":\"").append(dtype).append("\",\"shape\":").append(shape);
  return out.append(",\"data_offsets\":").append(range).append("}");
}

/// Small legal files that between them use all that the format has.
inline std::vector<std::string> safetensors_seeds() {
  return {
      safetensors("{}"),
      safetensors("{" + entry("a", "F32", "[2]", "[0,8]") + "}    ", "abcdefgh"),
      safetensors(R"({"__metadata__":{"format":"pt","":"\u00e9 ü \ud83d\ude00"},)" +
                      entry("layers.0.norm.weight", "BF16", "[4]", "[8,16]") + "," +
                      entry("layers.0.q\\u002fproj", "F4", "[2,8]", "[0,8]") + "," +
                      entry("b", "I64", "[0,3]", "[8,8]") + "," + entry("s", "F64", "[]", "[16,24]") + "," +
                      entry("six", "F6_E2M3", "[4]", "[24,27]") + "}",
                  std::string(27, '\x01')),
  };
}

}  // namespace scalevec::testing
