#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <doctest/doctest.h>
#include <readers/errors.h>
#include <support/tensors.h>

#include <scalevec/core/scale_map.h>

using scalevec::ErrorCode;
using scalevec::ScaleMap;
using scalevec::ScaleVector;
using scalevec::Selector;
using scalevec::Site;

namespace {

Site site(const char* address, const char* native, scalevec::Role role = scalevec::Role::input) {
  Site s;
  s.address = scalevec::Address::parse(address);
  s.native = native;
  s.role = role;
  s.width = s.group = 3;
  return s;
}

std::vector<ScaleVector> three() {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  return {
      {site("layers.0.attn.input_norm", "blk.0.attn_norm.weight"), vector_of({1.0, -0.0, nan}, at::kHalf)},
      {site("layers.0.mlp.input_norm", "blk.0.ffn_norm.weight"), vector_of({1.0, 2.0, 3.0}, at::kFloat)},
      {site("final_norm", "output_norm.weight", scalevec::Role::final),
       vector_of({4.0, 5.0, 6.0}, at::kDouble)}};
}

}  // namespace

TEST_CASE("scale map: vectors by address and by native name, in the order given") {
  const ScaleMap map(three());
  REQUIRE(map.size() == 3);
  CHECK(map.index_of("layers.0.mlp.input_norm") == 1);
  CHECK(map.index_of("blk.0.ffn_norm.weight") == 1);
  CHECK(map.at("final_norm").stored().const_data_ptr() == map[2].stored().const_data_ptr());
  std::vector<std::string> addresses;
  for (const ScaleVector& vector : map) addresses.push_back(vector.address());
  CHECK(addresses ==
        std::vector<std::string>{"layers.0.attn.input_norm", "layers.0.mlp.input_norm", "final_norm"});
  CHECK(map.sites()[1].native == "blk.0.ffn_norm.weight");
}

TEST_CASE("scale map: an unknown name is refused with the nearest ones") {
  const ScaleMap map(three());
  const std::string message = address_refusal([&] { map.at("layers.0.mlp.imput_norm"); });
  CHECK(contains(message, "layers.0.mlp.input_norm"));
  CHECK(contains(address_refusal([&] { map.at("blk.0.fn_norm.weight"); }), "blk.0.ffn_norm.weight"));
  CHECK(contains(address_refusal([] { ScaleMap().at("final_norm"); }), "has none"));
  address_refusal([&] { map.at(""); });
  // Only std::out_of_range reaches Python as IndexError.
  CHECK_THROWS_AS(map.at("nothing"), std::out_of_range);
}

TEST_CASE("scale map: no two vectors share a name") {
  auto vectors = three();
  vectors.push_back(vectors[0]);
  CHECK(refusal([&] { ScaleMap{vectors}; }, ErrorCode::dup).tensor == "layers.0.attn.input_norm");
  vectors.back() = {site("embed_norm", "output_norm.weight"), vector_of({1.0, 1.0, 1.0})};
  CHECK(refusal([&] { ScaleMap{vectors}; }, ErrorCode::dup).tensor == "output_norm.weight");
  vectors.back() = {site("embed_norm", ""), vector_of({1.0, 1.0, 1.0})};
  vectors.emplace_back(site("layers.1.mlp.input_norm", ""), vector_of({1.0, 1.0, 1.0}));
  CHECK(ScaleMap(vectors).size() == 5);
}

TEST_CASE("scale map: the base is what was there when the map was made, bit for bit") {
  const ScaleMap map(three());
  for (std::size_t i = 0; i < map.size(); ++i) {
    CAPTURE(i);
    const auto bytes = map[i].bytes();
    const auto digest = map[i].digest();
    CHECK(map.base_bytes(i) == bytes);
    CHECK(map.base_digest(i) == digest);
    map[i].stored().fill_(9.0);
    CHECK(map[i].digest() != digest);
    CHECK(map.base_digest(i) == digest);
    const scalevec::ScaleVector base = map.base(i);
    CHECK(base.bytes() == bytes);
    CHECK(base.digest() == digest);
    base.stored().fill_(1.0);  // storage of its own
    map.restore(i);
    CHECK(map[i].bytes() == bytes);
  }
}

TEST_CASE("scale map: selections index the map") {
  const ScaleMap map(three());
  const auto chosen = map.select(Selector::parse("role:final@1:3"));
  REQUIRE(chosen.size() == 1);
  CHECK(chosen[0].site == 2);
  CHECK_FALSE(chosen[0].whole);
  CHECK(chosen[0].channels == std::vector<std::int64_t>{1, 2});
  address_refusal([&] { map.select(Selector::parse("layers.0.attn.q_norm")); });
}
