#include <atomic>
#include <csignal>

#include <pthread.h>
#include <sys/time.h>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <doctest/doctest.h>
#include <support/tensors.h>

#include <scalevec/core/ops.h>

#include <support/check.h>

using namespace scalevec;

namespace {

// |got - a b| entry by entry, over what rounding allows (Higham, Accuracy and Stability, 3.1): k u |a| |b|
// for sums of k products in float32, here with one more rounding for what is added.
double excess(const at::Tensor& got, const at::Tensor& a, const at::Tensor& b, const at::Tensor& added = {}) {
  const at::Tensor x = a.detach().to(at::kDouble), y = b.detach().to(at::kDouble);
  at::Tensor want = x.mm(y), sizes = x.abs().mm(y.abs());
  if (added.defined()) {
    want = want + added.detach().to(at::kDouble);
    sizes = sizes + added.detach().to(at::kDouble).abs();
  }
  const double u = std::ldexp(1.0, -24), k = static_cast<double>(x.size(1)) + 1;
  return ((got.detach().to(at::kDouble) - want).abs() / (k * u / (1 - k * u) * sizes)).max().item<double>();
}

// Where handlers of signals ran: on this thread's own stack, or elsewhere.
std::atomic<int> on_stack = 0, elsewhere = 0;
std::uintptr_t stack_begin = 0, stack_end = 0;

void note_place(int) {
  char here = 0;
  const auto at = reinterpret_cast<std::uintptr_t>(&here);
  ++(at >= stack_begin && at < stack_end ? on_stack : elsewhere);
}

}  // namespace

// A handler's frame that is laid into the heap overwrites what stands there: oneDNN's kernels had their stack
// pointer point to it. Threads of the pool are to take no signals at all.
TEST_CASE("linear: signals are handled on the stack, at any moment of a product") {
  pthread_attr_t attributes;
  REQUIRE(::pthread_getattr_np(::pthread_self(), &attributes) == 0);
  void* begin = nullptr;
  std::size_t size = 0;
  REQUIRE(::pthread_attr_getstack(&attributes, &begin, &size) == 0);
  ::pthread_attr_destroy(&attributes);
  stack_begin = reinterpret_cast<std::uintptr_t>(begin);
  stack_end = stack_begin + size;

  const at::Tensor x = normal({512, 96}, 1).to(at::kFloat), w = normal({200, 96}, 2).to(at::kFloat);
  const at::Tensor want = ops::linear(x, w, {});

  struct sigaction act = {}, before = {};
  act.sa_handler = note_place;
  act.sa_flags = SA_RESTART;
  REQUIRE(::sigaction(SIGALRM, &act, &before) == 0);
  const itimerval often{{0, 500}, {0, 500}}, never{};
  REQUIRE(::setitimer(ITIMER_REAL, &often, nullptr) == 0);
  bool same = true;
  for (int i = 0; i < 1000 || (on_stack <= 100 && i < 1000000); ++i)
    same &= ops::linear(x, w, {}).equal(want);
  ::setitimer(ITIMER_REAL, &never, nullptr);
  ::sigaction(SIGALRM, &before, nullptr);
  CHECK(same);
  CHECK(on_stack > 100);
  CHECK(elsewhere == 0);
}

TEST_CASE("linear: outputs and gradients of float32 within rounding of float64, for few and for many rows") {
  for (const std::int64_t rows : {1, 63, 64, 200}) {
    for (const bool with_bias : {false, true}) {
      CAPTURE(rows);
      CAPTURE(with_bias);
      const at::Tensor x = normal({rows, 96}, 1).to(at::kFloat).requires_grad_();
      const at::Tensor w = normal({160, 96}, 2).to(at::kFloat).requires_grad_();
      at::Tensor bias;
      if (with_bias) bias = normal({160}, 3).to(at::kFloat).requires_grad_();
      const at::Tensor y = ops::linear(x, w, bias), dy = normal({rows, 160}, 4).to(at::kFloat);
      CHECK(excess(y, x, w.t(), bias) <= 1.0);
      y.backward(dy);
      CHECK(excess(x.grad(), dy, w) <= 1.0);
      CHECK(excess(w.grad(), dy.t(), x) <= 1.0);
      if (with_bias) CHECK(excess(bias.grad().unsqueeze(0), dy.new_ones({1, rows}), dy) <= 1.0);
    }
  }
}

TEST_CASE("linear: batches, views and frozen sides") {
  const at::Tensor x = normal({96, 5, 40}, 1).to(at::kFloat).permute({2, 1, 0});  // (40, 5, 96), strided
  const at::Tensor w = normal({96, 160}, 2).to(at::kFloat).t();
  const at::Tensor flat = x.reshape({200, 96});
  CHECK(excess(ops::linear(x, w, {}).reshape({200, 160}), flat, w.t()) <= 1.0);
  CHECK(!ops::linear(x, w, {}).requires_grad());

  const at::Tensor leaf = flat.clone().requires_grad_(), dy = normal({200, 160}, 4).to(at::kFloat);
  ops::linear(leaf.view({40, 5, 96}), w, {}).backward(dy.view({40, 5, 160}));
  CHECK(excess(leaf.grad(), dy, w) <= 1.0);

  // What comes out can be written, as torch's own.
  for (const std::int64_t rows : {3, 100}) {
    at::Tensor y = ops::linear(leaf.narrow(0, 0, 2 * rows).view({2, rows, 96}), w, {});
    CHECK(!y.is_view());
    y.select(-1, 3).fill_(0.0);
    y.sum().backward();
  }
}

TEST_CASE("linear: gradients of gradients") {
  for (const std::int64_t rows : {3, 200}) {
    CAPTURE(rows);
    const at::Tensor x = normal({rows, 96}, 1).to(at::kFloat).requires_grad_();
    const at::Tensor w = normal({160, 96}, 2).to(at::kFloat).requires_grad_();
    const at::Tensor dy = normal({rows, 160}, 3).to(at::kFloat), along = normal({rows, 96}, 4).to(at::kFloat);
    ops::linear(x, w, {}).backward(dy, /*retain_graph=*/true, /*create_graph=*/true, at::TensorList{x});
    // dx = dy w, so that the gradient of <dx, along> in w is dy^T along.
    (x.grad() * along).sum().backward({}, /*retain_graph=*/false, /*create_graph=*/false, at::TensorList{w});
    REQUIRE(w.grad().defined());
    CHECK(excess(w.grad(), dy.t(), along) <= 1.0);
  }
}
