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
  const char* fields;  // which must be set: T tensor, K key, O offset, X expected and found; F always
  std::optional<std::uint64_t> offset = {};
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

std::vector<Row> rows() {
  using enum ErrorCode;
  std::vector<Row> all;
  const auto add = [&](const char* id, const std::string& file, ErrorCode code, const char* fields,
                       std::optional<std::uint64_t> offset = {}, std::string says = {}) {
    all.push_back({id, file, code, fields, offset, std::move(says)});
  };
  const auto version = [](std::uint32_t number) { return GgufBuilder{.version = number}.build(); };
  const auto shift = [](int bits) { return std::uint64_t{1} << bits; };

  add("G1 empty", "", trunc, "O", 0);
  add("G1 magic only", "GGUF", trunc, "O", 4);
  add("G1 wrong magic", "FUGG" + std::string(60, '\0'), format, "O", 0);
  for (const std::uint32_t number : {0u, 1u, 4u}) add("G2 version", version(number), format, "OX", 4);
  add("G3 big-endian", version(0x03000000), format, "O", 4, "big-endian, unsupported");
  for (const std::uint64_t count : {huge, shift(56), shift(60)}) {
    add("G4 n_tensors", counts(count, 0) + std::string(100, '\0'), limit, "OX", 8);
    add("G4 n_kv", counts(0, count) + std::string(100, '\0'), limit, "OX", 16);
  }
  add("G5 n_tensors in 24 bytes", counts(1'000'000'000, 0), limit, "O", 8);
  {
    GgufBuilder file = with_key("k");
    file.pair("l", kv_string, Bytes().string("some text").text()).more_pairs = 1;
    add("G5 one pair more", file.header(), trunc, "O", file.header().size());
  }
  add("G6 key length", counts(0, 1) + Bytes().add(huge).zeros(40).text(), trunc, "OX", 24);
  add("G6 key length", counts(0, 1) + Bytes().add(shift(30)).zeros(40).text(), trunc, "OX", 24);
  add("G7 empty key", with_key("").build(), name, "O", 24);
  add("G8 duplicate key", with_key("k").value<float>("other", kv_f32, 1).value<float>("k", kv_f32, 1).build(),
      dup, "KOX", 24 + 14 + 21, "bytes 24 and 59");
  add("G9 long key", with_key(std::string(70'000, 'k')).build(), limit, "O", 24);
  add("G10 key not ASCII", with_key("k\xc3\xa9").build(), name, "O", 24 + 8 + 1);
  add("G10 key with NUL", with_key(std::string("k\0k", 3)).build(), name, "O", 24 + 8 + 1);
  add("G11 value type", GgufBuilder().pair("k", 13, "12345678").build(), format, "KOX", 24 + 9);
  add("G11 value type", GgufBuilder().pair("k", ~0u, "12345678").build(), format, "KOX", 24 + 9);
  add("G11 element type", array(13, 1, "12345678"), format, "KOX", 24 + 9 + 4);
  add("G12 nested array", array(kv_array, 1, "12345678"), format, "K", {}, "unsupported");
  add("G13 array count", array(kv_u8, huge), trunc, "KX");
  add("G13 array count", array(kv_f64, shift(61) + 1), trunc, "KX");  // times 8 it wraps to 8
  add("G13 array count", array(kv_u8, 1'000'000'000), trunc, "KX");
  add("G13 string array", array(kv_string, 100'000'000, std::string(64, '\0')), trunc, "KX");
  add("G14 string length", GgufBuilder().pair("k", kv_string, Bytes().add(huge).text()).build(), trunc, "KX");
  add("G14 string in array", array(kv_string, 1, Bytes().add(huge - 7).text()), trunc, "KX");
  add("G16 bool 7", GgufBuilder().value<std::uint8_t>("k", kv_bool, 7).build(), value, "KO", 24 + 9 + 4);
  add("G16 bool in array", array(kv_bool, 3, std::string("\1\0\2", 3)), value, "KO", 24 + 9 + 4 + 12 + 2);
  for (const std::uint32_t number : {0u, 13u, 24u})
    add("G17 alignment", alignment(kv_u32, number), value, "KX");
  add("G18 alignment 1", alignment(kv_u32, 1u), value, "K");
  add("G19 alignment 2^31", alignment(kv_u32, 1u << 31), limit, "K");
  add("G20 alignment i32", alignment(kv_i32, 32), schema, "KX");
  add("G20 alignment string", GgufBuilder().text("general.alignment", "32").build(), schema, "KX");
  for (const std::uint64_t count : {std::uint64_t{0}, std::uint64_t{2}}) {
    GgufBuilder file;
    file.pair("general.alignment", kv_array, Bytes().add(kv_u32).add(count).zeros(4 * count).text());
    add("G20 alignment array", file.build(), schema, "KX");
  }
  add("G21 name of 64 bytes", GgufBuilder().tensor(std::string(64, 'n'), {1}, type_f32, floats({1})).build(),
      limit, "O", 24);
  add("G21 name length", with_info(Bytes().add(huge).zeros(40)), limit, "O", 24);
  add("G22 empty name", GgufBuilder().tensor("", {1}, type_f32, floats({1})).build(), name, "O", 24);
  add("G23 duplicate name",
      GgufBuilder().tensor("t", {1}, type_f32, floats({1})).tensor("t", {1}, type_f32, floats({1})).build(),
      dup, "TOX", 24 + 33, "bytes 24 and 57");
  add("G23 names equal up to a NUL",
      GgufBuilder()
          .tensor(std::string("t\0a", 3), {1}, type_f32, floats({1}))
          .tensor(std::string("t\0b", 3), {1}, type_f32, floats({1}))
          .build(),
      dup, "TO", 24 + 35);
  add("G23 one name with a NUL",
      GgufBuilder().tensor(std::string("t\0a", 3), {1}, type_f32, floats({1})).build(), name, "TO",
      24 + 8 + 1);
  add("G23 name not UTF-8", GgufBuilder().tensor("t\xff", {1}, type_f32, floats({1})).build(), utf8, "TO",
      24 + 8 + 1);
  for (const std::uint32_t rank : {5u, ~0u}) {
    add("G24 n_dims", with_info(Bytes().string("t").add(rank).zeros(80)), shape, "TO", 24 + 9);
  }
  add("G26 dimension -1", one({huge}, type_f32).build(), shape, "TX", {}, "-1");
  add("G26 dimension INT64_MAX", one({int64_max}, type_f32).build(), shape, "TX");
  add("G26 dimension INT64_MAX", one({int64_max}, type_i8).build(), shape, "TX");
  add("G27", one({shift(32), shift(32)}, type_f32).build(), overflow, "TX");
  add("G27", one({shift(16), shift(16), shift(16), shift(16)}, type_f32).build(), overflow, "TX");
  add("G27", one({shift(31), shift(31), 4}, type_f32).build(), overflow, "TX");
  add("G27 behind a zero", one({0, shift(32), shift(32)}, type_f32).build(), overflow, "TX");
  add("G27 before a zero", one({shift(32), shift(32), 0}, type_f32).build(), overflow, "TX");
  add("G28", one({int64_max, 2}, type_i8).build(), overflow, "TX");
  add("G28 padding wraps", one({4, shift(30) - 1, shift(30) + 1}, type_f32).build(), overflow, "TX");
  add("G29", one({shift(63) - 64}, type_i8).info("u", {shift(63) - 64}, type_i8, shift(63) - 64).build(),
      overflow, "T");
  for (const std::uint32_t type : {~0u, 1000u, 4u, 5u, 31u, 36u, 42u})
    add("G31 type", one({32}, type).build(), dtype, "TX");
  add("G32 row", one({33}, type_q4_0).build(), quant, "TX");
  add("G32 scalar", one({}, type_q4_0).build(), quant, "TX");
  add("G32 row", one({16, 2}, type_q4_0).build(), quant, "TX");  // 32 elements, but no whole block in a row
  add("G33 offset 2^64-1", one({1}, type_f32, huge).build(), offset, "TX");
  add("G33 offset 2^64-32", one({1}, type_f32, huge - 31).build(), offset, "TX");
  add("G33 unaligned", one({1}, type_f32, 4).build() + std::string(64, '\0'), offset, "TX", {},
      "not aligned");
  add("G33 overlap", one({9}, type_f32).info("u", {1}, type_f32, 32).build() + std::string(96, '\0'), offset,
      "TX");
  add("G33 same place", one({1}, type_f32).info("u", {1}, type_f32, 0).build() + std::string(96, '\0'),
      offset, "TX");
  add("G33 hole", one({1}, type_f32).info("u", {1}, type_f32, 64).build() + std::string(96, '\0'), offset,
      "TX");
  add("G33 hole at the start", one({1}, type_f32, 32).build() + std::string(96, '\0'), offset, "TX");
  add("G35 one byte short", one({16}, type_f32).build() + std::string(63, '\0'), trunc, "TX");
  add("G35 data absent", small_model().header(), trunc, "TX");
  {
    const std::string file = small_model().build();
    add("G36 junk", file + "PK\3\4", trail, "O", file.size());
    add("G36 junk without tensors", GgufBuilder().build() + std::string(1, '\0'), trail, "O", 32);
  }

  add("F1 pickle", std::string("\x80\x02}q\x01.", 6) + std::string(60, '\0'), format, "O", 0,
      "pickle refused");
  add("F1 pickle, protocol 4", std::string("\x80\x04\x95\x10\0\0\0\0\0\0\0", 11) + std::string(60, '\0'),
      format, "O", 0, "pickle refused");
  add("F1 pickle, protocol 0", "(dp0\nS'weight'\np1\n" + std::string(60, '.'), format, "O", 0,
      "pickle refused");
  add("F2 zip", "PK\3\4" + std::string(60, '\0'), format, "O", 0, "zip archive");
  add("F2 tar", "archive/data.pkl" + std::string(241, '\0') + "ustar" + std::string(250, '\0'), format, "O",
      0, "tar");
  add("F3 pickle, valid tail", std::string("\x80\x02}q\x01.", 6) + small_model().build(), format, "O", 0,
      "pickle refused");
  add("F4 LFS pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:00\n", format, "O", 0,
      "Git LFS");
  add("F4 HTML", "\n<!DOCTYPE html><html></html>", format, "O", 0, "HTML");
  add("F4 gzip", std::string("\x1f\x8b\x08\0", 4) + std::string(60, '\0'), format, "O", 0, "gzip");
  add("F4 safetensors", Bytes().add<std::uint64_t>(2).raw("{}"), format, "O", 0, "a safetensors file");
  return all;
}

void check_fields(const Row& row, const ErrorFields& fields, const std::string& message,
                  const std::string& file) {
  CHECK(fields.file == file);
  const auto wants = [&](char letter) { return std::strchr(row.fields, letter) != nullptr; };
  CHECK_MESSAGE((!wants('T') || !fields.tensor.empty()), "T");
  CHECK_MESSAGE((!wants('K') || !fields.key.empty()), "K");
  CHECK_MESSAGE((!wants('O') || fields.offset.has_value()), "O");
  CHECK_MESSAGE((!wants('X') || (!fields.expected.empty() && !fields.found.empty())), "X");
  if (row.offset) CHECK(fields.offset == row.offset);
  CHECK_MESSAGE(contains(message, row.says), message);
}

}  // namespace

TEST_CASE("GGUF: every bad file of the table has its code and fields, from memory and from disk") {
  const TemporaryFolder folder;
  const std::filesystem::path path = folder / "model.gguf";
  for (const Row& row : rows()) {
    CAPTURE(row.id);
    write_text(path, row.file);
    const std::string digest = sha256_hex(as_span(row.file));
    std::string in_memory, on_disk;
    check_fields(row,
                 row_refusal([&] { GgufFile::from_memory(as_span(row.file), "m"); }, row.code, &in_memory),
                 in_memory, "m");
    check_fields(row, row_refusal([&] { GgufFile{path}; }, row.code, &on_disk), on_disk, path.string());
    CHECK(sha256_hex(as_span(read_text(path))) == digest);
  }
  CHECK(snapshot(folder.path()).size() == 1);
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
  const ErrorFields fields = refusal([&] { read.metadata().text("k"); }, ErrorCode::utf8);
  CHECK(fields.key == "k");
  CHECK(fields.offset == 24 + 9 + 4 + 8 + 1);

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
  const auto refused = [](const GgufBuilder& builder) {
    const std::string text = builder.build();
    const GgufFile file = GgufFile::from_memory(as_span(text));
    const ErrorFields fields = refusal([&] { file.architecture(); }, ErrorCode::schema);
    CHECK(fields.key == "general.architecture");
    CHECK(fields.file == "memory");
  };
  refused(GgufBuilder());
  refused(GgufBuilder().value<std::uint32_t>("general.architecture", kv_u32, 1));
  refused(GgufBuilder().text("general.architecture", ""));
}

TEST_CASE("GGUF G38: a block count that the tensors contradict") {
  const auto refused = [](std::uint32_t type, auto count, const std::string& says = "") {
    GgufBuilder file = small_model();
    file.pairs[1] = Bytes().string("llama.block_count").add(type).add(count).text();
    std::string message;
    const std::string text = file.build();
    const GgufFile read = GgufFile::from_memory(as_span(text));
    const ErrorFields fields = refusal([&] { read.block_count(); }, ErrorCode::config, &message);
    CHECK(fields.key == "llama.block_count");
    CHECK(fields.file == "memory");
    CHECK(!fields.expected.empty());
    CHECK(!fields.found.empty());
    CHECK(contains(message, says));
  };
  refused(kv_u32, std::uint32_t{1} << 31);
  refused(kv_i32, std::int32_t{-1});
  refused(kv_u64, huge);
  refused(kv_u32, std::uint32_t{0});
  refused(kv_u32, std::uint32_t{3}, "block 2");
  refused(kv_u32, std::uint32_t{1}, "block 1");
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
  const ErrorFields fields = row_refusal([&] { GgufFile{path}; }, ErrorCode::limit);
  CHECK(fields.key == "k");
  CHECK(fields.offset == begin);
  CHECK(fields.expected == "268435456 bytes");
  CHECK(fields.found == "268435457 bytes");
}

TEST_CASE("GGUF G40: a quantised vector cannot be edited") {
  GgufBuilder file;
  file.tensor("norm.weight", {32}, type_q4_0, std::string(18, '\0'));
  file.tensor("mask.weight", {32}, type_i8, std::string(32, '\0'));
  file.tensor("good.weight", {1}, type_bf16, std::string(2, '\0'));
  const std::string text = file.build();
  const GgufFile read = GgufFile::from_memory(as_span(text));
  std::string message;
  const ErrorFields fields =
      refusal([&] { require_editable(read.tensors()[0], "m.gguf"); }, ErrorCode::quant, &message);
  CHECK(fields.file == "m.gguf");
  CHECK(fields.tensor == "norm.weight");
  CHECK(contains(message, "would re-quantise"));
  CHECK(refusal([&] { require_editable(read.tensors()[1], "m.gguf"); }, ErrorCode::dtype).tensor ==
        "mask.weight");
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
  for (const std::filesystem::path& path :
       {folder.path(), fifo, socket_path, std::filesystem::path("/dev/zero"), folder / "absent"}) {
    CAPTURE(path);
    const ErrorFields fields = refusal([&] { GgufFile{path}; }, ErrorCode::path);
    CHECK(fields.file == path.string());
    CHECK(!fields.found.empty());
  }
  close(descriptor);
}
