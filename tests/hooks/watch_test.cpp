#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <doctest/doctest.h>
#include <hooks/two_norms.h>

#include <scalevec/hooks/capture.h>
#include <scalevec/hooks/override.h>
#include <scalevec/hooks/reductions.h>
#include <scalevec/hooks/tap.h>
#include <scalevec/hooks/watch.h>

using scalevec::Capture;
using scalevec::NormEvent;
using scalevec::Override;
using scalevec::Reductions;
using scalevec::Selector;
using scalevec::Tap;
using scalevec::Watch;
namespace taps = scalevec::taps;

namespace {

struct Counter : scalevec::NormObserver {
  unsigned wants(std::size_t) const override { return taps::input; }
  void see(const NormEvent&) override { ++seen; }
  int seen = 0;
};

const Selector everything = Selector::parse("**");

#ifdef __SANITIZE_ADDRESS__
constexpr bool memory_is_quarantined = true;  // freed blocks stay resident, so that growth says nothing
#else
constexpr bool memory_is_quarantined = false;
#endif

long resident_bytes() {
  std::ifstream file("/proc/self/statm");
  long total = 0, resident = 0;
  file >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

}  // namespace

TEST_CASE("watch: begins and ends with its scope, nested and in any order") {
  TwoNorms model;
  const at::Tensor x = normal({1, 2, 5}, 10);
  const auto a = std::make_shared<Counter>(), b = std::make_shared<Counter>();
  auto outer = std::make_unique<Watch>(model, a);
  auto inner = std::make_unique<Watch>(model, b);
  model(x);
  CHECK(a->seen == 3);
  CHECK(b->seen == 3);
  outer.reset();
  model(x);
  CHECK(a->seen == 3);
  CHECK(b->seen == 6);
  inner.reset();
  CHECK(model.observers().empty());
}

TEST_CASE("watch: moves; what is moved from, stopped or empty watches nothing") {
  TwoNorms model;
  const auto counter = std::make_shared<Counter>();
  Watch empty;
  CHECK_FALSE(empty.watching());
  Watch first(model, counter);
  Watch second(std::move(first));
  CHECK_FALSE(first.watching());  // NOLINT: what a move leaves is part of the promise
  CHECK(second.watching());
  Watch other(model, std::make_shared<Counter>());
  other = std::move(second);
  CHECK(model.observers().all().size() == 1);
  Watch& alias = other;
  other = std::move(alias);
  CHECK(other.watching());
  other.stop();
  other.stop();
  CHECK(model.observers().empty());
  CHECK(counter.use_count() == 1);
}

TEST_CASE("watch: ends when an exception leaves its scope") {
  TwoNorms model;
  const auto leave = [&] {
    const Watch watch(model, std::make_shared<Counter>());
    const Capture capture(model, everything);
    const Override lent(model, {{"final_norm", normal({5}, 20)}});
    throw std::runtime_error("out");
  };
  CHECK_THROWS_WITH(leave(), "out");
  CHECK(model.observers().empty());
}

TEST_CASE("watch: an exception inside an observer reaches the caller and leaves the model as it was") {
  // On every thread a model of its own, as the promise demands: 1,000 throws on each of 8 threads.
  const at::Tensor x = normal({1, 2, 5}, 10);
  std::vector<int> caught(8, 0);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < caught.size(); ++t) {
    threads.emplace_back([&x, &mine = caught[t]] {
      TwoNorms model;
      const at::Tensor before = model(x);
      for (int i = 0; i < 1000; ++i) {
        const Tap tap(model, everything, taps::scaled, [](const NormEvent& event) {
          if (event.index == 1) throw std::runtime_error("from a tap");
        });
        try {
          model(x);
        } catch (const std::runtime_error& error) {
          mine += std::string(error.what()) == "from a tap";
        }
      }
      if (!model.observers().empty() || !model(x).equal(before)) mine = -1;
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const int count : caught) CHECK(count == 1000);
}

TEST_CASE("watch: nothing dangles, in whichever order model, capture, override and graph go") {
  const at::Tensor x = normal({1, 3, 5}, 10);
  std::vector<int> order = {0, 1, 2, 3};
  int orders = 0;
  do {
    auto model = std::make_unique<TwoNorms>();
    const at::Tensor vector = normal({5}, 20).requires_grad_();
    auto capture = std::make_unique<Capture>(*model, everything, taps::all);
    auto sums = std::make_unique<Reductions>(*model, everything, taps::scaled, true);
    auto lent = std::make_unique<Override>(*model, Override::Vectors{{"layers.0.attn.input_norm", vector}});
    std::optional<at::Tensor> loss = (*model)(x).sum();
    for (const int who : order) {
      switch (who) {
        case 0:
          model.reset();
          break;
        case 1:
          capture.reset();
          sums.reset();
          break;
        case 2:
          lent.reset();
          break;
        default:
          loss->backward();
          loss.reset();
      }
    }
    CHECK(vector.grad().defined());
    ++orders;
  } while (std::next_permutation(order.begin(), order.end()));
  CHECK(orders == 24);
}

TEST_CASE("watch: gradients reach a capture whose model has gone") {
  auto model = std::make_unique<TwoNorms>();
  model->first.requires_grad_();
  const Capture capture(*model, everything, taps::vector_gradient);
  const at::Tensor loss = (*model)(normal({1, 3, 5}, 10)).sum();
  const at::Tensor first = model->first;
  model.reset();
  CHECK_FALSE(capture.watching());
  loss.backward();
  CHECK(capture.at("layers.0.attn.input_norm").vector_gradient().at(0).equal(first.grad()));
}

TEST_CASE("watch: 10,000 attachments leave no memory behind" * doctest::skip(memory_is_quarantined)) {
  TwoNorms model;
  model.first.requires_grad_();
  const at::Tensor x = normal({1, 2, 5}, 10).requires_grad_();  // a leaf: hooks on it must be taken off
  const auto cycle = [&] {
    const Capture capture(model, everything, taps::all);
    const Reductions sums(model, everything, taps::input | taps::scaled, true);
    const Override lent(model, {{"final_norm", model.last}});
    model(x);
  };
  for (int i = 0; i < 500; ++i) cycle();
  const long before = resident_bytes();
  for (int i = 0; i < 10000; ++i) cycle();
  const long growth = resident_bytes() - before;
  MESSAGE("growth after 10,000 cycles: ", growth, " bytes");
  CHECK(growth <= 256 << 10);
  CHECK(model.observers().empty());
}
