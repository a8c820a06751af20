#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <hooks/two_norms.h>
#include <readers/errors.h>

#include <scalevec/core/dtype.h>
#include <scalevec/hooks/capture.h>
#include <scalevec/hooks/override.h>

using scalevec::ErrorCode;
using scalevec::Override;

namespace {

const char* const first = "layers.0.attn.input_norm";

// Stores `stored` in the vector's own dtype, as an edit would.
void store(const scalevec::ScaleVector& vector, const at::Tensor& stored) {
  std::vector<std::byte> bytes(vector.bytes().size());
  const std::size_t each = scalevec::scale_dtype_bytes(vector.dtype());
  for (std::int64_t i = 0; i < vector.width(); ++i) {
    scalevec::encode(vector.dtype(), stored.select(0, i).item<double>(),
                     std::span(bytes).subspan(static_cast<std::size_t>(i) * each, each));
  }
  vector.overwrite(bytes);
}

}  // namespace

TEST_CASE("override: equals storing the same values, and leaves the stored ones alone") {
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat}) {
    TwoNorms model(dtype);
    const at::Tensor x = normal({2, 3, 5}, 10, dtype), before = model(x);
    const at::Tensor stored = normal({5}, 20, dtype, 0.0, 0.25);
    const auto digest = model.scales().at("final_norm").digest();
    at::Tensor lent;
    {
      const Override override(model, {{"output_norm.weight", stored.to(at::kDouble).add(1.0)}});
      CHECK(override.addresses() == std::vector<std::string>{"final_norm"});
      lent = model(x);
      CHECK(model.scales().at("final_norm").digest() == digest);
    }
    CHECK(model(x).equal(before));
    CHECK_FALSE(lent.equal(before));
    store(model.scales().at("final_norm"), stored);
    CHECK(model(x).equal(lent));
  }
}

TEST_CASE("override: the innermost counts, per site") {
  TwoNorms model;
  const at::Tensor x = normal({1, 3, 5}, 10), a = normal({5}, 20), b = normal({5}, 21), c = normal({5}, 22);
  const auto alone = [&](const Override::Vectors& vectors) {
    const Override override(model, vectors);
    return model(x);
  };
  const at::Tensor with_b = alone({{first, b}, {"final_norm", c}}),
                   with_a = alone({{first, a}, {"final_norm", c}});
  auto outer = std::make_unique<Override>(model, Override::Vectors{{first, a}, {"final_norm", c}});
  CHECK(model(x).equal(with_a));
  Override inner(model, {{first, b}});
  CHECK(model(x).equal(with_b));
  outer.reset();  // in any order
  CHECK(model(x).equal(alone({{first, b}})));
  inner.stop();
  CHECK_FALSE(inner.active());
  CHECK(model.observers().empty());
}

TEST_CASE("override: coming and going is told to caches") {
  TwoNorms model;
  const auto start = model.observers().lending_generation();
  {
    const Override none(model, {});
    CHECK(model.observers().lending_generation() == start);
  }
  auto one = std::make_unique<Override>(model, Override::Vectors{{first, normal({5}, 20)}});
  const auto during = model.observers().lending_generation();
  CHECK(during != start);
  one.reset();
  CHECK(model.observers().lending_generation() != during);
  CHECK(model.observers().lending_generation() != start);
}

TEST_CASE("override: lent values are copied, unless they require gradients") {
  TwoNorms model;
  const at::Tensor x = normal({1, 3, 5}, 10), values = normal({5}, 20);
  const Override override(model, {{first, values}});
  const at::Tensor before = model(x);
  values.fill_(0.0);
  CHECK(model(x).equal(before));
}

TEST_CASE("override: each forward gets an alias of a vector that requires gradients, never the leaf itself") {
  TwoNorms model;
  const at::Tensor leaf = normal({5}, 20).requires_grad_();
  const Override override(model, {{first, leaf}});
  const at::Tensor lent = model.observers().lent(0);
  CHECK_FALSE(lent.is_leaf());
  CHECK(lent.const_data_ptr() == leaf.const_data_ptr());
  const at::NoGradGuard no_grad;
  CHECK_FALSE(model.observers().lent(1).defined());
}

TEST_CASE("override: every dtype of effective values; bfloat16 ones act as they are") {
  TwoNorms model(at::kFloat);
  const at::Tensor x = normal({1, 3, 5}, 10, at::kFloat), values = normal({5}, 20, at::kBFloat16);
  const auto with = [&](const at::Tensor& vector) {
    const Override override(model, {{first, vector}});
    return model(x);
  };
  const at::Tensor want = with(values.to(at::kFloat));
  for (const at::ScalarType dtype : {at::kDouble, at::kBFloat16}) CHECK(with(values.to(dtype)).equal(want));
}

TEST_CASE("override: base puts back what a file held, under edits and under other overrides") {
  TwoNorms model(at::kFloat);
  const at::Tensor x = normal({2, 3, 5}, 10, at::kFloat), before = model(x);
  {
    const Override base = Override::base(model);
    CHECK(model(x).equal(before));  // the no-op control of a measurement
    CHECK(base.addresses() == std::vector<std::string>{first, "final_norm"});
  }
  store(model.scales().at(first), normal({5}, 20));
  const Override other(model, {{"final_norm", normal({5}, 21)}});
  CHECK_FALSE(model(x).equal(before));
  const Override base = Override::base(model);
  CHECK(model(x).equal(before));
}

TEST_CASE("override: what does not fit is refused, by address, and nothing is lent") {
  TwoNorms model;
  const auto shape = [&](const char* name, const at::Tensor& vector) {
    const auto fields = refusal([&] { Override(model, {{name, vector}}); }, ErrorCode::shape);
    CHECK(contains(name, fields.tensor));
  };
  shape(first, normal({4}, 20));
  shape(first, normal({1, 5}, 20));
  shape(first, {});
  shape("layers.0.mlp.input_norm", normal({5}, 20));  // a norm without a vector
  for (const at::ScalarType dtype : {at::kInt, at::kFloat8_e4m3fn, at::kComplexDouble}) {
    refusal([&] { Override(model, {{first, normal({5}, 20, dtype)}}); }, ErrorCode::dtype);
  }
  for (const double bad :
       {std::numeric_limits<double>::quiet_NaN(), -std::numeric_limits<double>::infinity()}) {
    const at::Tensor vector = vector_of({1.0, 2.0, bad, 3.0, bad});
    const auto fields = refusal([&] { Override(model, {{first, vector}}); }, ErrorCode::value);
    CHECK(fields.index == 2);
    CHECK(Override(model, {{first, vector}}, {.allow_nonfinite = true}).active());
  }
  CHECK(contains(address_refusal([&] { Override(model, {{"final_nrm", normal({5}, 20)}}); }), "final_norm"));
  address_refusal([&] {
    Override(model, {{first, normal({5}, 20)}, {"blk.0.attn_norm.weight", normal({5}, 20)}});
  });
  CHECK(model.observers().empty());
}
