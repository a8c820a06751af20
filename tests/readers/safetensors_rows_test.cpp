// The rows S1 to S50 and F1 to F4 of the table of bad inputs: each with its code and the fields that it must
// carry.
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <scalevec/core/checkpoint/safetensors.h>
#include <scalevec/core/error.h>

#include "readers/errors.h"
#include "support/files.h"
#include "support/safetensors_bytes.h"
#include "support/temporary_folder.h"

using namespace scalevec;
using namespace std::string_literals;
using testing::entry;
using testing::little_endian;
using testing::safetensors;

namespace {

// An empty tensor or key: the field must be empty. No offset: the table asks for none. expected and found:
// parts of the texts.
struct Row {
  std::string id;
  std::string bytes;
  ErrorCode code;
  std::string tensor = {};
  std::string key = {};
  std::optional<std::uint64_t> offset = {};
  std::string expected = {};
  std::string found = {};
  std::optional<std::int64_t> index = {};
};

// A header of one tensor "a" whose info is given as text.
std::string one(std::string_view info, std::string_view data = {}) {
  return safetensors("{\"a\":" + std::string(info) + "}", data);
}

std::string shaped(std::string_view shape, std::string_view dtype = "U8", std::string_view range = "[0,0]") {
  return safetensors("{" + entry("a", dtype, shape, range) + "}");
}

std::string f32(std::string_view name, std::string_view range) { return entry(name, "F32", "[2]", range); }

std::string repeat(std::string_view text, std::size_t times) {
  std::string out;
  for (std::size_t i = 0; i < times; ++i) out += text;
  return out;
}

const std::string eight(8, 'x'), sixteen(16, 'x');
const std::string valid = safetensors("{" + f32("a", "[0,8]") + "}", eight);

std::vector<Row> header_rows() {
  using enum ErrorCode;
  const auto at = [](std::string_view header, std::string_view part) { return 8 + header.find(part); };
  const std::string bad_byte = "{\"a\xff\":{}}", surrogate = R"({"ab\ud800":{}})",
                    low = R"({"x":"\udc00\ud800"})";
  const std::string pair = R"({"x":"\ud800\u0041"})", overlong = "{\"\xc0\xaf\":1}",
                    cut = "{\"x\":\"\xe2\x82";
  const std::string outside = "{\"a\":\xf5}";
  return {
      {"S1", "", trunc, "", "", 0, "8 bytes", "0 bytes"},
      {"S2", std::string(7, '\0'), trunc, "", "", 0, "8 bytes", "7 bytes"},
      {"S3", little_endian(0), json, "", "", 8},
      {"S3 spaces", safetensors("      "), json, "", "", 8},
      {"S4", little_endian(1000) + "{\"a\":{", trunc, "", "", 8, "1000", "6"},
      {"S5", little_endian(100'000'001) + "{}", limit, "", "", 0, "100000000", "100000001"},
      {"S5 passes", little_endian(100'000'000) + "{}", trunc, "", "", 8, "100000000", "2"},
      {"S6", little_endian(std::uint64_t{1} << 63) + "{}", limit, "", "", 0, "100000000",
       "9223372036854775808"},
      {"S6 most", little_endian(~std::uint64_t{0}) + "{}", limit, "", "", 0, "100000000",
       "18446744073709551615"},
      {"S7", safetensors(bad_byte), utf8, "", "", at(bad_byte, "\xff"), "UTF-8", "\\xff"},
      {"S7 overlong", safetensors(overlong), utf8, "", "", 10, "UTF-8"},
      {"S7 cut", safetensors(cut), utf8, "", "", at(cut, "\xe2"), "UTF-8"},
      {"S7 first", safetensors("\xff{}"), utf8, "", "", 8, "UTF-8"},
      {"S7 outside a string", safetensors(outside), utf8, "", "", at(outside, "\xf5"), "UTF-8"},
      {"S8 text", safetensors("not JSON"), json, "", "", 8},
      {"S8 text in braces", safetensors("{not JSON}"), json, "", "", 9},
      {"S8 array", safetensors("[1,2,3]"), json, "", "", 8},
      {"S8 string", safetensors("\"text\""), json, "", "", 8},
      {"S8 unclosed", safetensors("{\"a\":{}"), json, "", "", 15},
      {"S9 second value", safetensors("{}{}"), json, "", "", 10},
      {"S9 junk", safetensors("{} x"), json, "", "", 11},
      {"S9 NUL", safetensors("{}\0"s), json, "", "", 10},
      {"S9 newline", safetensors("{}\n"), json, "", "", 10},
      {"S10", safetensors(" {}"), json, "", "", 8, "'{'"},
      {"S10 newline", safetensors("\n{}"), json, "", "", 8, "'{'"},
      {"S11 BOM", safetensors("\xEF\xBB\xBF{}"), json, "", "", 8},
      {"S11 comment", safetensors("{/* */}"), json, "", "", 9},
      {"S11 line comment", safetensors("{// \n}"), json, "", "", 9},
      {"S11 trailing comma", safetensors("{\"a\":1,}"), json, "", "", 15},
      {"S11 trailing comma in array", safetensors("{\"a\":[1,]}"), json, "", "", 16},
      {"S11 NaN", safetensors("{\"a\":NaN}"), json, "", "", 13},
      {"S11 Infinity", safetensors("{\"a\":-Infinity}"), json, "", "", 14},
      {"S11 leading zero", safetensors("{\"a\":01}"), json, "", "", 14},
      {"S11 plus", safetensors("{\"a\":+1}"), json, "", "", 13},
      {"S11 bare point", safetensors("{\"a\":1.}"), json, "", "", 15},
      {"S11 single quotes", safetensors("{'a':1}"), json, "", "", 9},
      {"S11 raw control byte", safetensors("{\"a\n\":1}"), json, "", "", 11},
      {"S11 escape", safetensors("{\"a\\x\":1}"), json, "", "", 12},
      {"S12 array", one(repeat("[", 100'000)), limit, "", "", 13 + 99, "100 levels", "101"},
      {"S12 objects", one(repeat("{\"a\":", 100'000)), limit, "", "", 13 + 5 * 99, "100 levels", "101"},
      {"S12 closed", one(repeat("[", 100'000) + repeat("]", 100'000)), limit, "", "", 13 + 99, "100 levels",
       "101"},
      {"S12 metadata", safetensors(R"({"__metadata__":{"k":)" + repeat("[", 100'000)), limit, "", "", 29 + 98,
       "100", "101"},
      {"S40", safetensors(surrogate), utf8, "", "", at(surrogate, "\\ud800"), "surrogate", "\\ud800"},
      {"S40 low first", safetensors(low), utf8, "", "", at(low, "\\udc00"), "surrogate"},
      {"S40 half a pair", safetensors(pair), utf8, "", "", at(pair, "\\ud800"), "surrogate"},
  };
}

std::vector<Row> schema_rows() {
  using enum ErrorCode;
  const std::string a = f32("a", "[0,8]");
  const std::string again = std::to_string(8 + 1 + a.size() + 1), first = "first at byte 9";
  const std::uint64_t second = 8 + 1 + a.size() + 1;
  const auto meta = [](std::string_view value) {
    return safetensors("{\"__metadata__\":" + std::string(value) + "}");
  };
  const std::string big_name(1'000'000, 'n');
  std::vector<Row> rows{
      {"S13", safetensors("{" + a + "," + a + "}", eight), dup, "a", "", second, "once", first},
      {"S14", safetensors("{" + a + "," + entry("a", "I32", "[2]", "[0,8]") + "}", eight), dup, "a", "",
       second, "once", first},
      {"S14 escaped", safetensors("{" + a + "," + entry("\\u0061", "I32", "[2]", "[0,8]") + "}", eight), dup,
       "a", "", second, "once", first},
      {"S15", safetensors(R"({"__metadata__":{},"__metadata__":{}})"), dup, "", "__metadata__", 27, "once",
       first},
      {"S16", meta(R"({"k":"1","k":"2"})"), dup, "", "k", 33, "once", "first at byte 25"},
      {"S17", one(R"({"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]})"), dup, "a", "dtype", 27,
       "once", "first at byte 14"},
      {"S18 number", meta(R"({"k":1})"), schema, "", "k", 29, "a string", "a number"},
      {"S18 object", meta(R"({"k":{}})"), schema, "", "k", 29, "a string", "an object"},
      {"S18 array", meta(R"({"j":"","k":[]})"), schema, "", "k", 36, "a string", "an array"},
      {"S18 null", meta(R"({"k":null})"), schema, "", "k", 29, "a string", "null"},
      {"S19", meta("null"), schema, "", "__metadata__", 24, "object", "null"},
      {"S19 array", meta("[]"), schema, "", "__metadata__", 24, "object", "array"},
      {"S20", one(R"({"dtype":"U8","shape":[0],"data_offsets":[0,0],"strides":[1]})"), schema, "a", "strides",
       60, "only", "unknown"},
      {"S20 old name", one(R"({"dtype":"U8","shape":[0],"offsets":[0,0]})"), schema, "a", "offsets", 39,
       "only", "unknown"},
      {"S21 dtype",
       one(R"({"shape":[0],"data_offsets":[0,0]})"),
       schema,
       "a",
       "dtype",
       {},
       "dtype",
       "no such"},
      {"S21 shape",
       one(R"({"dtype":"U8","data_offsets":[0,0]})"),
       schema,
       "a",
       "shape",
       {},
       "shape",
       "no such"},
      {"S21 data_offsets",
       one(R"({"dtype":"U8","shape":[0]})"),
       schema,
       "a",
       "data_offsets",
       {},
       "data_offsets",
       "no such"},
      {"S21 all", one("{}"), schema, "a", "dtype", {}, "dtype", "no such"},
      {"S21 no object", one("7"), schema, "a", "", 13, "object", "a number"},
      {"S22", shaped("[0]", "F33"), dtype, "a", "", {}, "F32", "F33"},
      {"S22 lower", shaped("[0]", "f32"), dtype, "a", "", {}, "F32", "f32"},
      {"S22 no text",
       one(R"({"dtype":7,"shape":[0],"data_offsets":[0,0]})"),
       schema,
       "a",
       "dtype",
       {},
       "string",
       "number"},
      {"S24", shaped("[4294967296,4294967296]"), overflow, "a", "", {}, "2^63", "4294967296, 4294967296"},
      {"S25", shaped("[0,4294967296,4294967296]"), overflow, "a", "", {}, "2^63", "0, 4294967296"},
      {"S26", shaped("[4294967296,4294967296,0]"), overflow, "a", "", {}, "2^63", "4294967296, 0"},
      {"S27", shaped("[2305843009213693952]", "F64"), overflow, "a", "", {}, "2^63", "F64"},
      {"S27 signed", shaped("[9223372036854775808]"), overflow, "a", "", {}, "2^63", "9223372036854775808"},
      {"S37 one", shaped("[0]", "U8", "[0]"), schema, "a", "data_offsets", {}, "two", "1 values"},
      {"S37 three", shaped("[0]", "U8", "[0,0,0]"), schema, "a", "data_offsets", {}, "two", "3 values"},
      {"S37 negative", shaped("[0]", "U8", "[-1,0]"), schema, "a", "data_offsets", {}, "two", "-1"},
      {"S37 float", shaped("[0]", "U8", "[0,0.0]"), schema, "a", "data_offsets", {}, "two", "0.0"},
      {"S37 2^64",
       shaped("[0]", "U8", "[0,18446744073709551616]"),
       schema,
       "a",
       "data_offsets",
       {},
       "two",
       "1844"},
      {"S37 no array", shaped("[0]", "U8", "0"), schema, "a", "data_offsets", {}, "two", "number"},
      {"S38", safetensors("{" + f32("", "[0,8]") + "}", eight), name, "", "", 9, "", "empty"},
      {"S39 NUL", safetensors("{" + f32("a\\u0000b", "[0,8]") + "}", eight), name, "", "", 9, "control",
       "a\\x00b"},
      {"S39 control", safetensors("{" + f32("a\\n", "[0,8]") + "}", eight), name, "", "", 9, "control",
       "a\\x0a"},
      {"S39 DEL", safetensors("{" + f32("\x7f", "[0,8]") + "}", eight), name, "", "", 9, "control", "\\x7f"},
      {"S41", safetensors("{" + f32(big_name, "[0,8]") + "}", eight), limit, "", "", 9, "1024", "1000000"},
      {"S41 just", safetensors("{" + f32(std::string(1025, 'n'), "[0,8]") + "}", eight), limit, "", "", 9,
       "1024", "1025"},
      {"S44", shaped("[" + repeat("1,", 4999) + "1]", "U8", "[0,1]"), limit, "a", "", {}, "8", "rank 5000"},
      {"S44 just", shaped("[1,1,1,1,1,1,1,1,1]", "U8", "[0,1]"), limit, "a", "", {}, "8", "rank 9"},
  };
  const std::pair<std::string, std::string> dimensions[] = {
      {"-1", "-1"}, {"2.0", "2.0"},   {"2e0", "2e0"},     {"\"2\"", "\"2\""},
      {"-0", "-0"}, {"null", "null"}, {"[]", "an array"}, {"18446744073709551616", "18446744073709551616"}};
  for (const auto& [text, found] : dimensions)
    rows.push_back({"S23 " + text, shaped("[3," + text + "]"), shape, "a", "", {}, "integer", found, 1});
  rows.push_back({"S23 no array", shaped("3"), schema, "a", "shape", {}, "array", "number"});
  return rows;
}

std::vector<Row> data_rows() {
  using enum ErrorCode;
  const auto two = [](std::string_view a, std::string_view b) {
    return "{" + f32("a", a) + "," + f32("b", b) + "}";
  };
  const auto data_of = [](const std::string& header) { return 8 + header.size(); };
  const std::string a = "{" + f32("a", "[0,8]") + "}", b = two("[0,8]", "[8,16]");
  const std::string hole = two("[0,8]", "[12,20]"), overlap = two("[0,8]", "[4,12]"),
                    same = two("[0,8]", "[0,8]");
  const std::string late = "{" + f32("a", "[8,16]") + "}",
                    far = "{" + entry("a", "U8", "[1000]", "[0,1000]") + "}";
  const std::string zip = "PK\x03\x04 and the rest of it";
  const std::string reversed = "{" + f32("late", "[8,16]") + "," + f32("early", "[0,8]") + "}";
  std::string crowd = "{" + f32("t0", "[0,8]");
  for (int i = 1; i < 100'000; ++i) crowd += "," + f32("t" + std::to_string(i), "[0,8]");
  crowd += "}";
  return {
      {"S28", shaped("[8]", "U8", "[8,0]"), offset, "a", "", {}, "begin <= end", "[8, 0]"},
      {"S29", safetensors(late, sixteen), offset, "a", "", data_of(late) + 8, "from 0", "from 8"},
      {"S30", safetensors(hole, sixteen + "xxxx"), offset, "b", "", data_of(hole) + 12,
       "from 8, the end of 'a'", "from 12"},
      {"S31", safetensors(overlap, sixteen), offset, "b", "", data_of(overlap) + 4, "from 8, the end of 'a'",
       "from 4"},
      {"S32", safetensors(same, eight), offset, "b", "", data_of(same), "from 8, the end of 'a'", "from 0"},
      {"S32 100,000", safetensors(crowd, eight), offset, "t1", "", data_of(crowd), "from 8, the end of 't0'",
       "from 0"},
      {"S33",
       safetensors("{" + entry("a", "F32", "[3]", "[0,8]") + "}", eight),
       size,
       "a",
       "",
       {},
       "12 bytes",
       "8 bytes"},
      {"S33 scalar",
       safetensors("{" + entry("a", "F32", "[]", "[0,8]") + "}", eight),
       size,
       "a",
       "",
       {},
       "4 bytes",
       "8 bytes"},
      {"S33 empty",
       safetensors("{" + entry("a", "F32", "[0]", "[0,8]") + "}", eight),
       size,
       "a",
       "",
       {},
       "0 bytes",
       "8 bytes"},
      {"S34", safetensors(b, sixteen.substr(1)), trunc, "b", "", data_of(b) + 15,
       std::to_string(data_of(b) + 16), std::to_string(data_of(b) + 15)},
      {"S34 header order", safetensors(reversed, sixteen.substr(1)), trunc, "late", "",
       data_of(reversed) + 15, std::to_string(data_of(reversed) + 16),
       std::to_string(data_of(reversed) + 15)},
      {"S35 byte", safetensors(a, eight + "!"), trail, "", "", data_of(a) + 8, "", "1 bytes"},
      {"S35 zip", safetensors(a, eight + zip), trail, "", "", data_of(a) + 8, "",
       std::to_string(zip.size()) + " bytes"},
      {"S36", safetensors(far, eight), trunc, "a", "", data_of(far) + 8, std::to_string(data_of(far) + 1000),
       std::to_string(data_of(far) + 8)},
      {"S36 past 2^63",
       safetensors("{" + entry("a", "U8", "[1]", "[9223372036854775807,9223372036854775808]") + "}"),
       trunc,
       "a",
       "",
       {},
       "offsets below 2^63",
       "begin 9223372036854775807"},
      {"S36 wraps",
       safetensors("{" + entry("a", "U8", "[1]", "[18446744073709551614,18446744073709551615]") + "}"),
       trunc,
       "a",
       "",
       {},
       "offsets below 2^63",
       "begin 18446744073709551614"},
      {"S47",
       safetensors("{" + entry("a", "F4", "[3]", "[0,2]") + "}", "xx"),
       size,
       "a",
       "",
       {},
       "whole number",
       "F4"},
      {"S47 six",
       safetensors("{" + entry("a", "F6_E3M2", "[2]", "[0,2]") + "}", "xx"),
       size,
       "a",
       "",
       {},
       "whole",
       "F6"},
      {"S50", safetensors("{}", eight), trail, "", "", 10, "10 bytes", "8 bytes"},
  };
}

std::vector<Row> foreign_rows() {
  using enum ErrorCode;
  const std::string torch_magic = "\x80\x02\x8a\x0al\xfc\x9c\x46\xf9\x20j\xa8P\x19."s;
  const std::string dict = "\x80\x04\x95\x1f\0\0\0\0\0\0\0}\x94."s, old_dict = "(dp0\nS'weight'\np1\n"s;
  std::string tar(512, '\0');
  tar.replace(0, 8, "pickle.p").replace(257, 5, "ustar");
  const std::string is = "safetensors";
  return {
      {"F1 torch", torch_magic + "\x80\x02M\xe9\x03.", format, "", "", {}, is, "pickle refused"},
      {"F1 protocol 4", dict, format, "", "", {}, is, "pickle refused"},
      {"F1 protocol 1", "]q\0cposix\nsystem\nq\1."s, format, "", "", {}, is, "pickle refused"},
      {"F1 protocol 0", old_dict, format, "", "", {}, is, "pickle refused"},
      {"F1 six bytes", "\x80\x02}q\x00."s, format, "", "", {}, is, "pickle refused"},
      {"F2 zip",
       "PK\x03\x04\0\0\x08\x08\0\0\0\0\0\0archive/data.pkl"s,
       format,
       "",
       "",
       {},
       is,
       "pickle refused"},
      {"F2 TorchScript",
       "PK\x03\x04\x14\0\x08\x08\0\0\0\0model/code/__torch__.py"s,
       format,
       "",
       "",
       {},
       is,
       "TorchScript"},
      {"F2 tar", tar, format, "", "", {}, is, "tar"},
      {"F3", dict + valid, format, "", "", {}, is, "pickle refused"},
      {"F4 LFS",
       "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
       format,
       "",
       "",
       {},
       is,
       "LFS"},
      {"F4 HTML", "<!DOCTYPE html><html><body>404", format, "", "", {}, is, "HTML"},
      {"F4 HTML later", "\n\n<HTML>", format, "", "", {}, is, "HTML"},
      {"F4 gzip", "\x1f\x8b\x08\0\0\0\0\0\0\x03 and so on"s, format, "", "", {}, is, "gzip"},
      {"F4 GGUF", "GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"s, format, "", "", {}, is, "GGUF"},
      {"F4 JSON", "{\"error\":\"Repository not found\"}", format, "", "", {}, is, "JSON"},
      {"F4 HDF5", "\x89HDF\r\n\x1a\n and so on", format, "", "", {}, is, "HDF5"},
  };
}

void check_row(const Row& row, const std::filesystem::path& path) {
  CAPTURE(row.id);
  testing::write_text(path, row.bytes);
  std::string message;
  const ErrorFields fields = row_refusal([&] { SafetensorsFile file(path); }, row.code, &message);
  CAPTURE(message);
  CHECK(fields.file == path.string());
  CHECK(fields.tensor == row.tensor);
  CHECK(fields.key == row.key);
  if (row.offset) CHECK(fields.offset == row.offset);
  CHECK(fields.index == row.index);
  CHECK(contains(fields.expected, row.expected));
  CHECK(contains(fields.found, row.found));
  CHECK(testing::read_text(path) == row.bytes);
  testing::write_text(path, valid);
  CHECK(SafetensorsFile(path).tensors().size() == 1);  // the reader is as good as before
}

void check_rows(const std::vector<Row>& rows) {
  const testing::TemporaryFolder folder;
  for (const Row& row : rows) check_row(row, folder / "model.safetensors");
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);  // nothing else was made
}

}  // namespace

TEST_CASE("safetensors rows: the header's bytes and its JSON") { check_rows(header_rows()); }
TEST_CASE("safetensors rows: what the header says of each tensor") { check_rows(schema_rows()); }
TEST_CASE("safetensors rows: how the tensors lie in the data") { check_rows(data_rows()); }
TEST_CASE("safetensors rows: other kinds of file are named") { check_rows(foreign_rows()); }

TEST_CASE("safetensors rows: every row of the table that refuses a file is here") {
  std::set<std::string> seen;
  for (const auto& rows : {header_rows(), schema_rows(), data_rows(), foreign_rows()}) {
    for (const Row& row : rows) seen.insert(row.id.substr(0, row.id.find(' ')));
  }
  // Accepted rows, and those that need a live file or a folder, stand in safetensors_test and
  // source_file_test.
  const std::set<int> elsewhere{42, 43, 45, 46, 48, 49, 51, 52};
  for (int i = 1; i <= 52; ++i) {
    if (!elsewhere.contains(i)) CHECK_MESSAGE(seen.contains("S" + std::to_string(i)), i);
  }
  for (int i = 1; i <= 4; ++i) CHECK_MESSAGE(seen.contains("F" + std::to_string(i)), i);
}
