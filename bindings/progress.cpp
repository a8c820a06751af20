#include <chrono>
#include <memory>

#include <scalevec/hooks/watch.h>

#include "module.h"

namespace scalevec::python {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto pause = std::chrono::milliseconds(50);

// True at most once in a while.
class Rarely {
 public:
  bool due() {
    const auto now = Clock::now();
    if (now - last_ < pause) return false;
    last_ = now;
    return true;
  }

 private:
  Clock::time_point last_ = Clock::now();
};

void check_signals() {
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

class SignalObserver final : public NormObserver {
 public:
  unsigned wants(std::size_t) const override {
    if (clock_.due()) {
      const py::gil_scoped_acquire lock;
      check_signals();
    }
    return 0;
  }

 private:
  mutable Rarely clock_;
};

}  // namespace

Progress progress(py::object callback) {
  // The last copy may die without the lock.
  const std::shared_ptr<py::object> held(new py::object(std::move(callback)), [](py::object* object) {
    const py::gil_scoped_acquire lock;
    delete object;
  });
  return [held, clock = Rarely()](std::string_view what, std::uint64_t done, std::uint64_t total) mutable {
    const bool due = clock.due();
    if (!due && done != total) return;
    const py::gil_scoped_acquire lock;
    check_signals();
    if (!held->is_none()) (*held)(what, done, total);
  };
}

struct Interruptible::State {
  Watch watch;
};

Interruptible::Interruptible(SiteProvider& model)
    : state_(new State{Watch(model, std::make_shared<SignalObserver>())}) {}
Interruptible::~Interruptible() = default;

}  // namespace scalevec::python
