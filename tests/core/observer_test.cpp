#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <doctest/doctest.h>
#include <support/tensors.h>

#include <scalevec/core/observer.h>

using scalevec::NormEvent;
using scalevec::NormObserver;
using scalevec::ObserverList;

namespace {

struct Watcher : NormObserver {
  explicit Watcher(unsigned wanted_parts) : wanted(wanted_parts) {}
  unsigned wants(std::size_t site) const override { return site == 0 ? wanted : 0; }
  void see(const NormEvent& event) override {
    ++seen;
    if (action) action(event);
  }
  at::Tensor lend(std::size_t site) const override { return site == 1 ? vector : at::Tensor(); }
  bool lends() const override { return vector.defined(); }

  unsigned wanted;
  int seen = 0;
  std::function<void(const NormEvent&)> action;
  at::Tensor vector;
};

NormEvent event(const scalevec::Site& site, std::size_t index = 0) {
  return {site, index, {}, {}, {}, {}, {}};
}

}  // namespace

TEST_CASE("observers: what all want is asked at once; only those who want see") {
  ObserverList list;
  CHECK(list.empty());
  CHECK(list.wanted(0) == 0);
  Watcher a(scalevec::parts::input), b(scalevec::parts::scaled), c(0);
  for (Watcher* watcher : {&a, &b, &c}) list.add(watcher);
  CHECK(list.wanted(0) == (scalevec::parts::input | scalevec::parts::scaled));
  CHECK(list.wanted(1) == 0);
  const scalevec::Site site;
  list.show(event(site));
  list.show(event(site, 1));
  CHECK(a.seen == 1);
  CHECK(b.seen == 1);
  CHECK(c.seen == 0);
}

TEST_CASE("observers: of several lent vectors the innermost counts, in any order of leaving") {
  ObserverList list;
  Watcher outer(0), looker(1), inner(0);
  outer.vector = vector_of({1.0});
  inner.vector = vector_of({2.0});
  for (Watcher* watcher : {&outer, &looker, &inner}) list.add(watcher);
  CHECK(list.lent(1).item<double>() == 2.0);
  CHECK_FALSE(list.lent(0).defined());
  list.remove(&outer);
  CHECK(list.lent(1).item<double>() == 2.0);
  list.remove(&inner);
  CHECK_FALSE(list.lent(1).defined());
}

TEST_CASE("observers: the lending generation moves with lenders and with nobody else") {
  ObserverList list;
  Watcher looker(1), lender(0), stranger(0);
  lender.vector = stranger.vector = vector_of({1.0});
  const auto start = list.lending_generation();
  list.add(&looker);
  CHECK(list.lending_generation() == start);
  list.add(&lender);
  const auto lending = list.lending_generation();
  CHECK(lending != start);
  list.remove(&looker);
  list.remove(&stranger);  // never there
  CHECK(list.lending_generation() == lending);
  list.remove(&lender);
  CHECK(list.lending_generation() != lending);
  CHECK(list.lending_generation() != start);
}

TEST_CASE("observers: they may come and go while an event is shown, and each of the others sees it once") {
  const scalevec::Site site;
  ObserverList list;
  Watcher a(1), b(1), c(1), late(1);
  for (Watcher* watcher : {&a, &b, &c}) list.add(watcher);
  SUBCASE("one removes itself") {
    b.action = [&](const NormEvent&) { list.remove(&b); };
    list.show(event(site));
    CHECK(c.seen == 1);
    list.show(event(site));
    CHECK(b.seen == 1);
  }
  SUBCASE("one removes an earlier and a later one") {
    b.action = [&](const NormEvent&) {
      list.remove(&a);
      list.remove(&c);
    };
    list.show(event(site));
    CHECK(a.seen == 1);
    CHECK(c.seen == 0);
  }
  SUBCASE("one adds another and shows an event of its own") {
    b.action = [&](const NormEvent&) {
      if (b.seen > 1) return;
      list.add(&late);
      list.remove(&a);
      list.show(event(site));
    };
    list.show(event(site));
    CHECK(a.seen == 1);
    CHECK(b.seen == 2);
    CHECK(c.seen == 2);
    CHECK(late.seen == 2);
  }
  SUBCASE("one throws") {
    b.action = [](const NormEvent&) { throw std::runtime_error("stop"); };
    CHECK_THROWS_WITH(list.show(event(site)), "stop");
    CHECK(c.seen == 0);
    b.action = nullptr;
    list.remove(&a);
    list.show(event(site));
    CHECK(b.seen == 2);
    CHECK(c.seen == 1);
  }
}

TEST_CASE("observers: the token expires with the list") {
  auto list = std::make_unique<ObserverList>();
  const std::weak_ptr<const void> alive = list->alive();
  CHECK_FALSE(alive.expired());
  list.reset();
  CHECK(alive.expired());
}
