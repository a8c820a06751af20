#include <scalevec/edits/verb.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include <doctest/doctest.h>

#include <scalevec/core/error.h>
#include <scalevec/edits/edit.h>

#include "support/errors.h"
#include "support/tiny_model.h"

using namespace scalevec;
using testing::error_of;

namespace {

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();
constexpr double infinity = std::numeric_limits<double>::infinity();

StoredVector stored(DType dtype, const std::vector<double>& values, double offset = 0.0) {
  const std::size_t size = scale_dtype_bytes(dtype);
  StoredVector vector{dtype, offset, std::vector<std::byte>(values.size() * size)};
  for (std::size_t i = 0; i < values.size(); ++i)
    encode(dtype, values[i], std::span(vector.bytes).subspan(i * size, size));
  return vector;
}

VerbReport run(const Operation& operation, StoredVector& vector, const std::vector<std::int64_t>& channels) {
  return run_verb(find_verb(operation.verb), operation.arguments, vector, channels, std::nullopt,
                  "final_norm", operation.allow);
}

std::vector<std::int64_t> all(const StoredVector& vector) {
  std::vector<std::int64_t> channels;
  for (std::int64_t i = 0; i < vector.width(); ++i) channels.push_back(i);
  return channels;
}

}  // namespace

TEST_CASE("verbs act on effective values: the same edit whatever is stored") {
  for (const double offset : {0.0, 1.0}) {
    CAPTURE(offset);
    for (const auto& [operation, expected] : std::vector<std::pair<Operation, std::vector<double>>>{
             {rescale("", 0.5), {0.5, 1.0, -1.0}},
             {set("", 3.0), {3.0, 3.0, 3.0}},
             {set("", std::vector{4.0, 5.0, 6.0}), {4.0, 5.0, 6.0}},
             {ablate("", "zero"), {0.0, 0.0, 0.0}},
             {ablate("", "one"), {1.0, 1.0, 1.0}},
             {ablate("", "mean"), {1.0 / 3, 1.0 / 3, 1.0 / 3}}}) {
      CAPTURE(operation.verb);
      StoredVector vector = stored(DType::f64, {1.0 - offset, 2.0 - offset, -2.0 - offset}, offset);
      run(operation, vector, all(vector));
      const std::vector<double> after = vector.effective();
      // 1/3 - offset is rounded once and the sum once more, each by at most half an ulp of one.
      for (std::size_t i = 0; i < after.size(); ++i) CHECK(std::abs(after[i] - expected[i]) <= 0x1p-52);
    }
  }
}

TEST_CASE("ablate to mean takes the whole vector's mean, also where one channel is selected") {
  StoredVector vector = stored(DType::f32, {1.0, 2.0, 3.0, 10.0});
  run(ablate("", "mean"), vector, {0});
  CHECK(vector.effective() == std::vector{4.0, 2.0, 3.0, 10.0});
}

TEST_CASE("results are rounded once, to the nearest value, as the hardware rounds") {
  std::mt19937_64 random(1);
  for (int i = 0; i < 2000; ++i) {
    const auto value = static_cast<float>(random() % 4096) / 512.0F;
    const double factor = 0.5 + static_cast<double>(random() % 1000000) / 1e6;
    const double offset = static_cast<double>(random() % 2);
    StoredVector vector = stored(DType::f32, {value}, offset);
    run(rescale("", factor), vector, {0});
    const double effective = static_cast<double>(value) + offset;
    float bits = 0.0F;
    std::memcpy(&bits, vector.bytes.data(), 4);
    CHECK(bits == (factor == 1.0 ? value : static_cast<float>(effective * factor - offset)));
  }
}

TEST_CASE("channels that are not selected, and those that have the value already, keep their bits") {
  std::mt19937_64 random(2);
  for (const auto& [name, dtype] :
       {std::pair("F64", DType::f64), {"F32", DType::f32}, {"F16", DType::f16}, {"BF16", DType::bf16}}) {
    for (const double offset : {0.0, 1.0}) {
      const std::string bytes = testing::random_values(random, name, 64, true, true);
      StoredVector vector{dtype, offset, std::vector<std::byte>(bytes.size())};
      std::memcpy(vector.bytes.data(), bytes.data(), bytes.size());
      const StoredVector before = vector;
      Allow allow{.non_finite = true};
      CHECK(run(rescale("", 1.0, allow), vector, all(vector)).changed == 0);
      CHECK(vector.bytes == before.bytes);
      run(set("", 123.0), vector, {3, 40});
      const std::size_t size = scale_dtype_bytes(dtype);
      for (std::size_t i = 0; i < 64; ++i) {
        if (i == 3 || i == 40) continue;
        CHECK(std::memcmp(vector.bytes.data() + i * size, before.bytes.data() + i * size, size) == 0);
      }
      // Far below the ulp of the offset, so that 1 + w - 1 would not be w.
      StoredVector tiny = stored(dtype, {0x1p-60, 0x1p-120}, offset);
      const StoredVector tiny_before = tiny;
      run(rescale("", 1.0), tiny, {0, 1});
      CHECK(tiny.bytes == tiny_before.bytes);
    }
  }
}

TEST_CASE("changes below half an ulp are counted, and the largest rounding is told") {
  StoredVector vector = stored(DType::bf16, {1.0, 2.0, 0.0});
  // bfloat16 has 8 bits: the ulp above 1 is 2^-7, and half of it is a tie that goes to the even 1.
  const VerbReport lost = run(rescale("", 1.0 + 0x1p-8), vector, {0, 1, 2});
  CHECK(lost.selected == 3);
  CHECK(lost.changed == 0);
  CHECK(lost.lost == 2);  // zero times anything is asked to stay
  CHECK(lost.largest_rounding == 0x1p-7);
  CHECK(vector.effective() == std::vector{1.0, 2.0, 0.0});
  const VerbReport kept = run(rescale("", 1.0 + 0x1.8p-8), vector, {0, 1});
  CHECK(kept.changed == 2);
  CHECK(kept.lost == 0);
  CHECK(kept.largest_rounding == 0x1p-8);
  CHECK(vector.effective() == std::vector{1.0 + 0x1p-7, 2.0 + 0x1p-6, 0.0});
}

TEST_CASE("values that are not finite are refused by address and channel, unless allowed") {
  for (const double bad : {not_a_number, infinity, -infinity}) {
    StoredVector vector = stored(DType::f32, {1.0, 2.0});
    const StoredVector before = vector;
    const auto error = error_of([&] { run(set("", std::vector{3.0, bad}), vector, {0, 1}); });
    CHECK(error.code == ErrorCode::value);
    CHECK(error.fields.tensor == "final_norm");
    CHECK(error.fields.index == 1);
    vector = before;
    CHECK(run(set("", bad, {.non_finite = true}), vector, {1}).changed == 1);
    CHECK(std::isfinite(vector.effective()[1]) == false);
    CHECK(vector.effective()[0] == 1.0);
  }
  StoredVector base = stored(DType::f32, {not_a_number, 1.0});
  CHECK(error_of([&] { run(rescale("", 2.0), base, {0, 1}); }).fields.index == 0);
  CHECK(error_of([&] { run(ablate("", "mean"), base, {1}); }).code == ErrorCode::value);
  CHECK(run(rescale("", 2.0), base, {1}).changed == 1);
}

TEST_CASE("what overflows the stored dtype is refused, never infinity") {
  for (const auto& [dtype, value, fits] :
       std::vector<std::tuple<DType, double, double>>{{DType::f16, 70000.0, 65504.0},
                                                      {DType::bf16, 3.4e39, 0x1.FEp127},
                                                      {DType::f32, 3.5e38, 0x1.FFFFFEp127}}) {
    StoredVector vector = stored(dtype, {1.0, 1.0});
    const StoredVector before = vector;
    for (const Allow allow : {Allow{}, Allow{.non_finite = true}}) {
      const auto error = error_of([&] { run(set("", value, allow), vector, {1}); });
      CHECK(error.code == ErrorCode::value);
      CHECK(error.fields.index == 1);
      CHECK(error.fields.expected.find(dtype_name(dtype)) != std::string::npos);
    }
    CHECK(vector.bytes == before.bytes);
    CHECK(run(set("", fits), vector, {1}).changed == 1);
    CHECK(vector.effective()[1] == fits);
  }
}

TEST_CASE("arguments must be those of the verb") {
  StoredVector vector = stored(DType::f32, {1.0, 2.0});
  const auto code = [&](const std::string& verb, const Arguments& arguments) {
    return error_of([&] { run({.verb = verb, .arguments = arguments}, vector, {0, 1}); }).code;
  };
  CHECK(code("halve", {}) == ErrorCode::schema);
  CHECK(code("rescale", {}) == ErrorCode::schema);
  CHECK(code("rescale", {{"factor", std::string("2")}}) == ErrorCode::schema);
  CHECK(code("rescale", {{"factor", 2.0}, {"value", 1.0}}) == ErrorCode::schema);
  CHECK(code("set", {}) == ErrorCode::schema);
  CHECK(code("set", {{"value", 1.0}, {"values", std::vector{1.0, 2.0}}}) == ErrorCode::schema);
  CHECK(code("set", {{"values", std::vector{1.0}}}) == ErrorCode::shape);
  CHECK(code("set", {{"values", std::vector<std::byte>(7)}}) == ErrorCode::shape);
  CHECK(code("ablate", {{"to", std::string("two")}}) == ErrorCode::value);
  CHECK(vector.effective() == std::vector{1.0, 2.0});
}
