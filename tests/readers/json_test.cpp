#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <scalevec/core/checkpoint/json.h>
#include <scalevec/core/error.h>

#include "readers/errors.h"

using namespace scalevec;
using namespace std::string_literals;

namespace {

std::string repeat(std::string_view text, std::size_t times) {
  std::string out;
  for (std::size_t i = 0; i < times; ++i) out += text;
  return out;
}

std::optional<ErrorCode> code_of(std::string_view text, JsonLimits limits = {}) {
  try {
    parse_json(text, "test", limits);
    return std::nullopt;
  } catch (const Error& error) {
    CHECK(error.message().size() <= 1024);
    return error.code();
  }
}

// Random JSON text, with the spellings that the grammar leaves free.
class Generator {
 public:
  explicit Generator(std::uint32_t seed) : random_(seed) {}

  std::string value(int depth) {
    switch (pick(depth > 0 ? 8 : 6)) {
      case 0:
        return one_of({"true", "false", "null"});
      case 1:
        return std::to_string(static_cast<std::int64_t>(random_() << 31) >> pick(60));
      case 2:
        return one_of({"0", "-0", "-1", "1.5", "0.1e-7", "2E+10", "-0.0", "18446744073709551615",
                       "18446744073709551616", "-9223372036854775808", "-9223372036854775809", "1e308",
                       "4.9e-324", "1e-400", "0e999"});
      case 3:
      case 4:
      case 5:
        return string();
      case 6:
        return list("[", "]", depth, false);
      default:
        return list("{", "}", depth, true);
    }
  }

  std::string mutate(std::string text) {
    for (int i = pick(3); i >= 0 && !text.empty(); --i) {
      const std::size_t at = static_cast<std::size_t>(pick(static_cast<int>(text.size())));
      switch (pick(4)) {
        case 0:
          text.erase(at, 1);
          break;
        case 1:
          text.insert(at, one_of({",", ":", "\"", "{", "}", "[", "]", "\\", "0", "-", ".", "e", " ", "\xff",
                                  "\xc3", "\\ud83d"}));
          break;
        case 2:
          text[at] = static_cast<char>(random_());
          break;
        default:
          text += text[at];
      }
    }
    return text;
  }

  int pick(int below) { return static_cast<int>(random_() % static_cast<std::uint32_t>(below)); }

 private:
  std::string one_of(std::vector<std::string> choices) { return choices[random_() % choices.size()]; }
  std::string space() { return pick(4) == 0 ? one_of({" ", "\n", "\t", "\r", "  "}) : ""; }
  std::string string() {
    std::string out = "\"";
    for (int i = pick(4); i > 0; --i)
      out += one_of({"a", "name", "\u00e9", "\U0001F600", "\u4e2d", "\\n", "\\\"", "\\\\", "\\/", "\\u0041",
                     "\\u00e9", "\\ud83d\\ude00", "\\u0000", "\\uFFFF", "\x7f"});
    return out + "\"";
  }
  std::string list(const char* open, const char* close, int depth, bool object) {
    std::string out = open + space();
    const int count = pick(4);
    for (int i = 0; i < count; ++i) {
      if (i > 0) out += "," + space();
      if (object) {
        std::string key = string();
        out += key.insert(1, std::to_string(i)) + space() + ":" + space();
      }
      out += value(depth - 1) + space();
    }
    return out + close;
  }

  std::mt19937 random_;
};

}  // namespace

TEST_CASE("json: the same texts are accepted as by nlohmann, with the same values") {
  Generator generator(7);
  int accepted = 0, refused = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string text = generator.value(4);
    if (i % 2 == 1) text = generator.mutate(std::move(text));
    CAPTURE(text);
    const auto theirs = nlohmann::json::parse(text, nullptr, false);
    const auto code = code_of(text);
    if (code == ErrorCode::dup) continue;  // they keep the last
    if (code) {
      CHECK((code == ErrorCode::json || code == ErrorCode::utf8));
      // They skip a byte order mark, and take a NUL for the end.
      const bool agree =
          theirs.is_discarded() || text.starts_with("\xEF\xBB\xBF") || text.find('\0') != std::string::npos;
      CHECK(agree);
      ++refused;
    } else if (theirs.is_discarded()) {
      // They refuse what overflows float64; nothing else.
      const auto parse_theirs = [&] { return nlohmann::json::parse(text); };
      CHECK_THROWS_AS(parse_theirs(), nlohmann::json::out_of_range);
    } else {
      CHECK(parse_json(text, "test") == theirs);
      ++accepted;
    }
  }
  CHECK(accepted > 10'000);
  CHECK(refused > 5'000);
}

TEST_CASE("json: refusals carry the offset of the byte") {
  const std::tuple<std::string, ErrorCode, std::uint64_t> texts[] = {
      {"", ErrorCode::json, 0},
      {"  ", ErrorCode::json, 2},
      {"{\"a\": tru}", ErrorCode::json, 9},
      {"[1, 2,, 3]", ErrorCode::json, 6},
      {"[1 2]", ErrorCode::json, 3},
      {"{\"a\" 1}", ErrorCode::json, 5},
      {"[1}", ErrorCode::json, 2},
      {"\"abc", ErrorCode::json, 4},
      {"\"a\\", ErrorCode::json, 3},
      {"\"\\u12g4\"", ErrorCode::json, 5},
      {"-", ErrorCode::json, 1},
      {"1e", ErrorCode::json, 2},
      {"1 1", ErrorCode::json, 2},
      {"\"\xed\xa0\x80\"", ErrorCode::utf8, 1},      // a surrogate as UTF-8
      {"\"\xf4\x90\x80\x80\"", ErrorCode::utf8, 1},  // beyond U+10FFFF
      {"\"ok\\udfff\"", ErrorCode::utf8, 3},
      {"\xef\xbb\xbf{}", ErrorCode::json, 0},
  };
  for (const auto& [text, code, offset] : texts) {
    CAPTURE(text);
    const auto fields = refusal([&] { parse_json(text, "file.json"); }, code);
    CHECK(fields.file == "file.json");
    CHECK(fields.offset == offset);
  }
}

TEST_CASE("json: keys that stand twice are refused with both offsets, however they are written") {
  const std::tuple<std::string, std::string, std::uint64_t, std::uint64_t> texts[] = {
      {R"({"a":1,"a":1})", "a", 1, 7},
      {R"({"a":1,"\u0061":2})", "a", 1, 7},
      {R"([{"x":{"":[1],"b":0,"":[]}}])", "", 7, 20},
      {R"({"a":1,"b":2,"c":3,"c":3,"b":2})", "c", 13, 19},
      {R"({"in":{"k":1,"k":1},"in":2})", "k", 7, 13},
      {R"({"a":1,"a":2,"a":3})", "a", 1, 7},
  };
  for (const auto& [text, key, first, second] : texts) {
    CAPTURE(text);
    const auto fields = refusal([&] { parse_json(text, "file.json"); }, ErrorCode::dup);
    CHECK(fields.key == key);
    CHECK(fields.offset == second);
    CHECK(contains(fields.found, "at byte " + std::to_string(first)));
  }
  CHECK(parse_json(R"({"a":{"a":[{"a":1},{"a":2}]},"b":{"a":1}})", "test").size() ==
        2);  // the same key elsewhere
}

TEST_CASE("json: numbers keep what they are") {
  CHECK(parse_json("2", "").is_number_integer());
  CHECK(parse_json("2.0", "").is_number_float());
  CHECK(parse_json("2e0", "").is_number_float());
  CHECK(parse_json("-0", "").is_number_float());
  CHECK(std::signbit(parse_json("-0", "").get<double>()));
  CHECK(parse_json("18446744073709551615", "").get<std::uint64_t>() ==
        std::numeric_limits<std::uint64_t>::max());
  CHECK(parse_json("-9223372036854775808", "").get<std::int64_t>() ==
        std::numeric_limits<std::int64_t>::min());
  CHECK(parse_json("18446744073709551616", "").is_number_float());
  CHECK(parse_json("1e400", "").get<double>() == std::numeric_limits<double>::infinity());
  CHECK(parse_json("-1e400", "").get<double>() == -std::numeric_limits<double>::infinity());
  CHECK(parse_json("1e-400", "").get<double>() == 0.0);
  CHECK(parse_json("5e-324", "").get<double>() == std::numeric_limits<double>::denorm_min());
  CHECK(parse_json("1e-5", "").get<double>() == 1e-5);
}

TEST_CASE("json: depth and size are limited, and depth costs no stack") {
  CHECK(!code_of(repeat("[", 100) + repeat("]", 100)));
  CHECK(code_of(repeat("[", 101) + repeat("]", 101)) == ErrorCode::limit);
  const auto fields = refusal([] { parse_json(repeat("{\"k\":[", 50'000), "deep"); }, ErrorCode::limit);
  CHECK(fields.offset == 6 * 50);
  CHECK(!code_of(repeat("[", 1'000'000) + repeat("]", 1'000'000), {.depth = 1'000'000}));
  CHECK(!code_of("\"12345678\"", {.bytes = 10}));
  CHECK(code_of("\"123456789\"", {.bytes = 10}) == ErrorCode::limit);
}

TEST_CASE("json: the reader's tokens say where they stand") {
  const std::string text = R"( {"k" : [1, "x\n"], "skip": {"a": [[]]}, "z": null} )";
  JsonReader reader(text, "test", {}, 100);
  CHECK(reader.next() == JsonToken::begin_object);
  CHECK(reader.offset() == 101);
  CHECK(reader.next() == JsonToken::key);
  CHECK(reader.text() == "k");
  CHECK(reader.next() == JsonToken::begin_array);
  CHECK(reader.depth() == 2);
  CHECK(reader.next() == JsonToken::number);
  CHECK(reader.text() == "1");
  CHECK(reader.next() == JsonToken::string);
  CHECK(reader.text() == "x\n");
  CHECK(reader.offset() == 100 + text.find("\"x"));
  CHECK(reader.next() == JsonToken::end_array);
  CHECK(reader.next() == JsonToken::key);
  CHECK(reader.next() == JsonToken::begin_object);
  reader.skip_value();
  CHECK(reader.token() == JsonToken::end_object);
  CHECK(reader.next() == JsonToken::key);
  CHECK(reader.text() == "z");
  CHECK(reader.next() == JsonToken::null);
  CHECK(reader.next() == JsonToken::end_object);
  CHECK(reader.next() == JsonToken::end);
}

TEST_CASE("json: a float64 written reads as the same, and as a float") {
  std::mt19937_64 random(5);
  std::vector<double> values{
      0.0, -0.0, 1.0, -3.0, 1e15, 1e16, 1e17, 5e-324, 1e-5, 0.1, 1.7976931348623157e308};
  for (int i = 0; i < 10'000; ++i) {
    const double value = std::bit_cast<double>(random());
    if (std::isfinite(value)) values.push_back(value);
  }
  for (const double value : values) {
    CAPTURE(value);
    const nlohmann::json read = parse_json(json_number(value), "written");
    CHECK(read.is_number_float());
    CHECK(std::bit_cast<std::uint64_t>(read.get<double>()) == std::bit_cast<std::uint64_t>(value));
  }
  CHECK(json_number(10000) == "10000.0");
  CHECK(json_number(1e-5) == "1e-05");
  CHECK(json_number(std::numeric_limits<double>::infinity()) == "null");
  CHECK(json_number(std::numeric_limits<double>::quiet_NaN()) == "null");
}
