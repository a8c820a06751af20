#include <scalevec/edits/edit.h>

#include <random>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <scalevec/edits/workspace.h>

#include "support/errors.h"
#include "support/vectors.h"

using namespace scalevec;
using testing::error_of;
using testing::random_operation;
using testing::random_vectors;
using testing::Vectors;

namespace {

constexpr Allow any{.no_effect = true, .non_finite = true};

std::vector<std::vector<std::byte>> all_bytes(const Vectors& vectors, Workspace& workspace) {
  std::vector<std::vector<std::byte>> out;
  for (std::size_t i = 0; i < vectors.sites.size(); ++i) out.push_back(workspace.entry(i).now.bytes);
  return out;
}

// Runs the operation, unless it overflows a narrow dtype.
void try_run(Workspace& workspace, const Operation& operation) {
  try {
    workspace.run(operation);
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::value);
  }
}

}  // namespace

TEST_CASE("address_before: numbers by size, the rest as text, and a strict order") {
  const std::vector<std::string> sorted = {"embed_norm",
                                           "encoder.layers.2.attn.input_norm",
                                           "final_norm",
                                           "layers.0.attn.input_norm",
                                           "layers.0.attn.input_norm[q]",
                                           "layers.2.attn.input_norm",
                                           "layers.2.mlp.input_norm",
                                           "layers.10.attn.input_norm"};
  for (std::size_t i = 0; i < sorted.size(); ++i) {
    for (std::size_t j = 0; j < sorted.size(); ++j) CHECK(address_before(sorted[i], sorted[j]) == (i < j));
  }
}

TEST_CASE("an edit knows what it leaves without the model, and takes itself back: 10,000 random edits") {
  std::mt19937_64 random(3);
  for (int round = 0; round < 1000; ++round) {
    CAPTURE(round);
    const Vectors vectors = random_vectors(random, 2, 6, true);
    Workspace base = vectors.workspace();
    const auto before = all_bytes(vectors, base);
    Workspace workspace = base;
    for (int i = 0; i < 10; ++i) try_run(workspace, random_operation(random, vectors.sites, any));
    const Edit edit = workspace.edit({"llama", "model"});
    for (const EditedVector& vector : edit.vectors) {
      for (std::size_t i = 0; i < vectors.sites.size(); ++i) {
        if (vectors.sites[i].address.str() != vector.address) continue;
        CHECK(new_bytes(edit, vector) == workspace.entry(i).now.at(vector.channels));
        CHECK(vector.old == vectors.stored[i].at(vector.channels));
      }
    }
    Workspace again = base;
    again.replay(edit);
    CHECK(all_bytes(vectors, again) == all_bytes(vectors, workspace));
    again.replay(invert(edit));
    CHECK(all_bytes(vectors, again) == before);
    CHECK(again.edit({"llama", "model"}).vectors.empty());
  }
}

TEST_CASE("edits compose as they follow each other: chains of 20") {
  std::mt19937_64 random(4);
  for (int round = 0; round < 1000; ++round) {
    CAPTURE(round);
    const Vectors vectors = random_vectors(random, 2, 6, true);
    Workspace base = vectors.workspace();
    Workspace whole = base;
    Edit composed;
    std::vector<Edit> links;
    for (int i = 0; i < 20; ++i) {
      // Made on a file that holds what was done so far.
      Vectors current = vectors;
      for (std::size_t v = 0; v < current.stored.size(); ++v) current.stored[v] = whole.entry(v).now;
      Workspace link = current.workspace();
      try_run(link, random_operation(random, vectors.sites, any));
      links.push_back(link.edit({"llama", "model"}));
      whole.replay(links.back());
      composed = i == 0 ? links[0] : compose(composed, links.back());
    }
    const Edit direct = whole.edit({"llama", "model"});
    REQUIRE(composed.vectors.size() == direct.vectors.size());
    for (std::size_t i = 0; i < direct.vectors.size(); ++i) {
      CHECK(composed.vectors[i].base == direct.vectors[i].base);
      CHECK(composed.vectors[i].after == direct.vectors[i].after);
      CHECK(composed.vectors[i].channels == direct.vectors[i].channels);
      CHECK(composed.vectors[i].old == direct.vectors[i].old);
      CHECK(new_bytes(composed, composed.vectors[i]) == new_bytes(direct, direct.vectors[i]));
    }
    Workspace replayed = base;
    replayed.replay(composed);
    CHECK(all_bytes(vectors, replayed) == all_bytes(vectors, whole));
    for (std::size_t i = links.size(); i-- > 0;) whole.replay(invert(links[i]));
    CHECK(all_bytes(vectors, whole) == all_bytes(vectors, base));
  }
}

TEST_CASE("compose refuses edits that do not follow each other") {
  std::mt19937_64 random(5);
  const Vectors vectors = random_vectors(random, 1, 4, false);
  Workspace first = vectors.workspace(), second = vectors.workspace();
  first.run(rescale("final_norm", 2.0));
  second.run(set("final_norm", 0.5));
  const Edit a = first.edit({"llama", "model"}), b = second.edit({"llama", "model"});
  const auto error = error_of([&] { compose(a, b); });
  CHECK(error.code == ErrorCode::bundle);
  CHECK(error.fields.tensor == "final_norm");
  CHECK(error.fields.expected == a.vectors[0].after);
  CHECK(error.fields.found == b.vectors[0].base);
  Edit other = b;
  other.source.family = "gemma3";
  CHECK(error_of([&] { compose(a, other); }).fields.key == "family");
}

TEST_CASE("replay: another base, a second time, and on top of something else are told apart") {
  std::mt19937_64 random(6);
  Vectors vectors = random_vectors(random, 1, 4, false);
  Workspace workspace = vectors.workspace();
  workspace.run(rescale("final_norm@1", 2.0));
  const Edit edit = workspace.edit({"llama", "model"});

  CHECK(error_of([&] { workspace.replay(edit); }).code == ErrorCode::state);
  Workspace other = vectors.workspace();
  other.run(set("final_norm@2", 9.0));
  CHECK(error_of([&] { other.replay(edit); }).code == ErrorCode::state);

  Vectors changed = vectors;
  changed.stored[2].bytes[0] ^= std::byte{1};  // one bit, in a channel that the edit does not touch
  Workspace wrong = changed.workspace();
  const auto error = error_of([&] { wrong.replay(edit); });
  CHECK(error.code == ErrorCode::bundle);
  CHECK(error.fields.tensor == "final_norm");
  CHECK(error.fields.expected == edit.vectors[0].base);
  CHECK(error.fields.found == wrong.digest(2));

  Vectors less = vectors;
  less.sites.pop_back();
  Workspace missing = less.workspace();
  CHECK(error_of([&] { missing.replay(edit); }).code == ErrorCode::bundle);
}

TEST_CASE("replay: operations and vectors that contradict each other are refused, and nothing is changed") {
  std::mt19937_64 random(7);
  const Vectors vectors = random_vectors(random, 2, 4, false);
  Workspace workspace = vectors.workspace();
  workspace.run(rescale("layers.*.attn.input_norm", 2.0));
  workspace.run(set("final_norm@0,2", std::vector{5.0, 6.0}));
  workspace.run(ablate("final_norm@1", "mean"));
  const Edit good = workspace.edit({"llama", "model"});
  REQUIRE(good.vectors.size() == 3);

  std::vector<Edit> bad(8, good);
  bad[0].operations.pop_back();
  std::swap(bad[1].operations[1], bad[1].operations[2]);  // the mean is taken before the values are set
  bad[2].operations[0].arguments["factor"] = 2.5;
  bad[3].operations[0].selector = "layers.*.mlp.input_norm";
  bad[4].operations[0].selector = "layers.7.attn.input_norm";
  bad[5].vectors.pop_back();
  bad[6].vectors[0].after = good.vectors[1].after;
  bad[7].operations[2].gathered["final_norm"] = 1.25;
  for (std::size_t i = 0; i < bad.size(); ++i) {
    CAPTURE(i);
    Workspace fresh = vectors.workspace();
    CHECK(error_of([&] { fresh.replay(bad[i]); }).code == ErrorCode::bundle);
    CHECK(fresh.operations().empty());
    CHECK(fresh.edit({}).vectors.empty());
    fresh.replay(good);
  }
}

TEST_CASE("an operation that changes nothing is refused, unless asked for; a failed one changes nothing") {
  std::mt19937_64 random(8);
  Vectors vectors;
  vectors.add("final_norm",
              {DType::bf16, 0.0, {std::byte{0x80}, std::byte{0x3F}, std::byte{0}, std::byte{0x40}}});  // 1, 2
  Workspace workspace = vectors.workspace();
  for (const Operation& nothing : {rescale("final_norm", 1.0), rescale("**", 1.0 + 0x1p-10),
                                   set("final_norm@0", 1.0), set("final_norm", std::vector{1.0, 2.0})}) {
    CHECK(error_of([&] { workspace.run(nothing); }).code == ErrorCode::no_effect);
    CHECK(workspace.operations().empty());
    Workspace copy = workspace;
    Operation allowed = nothing;
    allowed.allow.no_effect = true;
    CHECK(copy.run(allowed).total().changed == 0);
    CHECK(copy.operations().size() == 1);
    CHECK(copy.edit({}).vectors.empty());
  }
  CHECK(error_of([&] {
          workspace.run(rescale("final_norm", 1.0 + 0x1p-10));
        }).message.find("2 changes are below half") != std::string::npos);
  CHECK(error_of([&] { workspace.run(rescale("layers.0.attn.input_norm", 2.0)); }).code == ErrorCode::addr);
  CHECK(error_of([&] { workspace.run(rescale("final_norm@2", 2.0)); }).code == ErrorCode::addr);
  CHECK(error_of([&] {
          workspace.run(set("final_norm", std::vector{1.5, 1e300}));
        }).code == ErrorCode::value);
  CHECK(workspace.entry(0).now.bytes == vectors.stored[0].bytes);
}

TEST_CASE("a vector that is a function of several components has no stored bytes to edit") {
  Vectors vectors;
  vectors.add("final_norm", {DType::f32, 0.0, std::vector<std::byte>(8)});
  vectors.sites[0].parametrisation = Parametrisation::magnitude_direction;
  Workspace workspace = vectors.workspace();
  CHECK(error_of([&] { workspace.run(set("final_norm", 1.0)); }).code == ErrorCode::config);
}
