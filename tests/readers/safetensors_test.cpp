#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <scalevec/core/checkpoint/safetensors.h>
#include <scalevec/core/error.h>

#include "readers/bounds.h"
#include "readers/errors.h"
#include "support/files.h"
#include "support/safetensors_bytes.h"
#include "support/temporary_folder.h"

using namespace scalevec;
using namespace std::string_literals;
using testing::entry;
using testing::safetensors;

namespace {

std::span<const std::byte> bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

std::string content(const SafetensorsFile& file, std::string_view name) {
  const TensorInfo* tensor = file.find(name);
  REQUIRE(tensor != nullptr);
  std::string out(tensor->bytes, '\0');
  file.read(*tensor, std::as_writable_bytes(std::span(out)));
  return out;
}

std::string many_tensors(std::size_t count, std::string_view name_prefix) {
  std::string header = "{";
  for (std::size_t i = 0; i < count; ++i) {
    if (i > 0) header += ",";
    header += entry(std::string(name_prefix) + std::to_string(i), "F32", "[0]", "[0,0]");
  }
  return header + "}";
}

// A value or a typed error with a short, printable message; whatever else is thrown fails the test.
bool accepted(std::string_view file) {
  try {
    parse_safetensors_header(bytes(file), file.size(), "memory");
    return true;
  } catch (const Error& error) {
    const std::string& text = error.message();
    REQUIRE(text.size() <= 1024);
    REQUIRE(
        std::none_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20; }));
    return false;
  }
}

}  // namespace

TEST_CASE("safetensors: names, shapes, types and bytes come back in the order of the data") {
  const testing::TemporaryFolder folder;
  const std::string header =
      R"({"__metadata__":{"format":"pt","note":"\u00e9\n"},)" + entry("late", "F32", "[2]", "[8,16]") + "," +
      entry("early", "BF16", "[2,2]", "[0,8]") + "," + entry("none", "I64", "[0,3]", "[8,8]") + "," +
      entry("one", "F64", "[]", "[16,24]") + "}  ";
  testing::write_text(folder / "m.safetensors", safetensors(header, "abcdefghABCDEFGH12345678"));
  const SafetensorsFile file(folder / "m.safetensors");

  REQUIRE(file.tensors().size() == 4);
  CHECK(file.data_begin() == 8 + header.size());
  const auto& tensors = file.tensors();
  CHECK(tensors[0].name == "early");
  CHECK(tensors[0].dtype == DType::bf16);
  CHECK(tensors[0].dtype_text == "BF16");
  CHECK(tensors[0].shape == std::vector<std::uint64_t>{2, 2});
  CHECK(tensors[0].begin == file.data_begin());
  CHECK(tensors[1].name == "none");
  CHECK(tensors[1].bytes == 0);
  CHECK(tensors[1].elements() == 0);
  CHECK(tensors[2].name == "late");
  CHECK(tensors[3].shape.empty());
  CHECK(tensors[3].elements() == 1);

  CHECK(content(file, "early") == "abcdefgh");
  CHECK(content(file, "late") == "ABCDEFGH");
  CHECK(content(file, "none").empty());
  CHECK(content(file, "one") == "12345678");
  CHECK(file.find("lat") == nullptr);
  CHECK(file.find("") == nullptr);
  CHECK(file.metadata() == std::map<std::string, std::string>{{"format", "pt"}, {"note", "\u00e9\n"}});

  std::string small(7, '\0');
  const auto fields =
      refusal([&] { file.read(tensors[0], std::as_writable_bytes(std::span(small))); }, ErrorCode::size);
  CHECK(fields.tensor == "early");
}

TEST_CASE("safetensors: every dtype of the format has its size") {
  // Sixteen elements are whole bytes in every type. Bits from the format's description.
  const std::map<std::string, int> bits{
      {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},    {"U8", 8},          {"I8", 8},
      {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"I16", 16},       {"U16", 16},        {"F16", 16},
      {"BF16", 16},   {"I32", 32},    {"U32", 32},    {"F32", 32},       {"F8_E4M3FNUZ", 8}, {"C64", 64},
      {"F64", 64},    {"I64", 64},    {"U64", 64},    {"F8_E5M2FNUZ", 8}};
  CHECK(bits.size() == 22);
  for (const auto& [name, width] : bits) {
    CAPTURE(name);
    const std::uint64_t size = static_cast<std::uint64_t>(width) * 16 / 8;
    const auto file_of = [&](std::uint64_t stored) {
      return safetensors("{" + entry("a", name, "[4,4]", "[0," + std::to_string(stored) + "]") + "}",
                         std::string(stored, 'x'));
    };
    const std::string file = file_of(size);
    const auto header = parse_safetensors_header(bytes(file), file.size(), "memory");
    CHECK(header.tensors[0].dtype_text == name);
    CHECK(dtype_name(header.tensors[0].dtype) == name);
    refusal([&] { parse_safetensors_header(bytes(file_of(size - 1)), file_of(size - 1).size(), "memory"); },
            ErrorCode::size);
  }
}

TEST_CASE("safetensors: unusual but legal files are accepted (S42, S43, S45, S46, S48)") {
  const testing::TemporaryFolder folder;
  const std::string nfc = "\u00e9", nfd = "e\u0301";
  const std::string header = "{" + entry("../../etc/x", "U8", "[1]", "[0,1]") + "," +
                             entry(nfc, "F32", "[1]", "[1,5]") + "," + entry(nfd, "BOOL", "[3]", "[5,8]") +
                             "}";
  const std::string odd = (header.size() % 8 == 0 ? header + " " : header);
  testing::write_text(folder / "m.safetensors", safetensors(odd, "zabcd\x01\x02\x00"s));
  const SafetensorsFile file(folder / "m.safetensors");
  CHECK(content(file, "../../etc/x") == "z");
  CHECK(content(file, nfc) == "abcd");  // not aligned for its type: read into memory of one's own
  CHECK(content(file, nfd) == "\x01\x02\x00"s);
  CHECK(file.find(nfc) != file.find(nfd));

  const std::string stored = content(file, nfd);
  check_fields(row_refusal([&] { decode_booleans(*file.find(nfd), bytes(stored)); }, ErrorCode::value),
               {.tensor = nfd, .index = 1, .expected = "0 or 1", .found = "2"});
  CHECK(decode_booleans(*file.find(nfd), bytes("\x01\x00\x01"s)) == std::vector<bool>{true, false, true});
  refusal([&] { decode_booleans(*file.find(nfc), bytes("abcd")); }, ErrorCode::dtype);

  // A length whose bytes begin like a pickle or a gzip stream says nothing while the header is as it should
  // be.
  for (const std::size_t length : {0x0280UL, 0x088b1fUL}) {
    const std::string file_bytes = safetensors("{}" + std::string(length - 2, ' '));
    CHECK(accepted(file_bytes));
  }
}

TEST_CASE("safetensors: limits are met exactly") {
  CHECK(accepted(safetensors("{" + entry(std::string(1024, 'n'), "U8", "[1]", "[0,1]") + "}", "x")));
  CHECK(accepted(safetensors("{" + entry("a", "U8", "[1,1,1,1,1,1,1,1]", "[0,1]") + "}", "x")));
  CHECK(accepted(safetensors("{" + entry("a", "U8", "[9223372036854775807,0]", "[0,0]") + "}")));
  // A range up to the last byte that a file can have, in a file that ends long before it.
  const std::string far = safetensors("{" + entry("a", "U8", "[1099511627776]", "[0,1099511627776]") + "}");
  CHECK(parse_safetensors_header(bytes(far), far.size() + 1099511627776, "memory").tensors[0].bytes ==
        1099511627776);
}

TEST_CASE(
    "safetensors: every prefix of the seeds is refused, every bit flip of their headers is a value or an "
    "error") {
  std::size_t cases = 0, refused = 0;
  for (const std::string& seed : testing::safetensors_seeds()) {
    REQUIRE(accepted(seed));
    for (std::size_t length = 0; length < seed.size(); ++length, ++cases) {
      CAPTURE(length);
      CHECK_FALSE(accepted(std::string_view(seed).substr(0, length)));
    }
    const auto header = parse_safetensors_header(bytes(seed), seed.size(), "memory");
    for (std::size_t bit = 0; bit < 8 * header.data_begin; ++bit, ++cases) {
      std::string flipped = seed;
      flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
      refused += accepted(flipped) ? 0 : 1;
    }
  }
  CHECK(cases > 4000);
  CHECK(refused > cases / 3);  // most flips break something
}

TEST_CASE("safetensors: the cost is linear, also for names that share a prefix (P3)") {
  const auto open = [](std::size_t count) {
    return [count, file = safetensors(many_tensors(count, "model.layers."))] {
      CHECK(parse_safetensors_header(bytes(file), file.size(), "memory").tensors.size() == count);
    };
  };
  check_linear(open(20'000), open(100'000));
}

TEST_CASE("safetensors: a header of 65 MB with 1.1 million tensors (S49)") {
  const std::size_t count = 1'100'000;
  const testing::TemporaryFolder folder;
  testing::write_text(folder / "m.safetensors", safetensors(many_tensors(count, "t")));
  check_largest_header(std::filesystem::file_size(folder / "m.safetensors"), [&] {
    const SafetensorsFile file(folder / "m.safetensors");
    CHECK(file.tensors().size() == count);
    CHECK(file.find("t" + std::to_string(count - 1)) != nullptr);
  });
}

TEST_CASE("safetensors: the longest legal header, full of tensors or of metadata (P3)") {
  const std::size_t most = 100'000'000;
  // As many members as fit, each named by four letters; then padding to the last byte.
  const auto full = [&](std::string header, std::string_view rest, std::string_view closing) {
    const std::size_t count = (most - header.size() - closing.size()) / (rest.size() + 7);
    header.reserve(most);
    for (std::size_t i = 0; i < count; ++i) {
      header += i == 0 ? "\"" : ",\"";
      for (int bits = 0; bits < 24; bits += 6) header += static_cast<char>('?' + (i >> bits & 63));
      std::replace(header.end() - 4, header.end(), '\\', '!');
      header.append("\"").append(rest);
    }
    header += closing;
    header.resize(most, ' ');
    return safetensors(header);
  };
  const testing::TemporaryFolder folder;
  const std::filesystem::path path = folder / "m.safetensors";
  SUBCASE("tensors") {
    testing::write_text(path, full("{", R"(:{"dtype":"U8","shape":[0],"data_offsets":[0,0]})", "}"));
    check_largest_header(most, [&] { CHECK(SafetensorsFile(path).tensors().size() > 1'800'000); });
  }
  SUBCASE("metadata") {
    testing::write_text(path, full(R"({"__metadata__":{)", R"(:"")", "}}"));
    check_largest_header(most, [&] { CHECK(SafetensorsFile(path).tensors().empty()); });
  }
}
