#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <string>
#include <vector>

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <doctest/doctest.h>
#include <support/errors.h>
#include <support/tiny_training.h>

#include <scalevec/trainer/not_finite.h>

#include <support/check.h>

using namespace scalevec;
using namespace scalevec::testing;

TEST_CASE("a loss that is not finite stops the run, names the first tensor that is not, moves nothing") {
  struct Fault {
    std::string slot;  // filled with `value`
    double value = 0.0;
    std::string tensor;   // named
    std::string message;  // has this
  };
  // The largest of float32 is 3.4e38: sums of these products overflow, and every parameter is finite.
  for (const Fault& fault : {
           Fault{"layers.1.mlp.up.weight", INFINITY, "layers.1.mlp.up.weight", "the parameter"},
           Fault{"layers.0.attn.k.weight", NAN, "layers.0.attn.k.weight", "the parameter"},
           Fault{"layers.1.mlp.down.weight", 1e38, "final_norm", "final_norm reads"},
           Fault{"layers.0.attn.o.weight", 1e38, "layers.0.mlp.input_norm[gate]", "[gate] reads"},
           Fault{"layers.0.mlp.input_norm[gate].beta", 3e38, "layers.0.mlp.input_norm[gate]", "gives"},
           Fault{"head.weight", 1e38, "head", "what the head gives"},
       }) {
    CAPTURE(fault.slot);
    Training training(tiny("", "learning_rate = 0.01\n"));
    training.advance();
    auto before = copy_of(training);
    const at::Tensor& filled = before.at(fault.slot).fill_(fault.value);
    {
      const at::NoGradGuard no_grad;
      at::Tensor(training.optimizer().parameter(fault.slot).master).copy_(filled);
    }
    const auto caught = error_of([&] { training.advance(); });
    CHECK(caught.code == ErrorCode::value);
    CHECK(caught.fields.tensor == fault.tensor);
    CHECK(caught.fields.index.has_value());
    CHECK(caught.message.find(fault.message) != std::string::npos);
    CHECK(caught.message.find("training step 2: the loss is") != std::string::npos);
    CHECK(training.steps_done() == 1);
    check_same_bits(before, copy_of(training));
  }
}

TEST_CASE("of gradients that are not finite the first of the backward pass is named") {
  // What comes back into one norm's input overflows there: every tensor before has its gradient from it.
  struct Overflow final : NormObserver {
    explicit Overflow(std::size_t site) : site_(site) {}
    unsigned wants(std::size_t site) const override { return site == site_ ? parts::input : 0; }
    void see(const NormEvent& event) override {
      event.input.register_hook([](const at::Tensor& grad) { return grad * INFINITY; });
    }
    std::size_t site_;
  };
  for (const auto& [site, named] :
       std::map<std::string, std::string>{{"layers.1.mlp.input_norm", "layers.1.attn.o."},
                                          {"layers.1.attn.input_norm", "layers.0.mlp.down."},
                                          {"layers.0.attn.input_norm", "embed."},
                                          {"final_norm", "layers.1.mlp.down."}}) {
    CAPTURE(site);
    Training training(tiny());
    training.advance();
    const auto before = copy_of(training);
    const auto& sites = training.model().sites();
    std::size_t index = 0;
    while (!sites.at(index).address.str().starts_with(site)) ++index;
    Overflow overflow(index);
    training.model().observers().add(&overflow);
    const auto caught = error_of([&] { training.advance(); });
    training.model().observers().remove(&overflow);
    CHECK(caught.code == ErrorCode::value);
    CHECK(caught.fields.tensor.substr(0, named.size()) == named);
    check_same_bits(before, copy_of(training));
    training.advance();  // nothing of it is left
    CHECK(training.steps_done() == 2);
  }
}

TEST_CASE("forward order of slots, in nets of every form") {
  for (const char* strategy : {"hg+dnp+or", "gemma", "hg+dp"}) {
    const ModelSpec spec = Experiment::parse("[model]\npreset = \"nano\"\nlayers = 11\nstrategy = \"" +
                                             std::string(strategy) + "\"\n")
                               .spec(37);
    std::vector<std::string> slots;
    for (const auto& [slot, shape] : spec.tensor_slots()) slots.push_back(slot);
    std::sort(slots.begin(), slots.end(), comes_before);
    const auto at = [&](const std::string& slot) {
      const auto found =
          std::find_if(slots.begin(), slots.end(), [&](const std::string& s) { return s.starts_with(slot); });
      REQUIRE_MESSAGE(found != slots.end(), slot);
      return found - slots.begin();
    };
    CHECK(at("embed") == 0);
    for (const char* pair : {"attn.input_norm attn.q.weight", "attn.v.weight attn.o.weight",
                             "attn.o.weight mlp.input_norm", "mlp.up.weight mlp.down.weight"}) {
      const std::string two(pair), first = two.substr(0, two.find(' ')),
                                   second = two.substr(two.find(' ') + 1);
      CAPTURE(two);
      CHECK(at("layers.10." + first) < at("layers.10." + second));
      CHECK(at("layers.2." + second) < at("layers.10." + first));
    }
    CHECK(at("layers.10.mlp.down") < at("final_norm"));
    CHECK(at("final_norm") < at("head"));
  }
}

TEST_CASE(
    "1,000 gradients with NaN or infinities: each is told by step, tensor, entry and count, and moves "
    "nothing") {
  Training training(tiny());
  training.advance();
  auto& optimizer = const_cast<Optimizer&>(training.optimizer());
  const auto before = copy_of(training);
  std::mt19937_64 random(9);
  std::vector<std::string> slots;
  for (const Parameter& p : optimizer.parameters()) slots.push_back(p.slot);
  constexpr double values[] = {NAN, INFINITY, -INFINITY};
  for (int i = 0; i < 1000; ++i) {
    const std::string& slot = slots[random() % slots.size()];
    std::int64_t first = 0, count = 0;
    for (const Parameter& p : optimizer.parameters()) {
      const at::Tensor gradient = p.leaf.new_zeros(p.leaf.sizes());
      if (p.slot == slot) {
        const auto size = static_cast<std::uint64_t>(p.leaf.numel());
        const auto a = static_cast<std::int64_t>(random() % size),
                   b = static_cast<std::int64_t>(random() % size);
        for (const std::int64_t at : {a, b}) gradient.view({-1}).narrow(0, at, 1).fill_(values[random() % 3]);
        first = std::min(a, b);
        count = a == b ? 1 : 2;
      }
      at::Tensor leaf = p.leaf;
      leaf.mutable_grad() = gradient;
    }
    optimizer.accumulate();
    const auto caught = error_of([&] { optimizer.step(0.1, nullptr); });
    CHECK(caught.code == ErrorCode::value);
    CHECK(caught.fields.tensor == slot);
    CHECK(caught.fields.index == first);
    CHECK(caught.message.find("training step 2: the gradient of '" + slot + "' is not finite in " +
                              std::to_string(count) + " of ") != std::string::npos);
  }
  CHECK(training.steps_done() == 1);
  check_same_bits(before, copy_of(training));
}
