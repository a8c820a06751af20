// Every bad GGUF file of our table, G1 to G40, and the foreign files F1 to F5 that are given as one.
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>

#include <doctest/doctest.h>

#include <scalevec/core/checkpoint/gguf.h>
#include <scalevec/core/checkpoint/quants.h>
#include <scalevec/core/error.h>
#include <scalevec/core/sha256.h>

#include "readers/bounds.h"
#include "readers/errors.h"
#include "readers/gguf_builder.h"
#include "support/files.h"
#include "support/temporary_folder.h"

using namespace scalevec;
using namespace scalevec::testing;

namespace {

constexpr std::uint64_t huge = std::numeric_limits<std::uint64_t>::max();
constexpr std::uint64_t int64_max = std::numeric_limits<std::int64_t>::max();

struct Row {
  const char* id;
  std::string file;
  ErrorCode code;
  ErrorFields fields;
  std::string says = {};  // part of the message
};

GgufBuilder one(const std::vector<std::uint64_t>& dims, std::uint32_t type, std::uint64_t offset = 0) {
  return GgufBuilder().info("t", dims, type, offset);
}

GgufBuilder with_key(std::string_view key) { return GgufBuilder().value<std::uint8_t>(key, kv_u8, 1); }

std::string with_info(const Bytes& bytes) {
  GgufBuilder file;
  file.infos.push_back(bytes);
  return file.build();
}

std::string counts(std::uint64_t tensors, std::uint64_t pairs) {
  return Bytes().raw("GGUF").add(3u).add(tensors).add(pairs);
}

template <class T>
std::string alignment(std::uint32_t type, T value) {
  return GgufBuilder().value("general.alignment", type, value).build();
}

std::string array(std::uint32_t element, std::uint64_t count, std::string_view values = "") {
  return GgufBuilder().pair("k", kv_array, Bytes().add(element).add(count).raw(values).text()).build();
}

// The tensor "t" stands first: its name's length at 24, its rank at 33, its dimensions from 37. The value of
// a first key "k" stands at 37, that of general.alignment at 53.
std::vector<Row> rows() {
  using enum ErrorCode;
  std::vector<Row> all;
  const auto add = [&](const char* id, const std::string& file, ErrorCode code, ErrorFields fields,
                       std::string says = {}) {
    all.push_back({id, file, code, std::move(fields), std::move(says)});
  };
  const auto bytes = [](std::uint64_t count) { return std::to_string(count) + " bytes"; };
  const auto shift = [](int bits) { return std::uint64_t{1} << bits; };

  add("G1 empty", "", trunc, {.offset = 0, .expected = "at least 24 bytes", .found = "0 bytes"});
  add("G1 magic only", "GGUF", trunc, {.offset = 4, .expected = "4 bytes", .found = "0 bytes"});
  add("G1 wrong magic", "FUGG" + std::string(60, '\0'), format,
      {.offset = 0, .expected = "the bytes 'GGUF'", .found = "bytes 'FUGG'"});
  for (const std::uint32_t number : {0u, 1u, 4u}) {
    add("G2 version", GgufBuilder{.version = number}.build(), format,
        {.offset = 4, .expected = "version 2 or 3", .found = "version " + std::to_string(number)});
  }
  add("G3 big-endian", GgufBuilder{.version = 0x03000000}.build(), format,
      {.offset = 4, .expected = "a little-endian file", .found = "version 0x03000000"},
      "big-endian, unsupported");
  for (const std::uint64_t count : {huge, shift(56), shift(60)}) {
    // An info has 25 bytes at the least, a pair 14.
    add("G4 n_tensors", counts(count, 0) + std::string(100, '\0'), limit,
        {.offset = 8, .expected = "at most 4", .found = std::to_string(count)});
    add("G4 n_kv", counts(0, count) + std::string(100, '\0'), limit,
        {.offset = 16, .expected = "at most 7", .found = std::to_string(count)});
  }
  add("G5 n_tensors in 24 bytes", counts(1'000'000'000, 0), limit,
      {.offset = 8, .expected = "at most 0", .found = "1000000000"});
  {
    GgufBuilder file = with_key("k");
    file.pair("l", kv_string, Bytes().string("some text").text()).more_pairs = 1;
    add("G5 one pair more", file.header(), trunc,
        {.offset = file.header().size(), .expected = "8 bytes", .found = "0 bytes"});
  }
  for (const std::uint64_t length : {huge, shift(30)}) {
    add("G6 key length", counts(0, 1) + Bytes().add(length).zeros(40).text(), trunc,
        {.offset = 24, .expected = bytes(length), .found = "40 bytes"});
  }
  add("G7 empty key", with_key("").build(), name,
      {.offset = 24, .expected = "1 to 65535 bytes", .found = "an empty key"});
  add("G8 duplicate key", with_key("k").value<float>("other", kv_f32, 1).value<float>("k", kv_f32, 1).build(),
      dup, {.key = "k", .offset = 59, .expected = "each name once", .found = "the first at byte 24"},
      "bytes 24 and 59");
  add("G9 long key", with_key(std::string(70'000, 'k')).build(), limit,
      {.offset = 24, .expected = "65535 bytes", .found = "70000 bytes"});
  add("G10 key not ASCII", with_key("k\xc3\xa9").build(), name,
      {.offset = 33, .expected = "printable ASCII", .found = "byte 0xc3"});
  add("G10 key with NUL", with_key(std::string("k\0k", 3)).build(), name,
      {.offset = 33, .expected = "printable ASCII", .found = "byte 0x00"});
  for (const std::uint32_t type : {13u, ~0u}) {
    const std::string found = std::to_string(type);
    add("G11 value type", GgufBuilder().pair("k", type, "12345678").build(), format,
        {.key = "k", .offset = 33, .expected = "0 to 12", .found = found});
    add("G11 element type", array(type, 1, "12345678"), format,
        {.key = "k", .offset = 37, .expected = "0 to 12", .found = found});
  }
  add("G12 nested array", array(kv_array, 1, "12345678"), format,
      {.key = "k",
       .offset = 37,
       .expected = "an array of plain values or strings",
       .found = "an array of arrays"},
      "unsupported");
  // An array without values ends at 49, and padding follows up to 64.
  const auto elements = [](std::uint64_t count, int size, const char* left) {
    return ErrorFields{
        .key = "k",
        .offset = 41,
        .expected = std::to_string(count) + " elements of at least " + std::to_string(size) + " bytes",
        .found = left};
  };
  add("G13 array count", array(kv_u8, huge), trunc, elements(huge, 1, "15 bytes"));
  add("G13 array count times 8 wraps", array(kv_f64, shift(61) + 1), trunc,
      elements(shift(61) + 1, 8, "15 bytes"));
  add("G13 array count", array(kv_u8, 1'000'000'000), trunc, elements(1'000'000'000, 1, "15 bytes"));
  add("G13 string array", array(kv_string, 100'000'000, std::string(64, '\0')), trunc,
      elements(100'000'000, 8, "79 bytes"));
  add("G14 string length", GgufBuilder().pair("k", kv_string, Bytes().add(huge).text()).build(), trunc,
      {.key = "k", .offset = 37, .expected = bytes(huge), .found = "19 bytes"});
  add("G14 string in array", array(kv_string, 1, Bytes().add(huge - 7).text()), trunc,
      {.key = "k", .offset = 49, .expected = bytes(huge - 7), .found = "7 bytes"});
  add("G16 bool 7", GgufBuilder().value<std::uint8_t>("k", kv_bool, 7).build(), value,
      {.key = "k", .offset = 37, .expected = "0 or 1", .found = "7"});
  add("G16 bool in array", array(kv_bool, 3, std::string("\1\0\2", 3)), value,
      {.key = "k", .offset = 51, .expected = "0 or 1", .found = "2"});
  const auto aligned = [](const char* expected, const std::string& found, std::uint64_t offset = 53) {
    return ErrorFields{.key = "general.alignment", .offset = offset, .expected = expected, .found = found};
  };
  for (const std::uint32_t number : {0u, 13u, 24u}) {
    add("G17 alignment", alignment(kv_u32, number), value, aligned("8, 16, 32, ...", std::to_string(number)));
  }
  add("G18 alignment 1", alignment(kv_u32, 1u), value, aligned("8, 16, 32, ...", "1"));
  add("G19 alignment 2^31", alignment(kv_u32, 1u << 31), limit, aligned("at most 65536", "2147483648"));
  add("G20 alignment i32", alignment(kv_i32, 32), schema, aligned("u32", "i32"));
  add("G20 alignment string", GgufBuilder().text("general.alignment", "32").build(), schema,
      aligned("u32", "string"));
  for (const std::uint64_t count : {std::uint64_t{0}, std::uint64_t{2}}) {
    GgufBuilder file;
    file.pair("general.alignment", kv_array, Bytes().add(kv_u32).add(count).zeros(4 * count).text());
    add("G20 alignment array", file.build(), schema, aligned("u32", "array", 65));
  }
  add("G21 name of 64 bytes", GgufBuilder().tensor(std::string(64, 'n'), {1}, type_f32, floats({1})).build(),
      limit, {.offset = 24, .expected = "63 bytes", .found = "64 bytes"});
  add("G21 name length", with_info(Bytes().add(huge).zeros(40)), limit,
      {.offset = 24, .expected = "63 bytes", .found = bytes(huge)});
  add("G22 empty name", GgufBuilder().tensor("", {1}, type_f32, floats({1})).build(), name,
      {.offset = 24, .expected = "1 to 63 bytes", .found = "an empty name"});
  const std::string nul_a("t\0a", 3), nul_b("t\0b", 3);
  const auto two = [](const std::string& first, const std::string& second) {
    GgufBuilder file;
    file.tensor(first, {1}, type_f32, floats({1})).tensor(second, {1}, type_f32, floats({1}));
    return file.build();
  };
  add("G23 duplicate name", two("t", "t"), dup,
      {.tensor = "t", .offset = 57, .expected = "each name once", .found = "the first at byte 24"},
      "bytes 24 and 57");
  add("G23 names equal up to a NUL", two(nul_a, nul_b), dup,
      {.tensor = nul_b, .offset = 59, .expected = "each name once", .found = "the first at byte 24"});
  const std::string plain = "a name in UTF-8 without control bytes";
  add("G23 one name with a NUL", GgufBuilder().tensor(nul_a, {1}, type_f32, floats({1})).build(), name,
      {.tensor = nul_a, .offset = 33, .expected = plain, .found = "byte 0x00"});
  add("G23 name not UTF-8", GgufBuilder().tensor("t\xff", {1}, type_f32, floats({1})).build(), utf8,
      {.tensor = "t\xff", .offset = 33, .expected = plain, .found = "byte 0xff"});
  for (const std::uint32_t rank : {5u, ~0u}) {
    add("G24 n_dims", with_info(Bytes().string("t").add(rank).zeros(80)), shape,
        {.tensor = "t", .offset = 33, .expected = "at most 4", .found = std::to_string(rank)});
  }
  const auto dimension = [](const char* found) {
    return ErrorFields{.tensor = "t", .offset = 37, .index = 0, .expected = "0 to 2^63 - 2", .found = found};
  };
  add("G26 dimension -1", one({huge}, type_f32).build(), shape, dimension("-1"));
  for (const std::uint32_t type : {type_f32, type_i8}) {
    add("G26 dimension INT64_MAX", one({int64_max}, type).build(), shape, dimension("9223372036854775807"));
  }
  const auto product = [](const char* found) {
    return ErrorFields{.tensor = "t", .offset = 33, .expected = "fewer than 2^63 elements", .found = found};
  };
  add("G27", one({shift(32), shift(32)}, type_f32).build(), overflow, product("[4294967296, 4294967296]"));
  add("G27", one({shift(16), shift(16), shift(16), shift(16)}, type_f32).build(), overflow,
      product("[65536, 65536, 65536, 65536]"));
  add("G27", one({shift(31), shift(31), 4}, type_f32).build(), overflow,
      product("[4, 2147483648, 2147483648]"));
  add("G27 behind a zero", one({0, shift(32), shift(32)}, type_f32).build(), overflow,
      product("[4294967296, 4294967296, 0]"));
  add("G27 before a zero", one({shift(32), shift(32), 0}, type_f32).build(), overflow,
      product("[0, 4294967296, 4294967296]"));
  add("G28", one({int64_max, 2}, type_i8).build(), overflow, product("[2, 9223372036854775807]"));
  add("G28 padding wraps", one({4, shift(30) - 1, shift(30) + 1}, type_f32).build(), overflow,
      {.tensor = "t",
       .offset = 65,
       .expected = "fewer than 2^63 bytes",
       .found = "[1073741825, 1073741823, 4] of F32"});
  add("G29", one({shift(63) - 64}, type_i8).info("u", {shift(63) - 64}, type_i8, shift(63) - 64).build(),
      overflow,
      {.tensor = "u",
       .offset = 82,
       .expected = "fewer than 2^63 bytes",
       .found = "[9223372036854775744] of I8"});
  for (const std::uint32_t type : {~0u, 1000u, 4u, 5u, 31u, 36u, 42u}) {
    add("G31 type", one({32}, type).build(), dtype,
        {.tensor = "t",
         .offset = 45,
         .expected = "a type of ggml, such as 0 (F32) or 12 (Q4_K)",
         .found = "type " + std::to_string(type)});
  }
  const auto row_of = [](const char* found, std::uint64_t offset) {
    return ErrorFields{.tensor = "t", .offset = offset, .expected = "a multiple of 32", .found = found};
  };
  add("G32 row", one({33}, type_q4_0).build(), quant, row_of("33", 49));
  add("G32 scalar", one({}, type_q4_0).build(), quant, row_of("1", 41));
  add("G32 row, 32 elements in all", one({16, 2}, type_q4_0).build(), quant, row_of("16", 57));
  const std::string room(96, '\0'), after_t = ", the padded end of 't'";
  const auto placed = [](const char* tensor, const std::string& expected, const std::string& found) {
    return ErrorFields{.tensor = tensor, .expected = "offset " + expected, .found = "offset " + found};
  };
  add("G33 offset 2^64-1", one({1}, type_f32, huge).build(), offset, row_of("18446744073709551615", 49));
  add("G33 offset 2^64-32", one({1}, type_f32, huge - 31).build(), offset,
      placed("t", "0", "18446744073709551584"));
  add("G33 unaligned", one({1}, type_f32, 4).build() + room, offset, row_of("4", 49), "not aligned");
  add("G33 overlap", one({9}, type_f32).info("u", {1}, type_f32, 32).build() + room, offset,
      placed("u", "64" + after_t, "32"));
  add("G33 same place", one({1}, type_f32).info("u", {1}, type_f32, 0).build() + room, offset,
      placed("u", "32" + after_t, "0"));
  add("G33 hole", one({1}, type_f32).info("u", {1}, type_f32, 64).build() + room, offset,
      placed("u", "32" + after_t, "64"));
  add("G33 hole at the start", one({1}, type_f32, 32).build() + room, offset, placed("t", "0", "32"));
  add("G35 one byte short", one({16}, type_f32).build() + std::string(63, '\0'), trunc,
      {.tensor = "t", .offset = 127, .expected = "128 bytes", .found = "127 bytes"});
  {
    const GgufBuilder model = small_model();
    const std::uint64_t header = model.header().size(), all_bytes = model.build().size();
    add("G35 data absent", model.header(), trunc,
        {.tensor = "blk.0.attn_norm.weight",
         .offset = header,
         .expected = bytes(model.data_begin() + 16),
         .found = bytes(header)});
    add("G36 junk", model.build() + "PK\3\4", trail,
        {.offset = all_bytes, .expected = "a file of " + bytes(all_bytes), .found = "4 bytes after it"});
  }
  add("G36 junk without tensors", GgufBuilder().build() + std::string(1, '\0'), trail,
      {.offset = 32, .expected = "a file of 32 bytes", .found = "1 bytes after it"});

  const auto foreign = [&](const char* id, const std::string& file, const char* found) {
    add(id, file, format, {.offset = 0, .expected = "the bytes 'GGUF'", .found = found}, found);
  };
  const std::string zeros(60, '\0'), pickled("\x80\x02}q\x01.", 6);
  const char* const pickle = "a pickle (pickle refused: loading one runs code)";
  foreign("F1 pickle", pickled + zeros, pickle);
  foreign("F1 pickle, protocol 4", std::string("\x80\x04\x95\x10\0\0\0\0\0\0\0", 11) + zeros, pickle);
  foreign("F1 pickle, protocol 0", "(dp0\nS'weight'\np1\n" + std::string(60, '.'), pickle);
  foreign("F2 zip", "PK\3\4" + zeros,
          "a zip archive, as torch.save and TorchScript write (pickle refused: loading one runs code)");
  foreign("F2 tar", "archive/data.pkl" + std::string(241, '\0') + "ustar" + std::string(250, '\0'),
          "a tar archive (pickle refused: loading one runs code)");
  foreign("F3 pickle, valid tail", pickled + small_model().build(), pickle);
  foreign("F4 LFS pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
          "a Git LFS pointer (run git lfs pull to fetch the file itself)");
  foreign("F4 HTML", "\n<!DOCTYPE html><html></html>", "an HTML page (a download that was refused?)");
  foreign("F4 gzip", std::string("\x1f\x8b\x08\0", 4) + zeros, "gzip-compressed data (decompress it first)");
  foreign("F4 safetensors", Bytes().add<std::uint64_t>(2).raw("{}"), "a safetensors file");
  return all;
}

}  // namespace

TEST_CASE("GGUF: every bad file of the table has its code and fields, from memory and from disk") {
  const TemporaryFolder folder;
  const std::filesystem::path path = folder / "model.gguf";
  for (const Row& row : rows()) {
    CAPTURE(row.id);
    write_text(path, row.file);
    const std::string digest = sha256_hex(as_span(row.file));
    const auto check = [&](const std::string& name, auto&& open) {
      std::string message;
      ErrorFields want = row.fields;
      want.file = name;
      const ErrorFields fields = row_refusal(open, row.code, &message);
      CHECK_MESSAGE(contains(message, row.says), message);
      check_fields(fields, want, message);
    };
    check("m", [&] { GgufFile::from_memory(as_span(row.file), "m"); });
    check(path.string(), [&] { GgufFile{path}; });
    CHECK(sha256_hex(as_span(read_text(path))) == digest);
  }
  CHECK(snapshot(folder.path()).size() == 1);
}

TEST_CASE("GGUF: every row of the table that refuses a file is here") {
  std::set<std::string> seen;
  for (const Row& row : rows()) {
    const std::string_view id = row.id;
    seen.emplace(id.substr(0, id.find(' ')));
  }
  // Accepted rows, and those that need a folder or an edit, have tests of their own below.
  const std::set<int> elsewhere{15, 25, 30, 34, 37, 38, 39, 40};
  for (int i = 1; i <= 40; ++i) {
    if (!elsewhere.contains(i)) CHECK_MESSAGE(seen.contains("G" + std::to_string(i)), i);
  }
}

TEST_CASE("GGUF G15, G25, G30, G34, G36: what is odd but legal is read as it stands") {
  GgufBuilder file;
  file.text("k", "a\xff");
  file.infos.clear();
  file.info("second", {8}, type_f32, 32).info("first", {}, type_f32, 0).info("none", {0, 5}, type_q8_0, 32);
  file.data = floats({7}) + std::string(28, '\x55') + floats({1, 2, 3, 4, 5, 6, 7, 8});
  const std::string text = file.build();
  const GgufFile read = GgufFile::from_memory(as_span(text));

  CHECK(read.metadata().bytes("k") == "a\xff");
  check_fields(row_refusal([&] { read.metadata().text("k"); }, ErrorCode::utf8),
               {.file = "memory",
                .key = "k",
                .offset = 24 + 9 + 4 + 8 + 1,
                .expected = "UTF-8",
                .found = "byte 0xff"});

  REQUIRE(read.tensors().size() == 3);
  CHECK(read.tensors()[0].name == "second");
  CHECK(read.tensors()[1].shape.empty());
  CHECK(read.tensors()[1].elements() == 1);
  CHECK(read.tensors()[2].bytes == 0);
  CHECK(read.tensors()[2].shape == std::vector<std::uint64_t>{5, 0});
  float value = 0;
  read.read(*read.find("first"), std::as_writable_bytes(std::span(&value, 1)));
  CHECK(value == 7);
  read.read(read.tensors()[0], 28, std::as_writable_bytes(std::span(&value, 1)));
  CHECK(value == 8);
  read.read(read.tensors()[2], {});

  // The last padding may be absent.
  GgufBuilder short_tail;
  short_tail.info("t", {1}, type_f32, 0).data = floats({1});
  CHECK(GgufFile::from_memory(as_span(short_tail.build())).tensors().size() == 1);
  // A name of 63 bytes, and a zero behind an alignment of its own.
  GgufBuilder aligned{.alignment = 64};
  aligned.value<std::uint32_t>("general.alignment", kv_u32, 64);
  aligned.tensor(std::string(63, 'n'), {1}, type_f32, floats({1})).tensor("u", {1}, type_f32, floats({2}));
  CHECK(GgufFile::from_memory(as_span(aligned.build())).tensors()[1].begin % 64 == 0);
}

TEST_CASE("GGUF G37: an architecture is needed only when asked for") {
  const auto refused = [](const GgufBuilder& builder, std::optional<std::uint64_t> offset,
                          const char* expected, const char* found) {
    const std::string text = builder.build();
    const GgufFile file = GgufFile::from_memory(as_span(text));
    check_fields(row_refusal([&] { file.architecture(); }, ErrorCode::schema), {.file = "memory",
                                                                                .key = "general.architecture",
                                                                                .offset = offset,
                                                                                .expected = expected,
                                                                                .found = found});
  };
  refused(GgufBuilder(), {}, "the key", "no such key");
  refused(GgufBuilder().value<std::uint32_t>("general.architecture", kv_u32, 1), 56, "string", "u32");
  refused(GgufBuilder().text("general.architecture", ""), {}, "a name, such as llama", "an empty string");
}

TEST_CASE("GGUF G38: a block count that the tensors contradict") {
  const auto refused = [](std::uint32_t type, auto count, ErrorFields want) {
    GgufBuilder file = small_model();
    file.pairs[1] = Bytes().string("llama.block_count").add(type).add(count).text();
    const std::string text = file.build();
    const GgufFile read = GgufFile::from_memory(as_span(text));
    want.file = "memory";
    want.key = "llama.block_count";
    want.offset = 24 + file.pairs[0].size() + 8 + want.key.size() + 4;
    check_fields(row_refusal([&] { read.block_count(); }, ErrorCode::config), want);
  };
  refused(kv_u32, std::uint32_t{1} << 31, {.expected = "1 to 3", .found = "2147483648"});
  refused(kv_i32, std::int32_t{-1}, {.expected = "1 to 3", .found = "-1"});
  refused(kv_u64, huge, {.expected = "an integer below 2^63", .found = "18446744073709551615"});
  refused(kv_u32, std::uint32_t{0}, {.expected = "1 to 3", .found = "0"});
  refused(kv_u32, std::uint32_t{3}, {.expected = "tensors of 3 blocks", .found = "none of block 2"});
  refused(kv_u32, std::uint32_t{1},
          {.tensor = "blk.1.attn_norm.weight", .expected = "blocks 0 to 0", .found = "block 1"});
  CHECK(GgufFile::from_memory(as_span(small_model().build())).block_count() == 2);
}

TEST_CASE("GGUF G39: 100,000 keys or tensors open within a second, and in linear time") {
  const auto keys = [](int count) {
    GgufBuilder file;
    for (int i = 0; i < count; ++i) file.value<std::uint8_t>("key." + std::to_string(i), kv_u8, 1);
    return file.build();
  };
  const auto tensors = [](int count) {
    GgufBuilder file;
    for (int i = 0; i < count; ++i) file.info("tensor." + std::to_string(i), {0}, type_f32, 0);
    return file.build();
  };
  const auto open = [](const std::string& file) { return [file] { GgufFile::from_memory(as_span(file)); }; };
  check_linear(open(keys(20'000)), open(keys(100'000)));
  check_linear(open(tensors(20'000)), open(tensors(100'000)));

  const TemporaryFolder folder;
  const std::filesystem::path path = folder / "large.gguf";
  const int most = 1 << 20;
  for (const std::string& file : {keys(most), tensors(most)}) {
    write_text(path, file);
    check_largest_header(file.size(), [&] { GgufFile{path}; });
  }
}

TEST_CASE("GGUF: the longest header that is read, and one byte more (P3)") {
  const std::uint64_t most = std::uint64_t{256} << 20, begin = 24 + 9 + 4 + 12;
  const TemporaryFolder folder;
  const std::filesystem::path path = folder / "largest.gguf";
  // As many tensors as are read, behind an array of empty strings: eight zeros each, which the file leaves
  // out. What eight does not divide is the text of the last one.
  std::string infos;
  for (int i = 0; i < 1 << 20; ++i) {
    infos += GgufBuilder().info("tensor." + std::to_string(i), {0}, type_f32, 0).infos[0];
  }
  const std::uint64_t room = most - begin - infos.size();
  const std::string last = Bytes().add(room % 8).zeros(room % 8);
  write_text(path,
             Bytes().raw(counts(1 << 20, 1)).string("k").add(kv_array).add(kv_string).add(room / 8).text());
  std::filesystem::resize_file(path, most - infos.size() - last.size());
  std::ofstream(path, std::ios::binary | std::ios::app) << last << infos;
  REQUIRE(std::filesystem::file_size(path) == most);
  check_largest_header(most, [&] {
    const GgufFile file(path);
    CHECK(file.tensors().size() == 1 << 20);
    CHECK(file.tensors()[0].begin == most);
  });

  write_text(path,
             Bytes().raw(counts(0, 1)).string("k").add(kv_array).add(kv_u8).add(most + 1 - begin).text());
  std::filesystem::resize_file(path, most + 32);
  check_fields(row_refusal([&] { GgufFile{path}; }, ErrorCode::limit), {.file = path.string(),
                                                                        .key = "k",
                                                                        .offset = begin,
                                                                        .expected = "268435456 bytes",
                                                                        .found = "268435457 bytes"});
}

TEST_CASE("GGUF G40: a quantised vector cannot be edited") {
  GgufBuilder file;
  file.tensor("norm.weight", {32}, type_q4_0, std::string(18, '\0'));
  file.tensor("mask.weight", {32}, type_i8, std::string(32, '\0'));
  file.tensor("good.weight", {1}, type_bf16, std::string(2, '\0'));
  const std::string text = file.build();
  const GgufFile read = GgufFile::from_memory(as_span(text));
  const auto refused = [&](int tensor, ErrorCode code, const char* name, const char* found) {
    std::string message;
    const ErrorFields fields =
        row_refusal([&] { require_editable(read.tensors()[static_cast<std::size_t>(tensor)], "m.gguf"); },
                    code, &message);
    check_fields(fields,
                 {.file = "m.gguf", .tensor = name, .expected = "F64, F32, F16 or BF16", .found = found});
    return message;
  };
  CHECK(contains(refused(0, ErrorCode::quant, "norm.weight", "Q4_0"), "would re-quantise"));
  refused(1, ErrorCode::dtype, "mask.weight", "I8");
  require_editable(read.tensors()[2], "m.gguf");
}

TEST_CASE("GGUF F5: what is no file is refused without blocking") {
  const TemporaryFolder folder;
  const std::filesystem::path fifo = folder / "fifo", socket_path = folder / "socket";
  REQUIRE(mkfifo(fifo.c_str(), 0600) == 0);
  const int descriptor = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{.sun_family = AF_UNIX, .sun_path = {}};
  std::strncpy(address.sun_path, socket_path.c_str(), sizeof address.sun_path - 1);
  REQUIRE(bind(descriptor, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  const std::pair<std::filesystem::path, const char*> kinds[] = {{folder.path(), "a directory"},
                                                                 {fifo, "a FIFO"},
                                                                 {socket_path, "a socket"},
                                                                 {"/dev/zero", "a character device"},
                                                                 {folder / "absent", "no file"}};
  for (const auto& [path, kind] : kinds) {
    CAPTURE(path);
    check_fields(row_refusal([&] { GgufFile{path}; }, ErrorCode::path),
                 {.file = path.string(), .expected = "a regular file", .found = kind});
  }
  close(descriptor);
}
