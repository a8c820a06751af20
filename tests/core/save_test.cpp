// A model that is saved and opened again is the same model.
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <doctest/doctest.h>
#include <support/errors.h>
#include <support/files.h>
#include <support/temporary_folder.h>

#include <scalevec/core/model/save.h>
#include <scalevec/core/model/transformer.h>
#include <scalevec/core/strategy.h>

#include "tiny_model.h"

#include <support/check.h>

using namespace scalevec;
using scalevec::testing::error_of;
using scalevec::testing::TemporaryFolder;

namespace {

ModelSpec small(const std::string& strategy, std::int64_t experts = 0) {
  ModelShape shape;
  shape.vocabulary = 17, shape.width = 12, shape.layers = 2, shape.head_dim = 6, shape.kv_heads = 1;
  shape.inner = 10, shape.context = 16;
  if (experts > 0) shape.experts = experts, shape.active = 2, shape.expert_inner = 5;
  return make_spec(shape, Strategy::parse(strategy));
}

tiny::Slots values_of(const ModelSpec& spec, at::ScalarType weights, at::ScalarType vectors) {
  tiny::Slots out;
  unsigned seed = 40;
  for (const auto& [name, shape] : spec.tensor_slots()) {
    const bool vector = shape.size() == 1;
    out[name] = normal(shape, ++seed).mul(0.3).add(vector ? 1.0 : 0.0).to(vector ? vectors : weights);
  }
  return out;
}

}  // namespace

TEST_CASE("save_model: the opened model has the same tensors, bit for bit, and the same logits") {
  struct Row {
    std::string strategy;
    std::int64_t experts;
    at::ScalarType weights, vectors;
  };
  for (const Row& row :
       {Row{"standard", 0, at::kFloat, at::kFloat}, Row{"removal", 0, at::kFloat, at::kFloat},
        Row{"hg+dp", 0, at::kDouble, at::kHalf}, Row{"unified", 0, at::kFloat, at::kFloat},
        Row{"hg+dnp+er", 0, at::kBFloat16, at::kDouble}, Row{"gemma", 0, at::kHalf, at::kBFloat16},
        Row{"hg+or", 4, at::kFloat, at::kFloat}, Row{"unified", 4, at::kBFloat16, at::kFloat}}) {
    CAPTURE(row.strategy);
    CAPTURE(row.experts);
    const TemporaryFolder folder;
    const ModelSpec spec = small(row.strategy, row.experts);
    const tiny::Slots slots = values_of(spec, row.weights, row.vectors);
    save_model(folder / "m", spec, slots);
    const Checkpoint checkpoint = Checkpoint::open(folder / "m");
    CHECK(checkpoint.tensors().size() == slots.size());
    const auto opened = Transformer::load(checkpoint, {});
    Transformer made(spec, slots, {});
    const at::Tensor ids = tiny::ids(2, 9, spec.vocabulary);
    CHECK(opened->logits(ids).equal(made.logits(ids)));
    CHECK(opened->scales().size() == made.scales().size());
    for (std::size_t i = 0; i < made.scales().size(); ++i) {
      const ScaleVector &a = opened->scales()[i], &b = made.scales()[i];
      CHECK((a.bytes() == b.bytes()));
      CHECK(a.dtype() == b.dtype());
      CHECK(a.digest() == b.digest());
      CHECK(a.digest() == checkpoint.digest(checkpoint.sites()[i]));
      // Composed without torch and with it: sums in another order.
      const std::vector<double> g = checkpoint.effective(checkpoint.sites()[i]);
      const at::Tensor difference = tensor(g, {b.width()}) - b.effective();
      CHECK(difference.abs().max().item<double>() <= 1e-14 * b.effective().abs().max().item<double>());
    }
  }
}

TEST_CASE("save_model: weights are rounded as asked, vectors never; views and gradients are no matter") {
  const TemporaryFolder folder;
  const ModelSpec spec = small("hg+or");
  tiny::Slots slots = values_of(spec, at::kFloat, at::kFloat);
  slots["head.weight"] = slots["head.weight"].t().contiguous().t().requires_grad_();
  save_model(folder / "m", spec, slots, {.weights = at::kBFloat16, .metadata = {{"step", "3"}}});
  const Checkpoint checkpoint = Checkpoint::open(folder / "m");
  for (const auto& [name, given] : slots) {
    CAPTURE(name);
    const bool weight = given.dim() == 2;
    const TensorInfo& info = checkpoint.slot(name);
    CHECK(info.dtype == (weight ? DType::bf16 : DType::f32));
    const at::Tensor expected =
        given.detach().to(weight ? at::kBFloat16 : at::kFloat).to(at::kDouble).contiguous();
    CHECK(tensor(decode(info.dtype, checkpoint.read(info)), expected.sizes()).equal(expected));
  }
}

TEST_CASE("save_model: what is no model is refused, and nothing is made") {
  const TemporaryFolder folder;
  const ModelSpec spec = small("or");
  const tiny::Slots slots = values_of(spec, at::kFloat, at::kFloat);
  const auto attempt = [&](const ModelSpec& what, const tiny::Slots& tensors,
                           const SaveOptions& options = {}) {
    const auto caught = error_of([&] { save_model(folder / "m", what, tensors, options); });
    CHECK(scalevec::testing::snapshot(folder.path()).empty());
    return caught;
  };
  tiny::Slots changed = slots;
  changed.erase("final_norm.beta");
  CHECK(attempt(spec, changed).fields.tensor == "final_norm.beta");
  changed = slots;
  changed["optimizer.step"] = changed["final_norm.beta"];
  CHECK(attempt(spec, changed).fields.tensor == "optimizer.step");
  changed = slots;
  changed["embed.weight"] = changed["embed.weight"].t();
  CHECK(attempt(spec, changed).code == ErrorCode::shape);
  changed = slots;
  changed["embed.weight"] = changed["embed.weight"].to(at::kLong);
  CHECK(attempt(spec, changed).code == ErrorCode::dtype);
  ModelSpec other = spec;
  other.layers[1].attn.q.out = 24;
  CHECK(attempt(other, slots).code == ErrorCode::config);
  other = spec;
  other.family = "llama";
  CHECK(attempt(other, slots).fields.key == "family");
  CHECK(attempt(spec, slots, {.weights = at::kDouble}).code == ErrorCode::dtype);
  CHECK(attempt(spec, slots, {.files = {folder / "tokenizer.json"}}).code == ErrorCode::path);
  save_model(folder / "m", spec, slots);
  const auto before = scalevec::testing::snapshot(folder.path());
  CHECK(before.size() == 2);
  CHECK(error_of([&] { save_model(folder / "m", spec, slots); }).code == ErrorCode::path);
  CHECK(scalevec::testing::snapshot(folder.path()) == before);
}
