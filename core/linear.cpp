#include <csignal>
#include <string_view>
#include <vector>

#include <ATen/Context.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_unsafe_view.h>
#include <ATen/ops/linear.h>

#include <scalevec/core/differentiable.h>
#include <scalevec/core/ops.h>
#include <scalevec/core/parallel.h>

namespace scalevec::ops {
namespace {

using Bias = std::optional<at::Tensor>;

// Where oneDNN multiplies faster than MKL, whose kernels for other processors than Intel's are slow: by 5 to
// 50 % from this many rows on, and by less or nothing below.
constexpr std::int64_t least_rows = 64;

bool mkl_is_slow() {
#if defined(__x86_64__)
  static const bool slow = at::globalContext().hasMKLDNN() && !__builtin_cpu_is("intel");
  return slow && at::globalContext().userEnabledMkldnn();
#else
  return false;
#endif
}

bool suits_onednn(const at::Tensor& x, const at::Tensor& weight) {
  const auto plain = [](const at::Tensor& t) {
    return t.device().is_cpu() && t.scalar_type() == at::kFloat && t.layout() == at::kStrided;
  };
  return mkl_is_slow() && plain(x) && plain(weight) && weight.dim() == 2 && weight.numel() > 0 &&
         x.numel() >= least_rows * weight.size(1);
}

// Signals wait while oneDNN multiplies. Its kernels of torch 2.11 point the stack pointer into the heap: what
// the system lays down there to run a handler overwrites the memory below (oneDNN issue 4845). The threads of
// the pool, which inherit any mask, take no signals from then on.
class SignalsWait {
 public:
  SignalsWait() {
    sigset_t all;
    ::sigfillset(&all);
    for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT}) ::sigdelset(&all, fault);
    ::pthread_sigmask(SIG_BLOCK, &all, &before_);
    at::parallel_for(0, at::get_num_threads(), 1,
                     [&](std::int64_t, std::int64_t) { ::pthread_sigmask(SIG_BLOCK, &all, nullptr); });
  }
  ~SignalsWait() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsWait(const SignalsWait&) = delete;
  SignalsWait& operator=(const SignalsWait&) = delete;

 private:
  sigset_t before_;
};

// x weight^T + bias, not seen by autograd, and no view: of one that was made unseen, nothing could be
// written.
at::Tensor product(const at::Tensor& x, const at::Tensor& weight, const Bias& bias = {}) {
  using Signature = at::Tensor(const at::Tensor&, const at::Tensor&, const Bias&, std::string_view,
                               c10::List<std::optional<at::Scalar>>, std::optional<std::string_view>);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("mkldnn::_linear_pointwise", "").typed<Signature>();
  const at::NoGradGuard no_grad;
  std::vector<std::int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = weight.size(0);
  const at::Tensor rows = x.reshape({-1, x.size(-1)});
  const SignalsWait held;
  return at::_unsafe_view(op.call(rows, weight, bias, "none", c10::List<std::optional<at::Scalar>>(), ""),
                          sizes);
}

}  // namespace

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  const Bias added = bias.defined() ? Bias(bias) : std::nullopt;
  if (!suits_onednn(x, weight)) return at::linear(x, weight, added);
  return differentiable(
      "LinearBackward", product(x, weight, added), {x, weight, bias},
      {weight.requires_grad() ? x : at::Tensor(), x.requires_grad() ? weight : at::Tensor()},
      [](const at::Tensor& grad, const std::vector<at::Tensor>& saved, const std::vector<bool>& wanted) {
        const at::Tensor &input = saved[0], &map = saved[1];
        const at::Tensor rows = grad.reshape({-1, grad.size(-1)});
        std::vector<at::Tensor> out(3);
        if (wanted[0]) {
          const at::Tensor back = map.t();
          out[0] = at::GradMode::is_enabled() ? at::linear(grad, back) : product(grad, back);
        }
        if (wanted[1]) out[1] = rows.t().mm(input.reshape({-1, input.size(-1)}));
        if (wanted[2]) out[2] = rows.sum(0);
        return out;
      });
}

}  // namespace scalevec::ops
