#include <scalevec/core/address.h>

#include <random>

#include "readers/errors.h"

using scalevec::Address;

TEST_CASE("Address: parsing and printing lose nothing") {
  for (const char* text :
       {"layers.7.attn.input_norm", "layers.7.attn.input_norm[q]", "final_norm", "embed_norm",
        "layers.0.norm", "encoder.layers.3.mlp.output_norm", "vision.layers.31.attn.q_norm",
        "layers.7.attn.q.output_scale", "lm_head.output_norm", "layers.9223372036854775807.norm",
        "vision.final_norm", "layers.7.mixer.gate_norm"}) {
    CAPTURE(text);
    const Address address = Address::parse(text);
    CHECK(address.str() == text);
    std::string joined;
    for (const std::string& part : address.parts()) joined += (joined.empty() ? "" : ".") + part;
    if (address.branch()) joined += "[" + *address.branch() + "]";
    CHECK(joined == text);
    CHECK(Address::parse(address.str()) == address);
  }
}

TEST_CASE("Address: random addresses come back from their text") {
  std::mt19937 random(7);
  const std::string letters = "abcxyz019_";
  const auto word = [&] {
    std::string text;
    for (std::size_t n = 1 + random() % 6; n > 0; --n) text += letters[random() % letters.size()];
    return text;
  };
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (std::size_t n = random() % 3; n > 0; --n) text += word() + ".";
    std::optional<std::int64_t> layer;
    if (random() % 2 == 0) {
      layer = static_cast<std::int64_t>(random() % 1000);
      text += "layers." + std::to_string(*layer) + ".";
    }
    text += word();
    const std::string bare = text;
    const bool branched = random() % 2 == 0;
    const std::string branch = word();
    if (branched) text += "[" + branch + "]";
    CAPTURE(text);
    const Address address = Address::parse(text);
    CHECK(address.str() == text);
    CHECK(address.layer() == layer);
    CHECK(address.branch().has_value() == branched);
    CHECK(address.without_branch().str() == bare);
    CHECK(address.without_branch().with_branch(branch).str() == bare + "[" + branch + "]");
  }
}

TEST_CASE("Address: stack and layer") {
  CHECK(Address::parse("layers.7.attn.input_norm").stack() == "");
  CHECK(Address::parse("vision.layers.7.attn.input_norm").stack() == "vision");
  CHECK(Address::parse("a.b.layers.7.attn.input_norm").stack() == "a.b");
  CHECK(Address::parse("vision.final_norm").stack() == "vision");
  CHECK(Address::parse("lm_head.output_norm").stack() == "");
  CHECK(Address::parse("layers.12.norm").layer() == 12);
  CHECK_FALSE(Address::parse("final_norm").layer());
}

TEST_CASE("Address: what is no address is refused, with the position") {
  const struct {
    const char* text;
    std::uint64_t position;
  } rows[] = {
      {"", 0},          {".", 0},           {"a.", 2},          {".a", 0},
      {"a..b", 2},      {"A", 0},           {"a-b", 1},         {"a b", 1},
      {"a[", 1},        {"a[]", 2},         {"a[q", 1},         {"a[q]x", 4},
      {"a[Q]", 2},      {"a[q][k]", 4},     {"[q]", 0},         {"layers", 6},
      {"layers.x", 7},  {"layers.-1.n", 7}, {"layers.07.n", 7}, {"layers.9223372036854775808.n", 7},
      {"layers[q]", 6}, {"caf\xc3\xa9", 3}, {"a\n", 1},         {"a*", 1},
  };
  for (const auto& row : rows) {
    CAPTURE(row.text);
    CHECK(refusal([&] { Address::parse(row.text); }, scalevec::ErrorCode::addr).offset == row.position);
  }
  CHECK(refusal([] { Address::parse(std::string(256, 'a')); }, scalevec::ErrorCode::addr).offset == 255);
  CHECK(Address::parse(std::string(255, 'a')).str().size() == 255);
  CHECK_THROWS_AS(Address::parse("a["), std::out_of_range);
}
