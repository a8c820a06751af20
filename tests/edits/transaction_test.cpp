#include <scalevec/edits/transaction.h>

#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <doctest/doctest.h>

#include <scalevec/core/torch_dtype.h>
#include <scalevec/edits/edit_file.h>

#include "support/errors.h"
#include "support/vectors.h"

using namespace scalevec;
using testing::error_of;
using testing::random_operation;
using testing::random_vectors;
using testing::Vectors;

namespace {

at::Tensor tensor_of(const StoredVector& vector) {
  const at::Tensor tensor =
      at::empty({vector.width()}, at::TensorOptions().dtype(*torch_dtype(vector.dtype)));
  std::memcpy(tensor.mutable_data_ptr(), vector.bytes.data(), vector.bytes.size());
  return tensor;
}

ScaleMap map_of(const Vectors& vectors) {
  std::vector<ScaleVector> out;
  for (std::size_t i = 0; i < vectors.sites.size(); ++i)
    out.emplace_back(vectors.sites[i], tensor_of(vectors.stored[i]));
  return ScaleMap(std::move(out));
}

std::vector<std::string> bytes_of(const ScaleMap& map) {
  std::vector<std::string> out;
  for (const ScaleVector& vector : map) {
    const std::vector<std::byte> bytes = vector.bytes();
    out.emplace_back(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  return out;
}

// Somebody who has the tensor and writes it.
void poke(const ScaleMap& map, std::string_view address) {
  static_cast<std::byte*>(map.at(address).stored().mutable_data_ptr())[0] ^= std::byte{1};
}

struct Model {
  std::mt19937_64 random;
  Vectors vectors;
  ScaleMap map;
  Journal journal;
  explicit Model(std::uint64_t seed, bool strange = false)
      : random(seed),
        vectors(random_vectors(random, 2, 6, strange)),
        map(map_of(vectors)),
        journal(map, {"llama", "model"}) {}
};

}  // namespace

TEST_CASE("Transaction: reverts bit for bit at the end of its scope, and after an exception") {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    CAPTURE(seed);
    Model model(seed, true);
    const auto before = bytes_of(model.map);
    try {
      Transaction edit(model.journal);
      for (int i = 0; i < 5; ++i) {
        try {
          edit.run(
              random_operation(model.random, model.vectors.sites, {.no_effect = true, .non_finite = true}));
        } catch (const Error& error) {
          CHECK(error.code() == ErrorCode::value);
        }
      }
      if (seed % 2 == 0) throw std::runtime_error("the user's");
    } catch (const std::runtime_error&) {
    }
    CHECK(bytes_of(model.map) == before);
    CHECK_FALSE(model.journal.edited());
    model.journal.check();
  }
}

TEST_CASE("Transaction: the model holds the edit while it is open, and after commit") {
  Model model(1);
  const double before = model.map.at("final_norm").effective()[2].item<double>();
  {
    Transaction edit(model.journal);
    const OperationReport report = edit.rescale("final_norm@2", 2.0);
    CHECK(report.total().changed == 1);
    CHECK(model.map.at("final_norm").effective()[2].item<double>() == before * 2);
    edit.commit();
    CHECK_FALSE(edit.is_open());
    CHECK(error_of([&] { edit.rescale("final_norm", 2.0); }).code == ErrorCode::state);
    CHECK(error_of([&] { edit.edit(); }).code == ErrorCode::state);
  }
  CHECK(model.map.at("final_norm").effective()[2].item<double>() == before * 2);
  CHECK(model.journal.edited());
  model.journal.reset();
  CHECK(model.map.at("final_norm").effective()[2].item<double>() == before);
  CHECK_FALSE(model.journal.edited());
}

TEST_CASE("Transaction: a tensor's version counts every write, so that autograd notices") {
  Model model(2);
  const at::Tensor stored = model.map.at("final_norm").stored();
  const auto version = stored._version();
  {
    Transaction edit(model.journal);
    edit.set("final_norm@0", 9.0);
    CHECK(stored._version() > version);
  }
  CHECK(stored._version() > version + 1);
  CHECK(stored.const_data_ptr() == model.map.at("final_norm").stored().const_data_ptr());
}

TEST_CASE("Transaction: nested ones go back to what they found; an outer end is an inner's too") {
  Model model(3);
  const auto base = bytes_of(model.map);
  {
    Transaction outer(model.journal);
    outer.set("final_norm@0", 3.0);
    const auto found = bytes_of(model.map);
    {
      Transaction inner(model.journal);
      inner.set("final_norm@0,1", 4.0);
      inner.ablate("layers.0.attn.input_norm");
      CHECK(error_of([&] { outer.rescale("**", 2.0); }).code == ErrorCode::state);
      CHECK(error_of([&] { outer.commit(); }).code == ErrorCode::state);
    }
    CHECK(bytes_of(model.map) == found);
    Transaction kept(model.journal);
    kept.set("final_norm@1", 5.0);
    kept.commit();
    CHECK(bytes_of(model.map) != found);
    Transaction left_open(model.journal);
    left_open.set("final_norm@2", 6.0);
    outer.roll_back();
    CHECK(bytes_of(model.map) == base);
    CHECK_FALSE(left_open.is_open());
    CHECK(error_of([&] { left_open.set("final_norm", 1.0); }).code == ErrorCode::state);
  }
  CHECK(bytes_of(model.map) == base);
}

TEST_CASE("Transaction: its edit begins at the file's own base, also nested and after committed edits") {
  Model model(4);
  {
    Transaction first(model.journal);
    first.set("final_norm@0", 3.0);
    first.commit();
  }
  Transaction outer(model.journal);
  outer.rescale("final_norm", 0.5);
  Transaction inner(model.journal);
  inner.set("layers.1.mlp.input_norm@3", 2.0);
  const Edit edit = inner.edit("note");
  CHECK(edit.note == "note");
  CHECK(edit.source.family == "llama");
  REQUIRE(edit.vectors.size() == 2);
  REQUIRE(edit.operations.size() == 3);
  for (const EditedVector& vector : edit.vectors) {
    const std::size_t index = model.map.index_of(vector.address);
    CHECK(vector.base == model.map.base_digest(index));
    CHECK(vector.after == model.map[index].digest());
  }
  // Whoever has the file that the model came from can apply it.
  Journal other(map_of(model.vectors), {"llama", "model"});
  Transaction apply(other);
  apply.apply(parse_edit(edit_text(edit), "test"));
  CHECK(bytes_of(other.map()) == bytes_of(model.map));
  CHECK(edit_text(apply.edit("note")) == edit_text(edit));
  CHECK(error_of([&] { apply.apply(edit); }).code == ErrorCode::state);
  apply.undo(edit);
  CHECK(bytes_of(other.map()) == bytes_of(map_of(model.vectors)));
  CHECK(error_of([&] { apply.undo(edit); }).code == ErrorCode::state);
  CHECK(apply.edit().vectors.empty());
}

TEST_CASE("Transaction: each call is all or nothing") {
  Model model(5);
  Transaction edit(model.journal);
  edit.set("final_norm@1", 2.0);
  const auto before = bytes_of(model.map);
  CHECK(error_of([&] { edit.rescale("layers.9.*", 2.0); }).code == ErrorCode::addr);
  CHECK(error_of([&] { edit.set("**", 1e308); }).code == ErrorCode::value);  // fits only the F64 among them
  CHECK(error_of([&] { edit.set("final_norm", std::vector{1.0, 2.0}); }).code == ErrorCode::shape);
  CHECK(error_of([&] { edit.rescale("final_norm", 1.0); }).code == ErrorCode::no_effect);
  CHECK(error_of([&] { edit.ablate("final_norm", "two"); }).code == ErrorCode::value);
  CHECK(bytes_of(model.map) == before);
  CHECK(edit.edit().operations.size() == 1);
}

TEST_CASE("Journal: a vector that somebody else wrote is found, by address") {
  Model model(6);
  const auto base = bytes_of(model.map);
  {
    Transaction edit(model.journal);
    edit.rescale("final_norm", 2.0);
    poke(model.map, "layers.1.attn.input_norm");
    const auto error = error_of([&] { edit.rescale("layers.1.*.input_norm", 2.0); });
    CHECK(error.code == ErrorCode::state);
    CHECK(error.fields.tensor == "layers.1.attn.input_norm");
    edit.rescale("layers.0.*.input_norm", 2.0);  // others are not concerned
    CHECK(error_of([&] { edit.edit(); }).fields.tensor == "layers.1.attn.input_norm");
    CHECK(error_of([&] { model.journal.check(); }).code == ErrorCode::state);
    poke(model.map, "layers.1.attn.input_norm");
    edit.edit();
    poke(model.map, "final_norm");
    CHECK(error_of([&] { edit.commit(); }).fields.tensor == "final_norm");
  }
  CHECK(bytes_of(model.map) == base);  // also the vector that was written to twice
}

TEST_CASE("Transaction: vectors that share storage are edited together, and only where that is meant") {
  Vectors vectors;
  const StoredVector vector{DType::f32, 0.0, std::vector<std::byte>(16)};
  vectors.add("layers.0.attn.input_norm", vector);
  vectors.add("layers.1.attn.input_norm", vector);
  vectors.add("final_norm", vector);
  const at::Tensor shared = tensor_of(vector), own = tensor_of(vector);
  const ScaleMap map({ScaleVector(vectors.sites[0], shared), ScaleVector(vectors.sites[1], shared),
                      ScaleVector(vectors.sites[2], own)});
  Journal journal(map);
  Transaction edit(journal);
  const auto error = error_of([&] { edit.set("layers.0.attn.input_norm@1", 2.0); });
  CHECK(error.code == ErrorCode::addr);
  CHECK(error.message.find("shared with 'layers.1.attn.input_norm'") != std::string::npos);
  edit.set("final_norm", 3.0);

  const Allow tied{.tied = true};
  edit.set("layers.0.attn.input_norm@1", 2.0, tied);
  CHECK(edit.rescale("layers.*.attn.input_norm", 2.0, tied).vectors.size() == 2);
  edit.set("layers.1.attn.input_norm@2,3", std::vector{5.0, 6.0}, tied);
  CHECK(map[0].effective()[1].item<double>() == 4.0);  // doubled once
  CHECK(map[0].effective()[3].item<double>() == 6.0);
  const Edit made = edit.edit();
  REQUIRE(made.vectors.size() == 3);
  CHECK(made.vectors[1].after == made.vectors[2].after);
  // In a file nothing is shared: there, too, both must change.
  Workspace file = vectors.workspace();
  file.replay(parse_edit(edit_text(made), "test"));
  CHECK(file.digest(0) == map[0].digest());
  CHECK(file.digest(1) == map[1].digest());
  edit.roll_back();
  Transaction again(journal);
  again.apply(made);
  CHECK(map[1].digest() == made.vectors[2].after);
}

TEST_CASE("Transaction: vectors that overlap in part cannot be edited") {
  Vectors vectors;
  const StoredVector vector{DType::f32, 0.0, std::vector<std::byte>(16)};
  vectors.add("layers.0.attn.input_norm", vector);
  vectors.add("layers.1.attn.input_norm", vector);
  const at::Tensor storage = tensor_of({DType::f32, 0.0, std::vector<std::byte>(24)});
  const ScaleMap map({ScaleVector(vectors.sites[0], storage.slice(0, 0, 4)),
                      ScaleVector(vectors.sites[1], storage.slice(0, 2, 6))});
  Journal journal(map);
  Transaction edit(journal);
  CHECK(error_of([&] { edit.set("layers.0.attn.input_norm", 1.0, {.tied = true}); }).code == ErrorCode::addr);
}

TEST_CASE("Transaction: 10,000 single edits leave the model as it was") {
  Model model(7);
  const auto base = bytes_of(model.map);
  for (int i = 0; i < 10'000; ++i) {
    Transaction edit(model.journal);
    edit.ablate("**@" + std::to_string(i % 6));
  }
  CHECK(bytes_of(model.map) == base);
  CHECK(model.journal.edit().operations.empty());
}
