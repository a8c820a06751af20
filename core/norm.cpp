#include <scalevec/core/norm.h>

#include <algorithm>
#include <string>
#include <type_traits>
#include <vector>

#include <ATen/core/grad_mode.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <fmt/format.h>

#include <scalevec/core/differentiable.h>
#include <scalevec/core/error.h>
#include <scalevec/core/kernels/rms_norm.h>
#include <scalevec/core/ops.h>
#include <scalevec/core/parallel.h>

namespace scalevec {
namespace {

using kernels::Bfloat16;

std::int64_t rows_of(const at::Tensor& x) { return x.size(-1) == 0 ? 0 : x.numel() / x.size(-1); }

std::vector<std::int64_t> grouped(const at::Tensor& x, std::int64_t group) {
  std::vector<std::int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() /= group;
  shape.push_back(group);
  return shape;
}

std::int64_t check(const char* what, const at::Tensor& x, const at::Tensor& g, std::int64_t group) {
  if (!x.defined() || x.dim() < 1)
    fail(ErrorCode::shape, fmt::format("{}: x needs at least one dimension", what));
  const at::ScalarType dtype = x.scalar_type();
  if (dtype != at::kFloat && dtype != at::kBFloat16 && dtype != at::kDouble) {
    fail(ErrorCode::dtype,
         fmt::format("{}: x is {}; expected float32, bfloat16 or float64", what, c10::toString(dtype)));
  }
  const std::int64_t width = x.size(-1);
  if (group == 0) group = width;
  if (group < 0 || (group > 0 && width % group != 0)) {
    fail(ErrorCode::shape,
         fmt::format("{}: groups of {} entries do not divide rows of {}", what, group, width));
  }
  if (g.defined()) {
    if (g.dim() != 1 || g.size(0) != width) {
      fail(ErrorCode::shape,
           fmt::format("{}: the vector has {} entries in {} dimensions; expected one of ({},)", what,
                       g.numel(), g.dim(), width));
    }
    if (g.scalar_type() != norm_dtype(dtype)) {
      fail(ErrorCode::dtype, fmt::format("{}: the vector is {}; expected {} for activations in {}", what,
                                         c10::toString(g.scalar_type()), c10::toString(norm_dtype(dtype)),
                                         c10::toString(dtype)));
    }
    if (g.device() != x.device()) {
      fail(ErrorCode::device, fmt::format("{}: the vector is on {}, the activations are on {}", what,
                                          g.device().str(), x.device().str()));
    }
  }
  return group;
}

template <class T>
using Arithmetic = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
kernels::RmsForward<T, Arithmetic<T>> forward_call(const at::Tensor& x, const at::Tensor& g,
                                                   const at::Tensor& y, const at::Tensor& rstd,
                                                   const at::Tensor& normalized, double eps,
                                                   std::int64_t group) {
  using V = Arithmetic<T>;
  return {static_cast<const T*>(x.const_data_ptr()),
          g.defined() ? g.const_data_ptr<V>() : nullptr,
          static_cast<T*>(y.mutable_data_ptr()),
          rstd.defined() ? rstd.mutable_data_ptr<V>() : nullptr,
          normalized.defined() ? normalized.mutable_data_ptr<V>() : nullptr,
          x.size(-1),
          group,
          eps};
}

// About 64 KiB of activations a task.
std::int64_t grain(std::int64_t width) {
  return std::max<std::int64_t>(1, 16384 / std::max<std::int64_t>(1, width));
}

template <class Call>
void forward_on_cpu(const Call& call, std::int64_t rows) {
  at::parallel_for(0, rows, grain(call.width),
                   [&](std::int64_t begin, std::int64_t end) { kernels::rms_norm(call, begin, end); });
}

void* current_stream(at::Device device) {
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device).native_handle();
}

template <class T>
void backward_on_cpu(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& g, const at::Tensor& rstd,
                     std::int64_t group, const at::Tensor& dx, at::Tensor* dg) {
  using V = Arithmetic<T>;
  const std::int64_t width = x.size(-1), rows = rows_of(x);
  // Parts of fixed size, each with its own sum, added in order: the same bits on any number of threads.
  const std::int64_t rows_per_part = std::max<std::int64_t>(64, (rows + 31) / 32);
  const std::int64_t parts = (rows + rows_per_part - 1) / rows_per_part;
  at::Tensor sums;
  if (dg)
    sums = ops::empty({std::max<std::int64_t>(1, parts), width}, x.options().dtype(at::kDouble)).zero_();
  kernels::RmsBackward<T, V> call{static_cast<const T*>(dy.const_data_ptr()),
                                  static_cast<const T*>(x.const_data_ptr()),
                                  g.defined() ? g.const_data_ptr<V>() : nullptr,
                                  rstd.const_data_ptr<V>(),
                                  dx.defined() ? static_cast<T*>(dx.mutable_data_ptr()) : nullptr,
                                  nullptr,
                                  width,
                                  group};
  double* const all_sums = dg ? sums.mutable_data_ptr<double>() : nullptr;
  at::parallel_for(0, parts, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t part = begin; part < end; ++part) {
      auto mine = call;
      if (all_sums) mine.dg = all_sums + part * width;
      kernels::rms_norm_backward(mine, part * rows_per_part, std::min(rows, (part + 1) * rows_per_part));
    }
  });
  if (dg) *dg = sums.sum(0).to(norm_dtype(x.scalar_type()));
}

// The same gradients from differentiable operators: for devices without the kernel, and to differentiate
// again.
std::vector<at::Tensor> composite_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& g,
                                           double eps, std::int64_t group, const std::vector<bool>& wanted) {
  const at::ScalarType dtype = norm_dtype(x.scalar_type());
  const auto shape = grouped(x, group);
  const at::Tensor xv = x.to(dtype).reshape(shape);
  const at::Tensor dyv = dy.to(dtype).reshape(shape);
  const at::Tensor rstd = xv.square().mean(-1, true).add(eps).rsqrt();
  const at::Tensor normalized = xv.mul(rstd);
  std::vector<at::Tensor> out(2);
  if (wanted[0]) {
    const at::Tensor gdy = g.defined() ? dyv.mul(g.reshape({-1, group})) : dyv;
    out[0] = rstd.mul(gdy.sub(normalized.mul(gdy.mul(normalized).mean(-1, true))))
                 .reshape(x.sizes())
                 .to(x.scalar_type());
  }
  if (wanted[1] && g.defined()) out[1] = dyv.mul(normalized).reshape({-1, x.size(-1)}).sum(0);
  return out;
}

std::vector<at::Tensor> rms_backward(const at::Tensor& dy, const std::vector<at::Tensor>& saved, double eps,
                                     std::int64_t group, const std::vector<bool>& wanted) {
  const at::Tensor &x = saved[0], &g = saved[1], &rstd = saved[2];
  if (at::GradMode::is_enabled() || !x.is_cpu()) return composite_backward(dy, x, g, eps, group, wanted);
  const at::Tensor xc = x.contiguous(), dyc = dy.contiguous(), gc = g.defined() ? g.contiguous() : g;
  std::vector<at::Tensor> out(2);
  if (wanted[0]) out[0] = ops::empty(xc.sizes(), xc.options());
  at::Tensor* const dg = wanted[1] && g.defined() ? &out[1] : nullptr;
  switch (x.scalar_type()) {
    case at::kFloat:
      backward_on_cpu<float>(dyc, xc, gc, rstd, group, out[0], dg);
      break;
    case at::kBFloat16:
      backward_on_cpu<Bfloat16>(dyc, xc, gc, rstd, group, out[0], dg);
      break;
    default:
      backward_on_cpu<double>(dyc, xc, gc, rstd, group, out[0], dg);
      break;
  }
  return out;
}

// The parts that composite operators made; `rms` is (..., groups, 1).
void give(NormParts* parts, const at::Tensor& x, const at::Tensor& rms, const at::Tensor& normalized) {
  if (!parts) return;
  if (parts->want_rms) parts->rms = rms.detach().squeeze(-1);
  if (parts->want_normalized) parts->normalized = normalized.detach().reshape(x.sizes());
}

}  // namespace

at::ScalarType norm_dtype(at::ScalarType activation) {
  return activation == at::kDouble ? at::kDouble : at::kFloat;
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& g, double eps, std::int64_t group,
                    NormParts* parts) {
  group = check("rms_norm", x, g, group);
  const bool recorded =
      at::GradMode::is_enabled() && (x.requires_grad() || (g.defined() && g.requires_grad()));
  const bool want_rms = parts && parts->want_rms, want_normalized = parts && parts->want_normalized;
  const auto options = x.options().dtype(norm_dtype(x.scalar_type())).requires_grad(false);
  at::Tensor y, rstd, normalized;
  {
    const at::NoGradGuard no_grad;
    const at::Tensor xc = x.contiguous(), gc = g.defined() ? g.contiguous() : g;
    y = ops::empty(x.sizes(), x.options().requires_grad(false));
    std::vector<std::int64_t> groups = grouped(x, std::max<std::int64_t>(1, group));
    groups.pop_back();
    if (recorded || want_rms) rstd = ops::empty(groups, options);
    if (want_normalized) normalized = ops::empty(x.sizes(), options);
    const std::int64_t rows = rows_of(x);
    if (x.is_cpu()) {
      switch (x.scalar_type()) {
        case at::kFloat:
          forward_on_cpu(forward_call<float>(xc, gc, y, rstd, normalized, eps, group), rows);
          break;
        case at::kBFloat16:
          forward_on_cpu(forward_call<Bfloat16>(xc, gc, y, rstd, normalized, eps, group), rows);
          break;
        default:
          forward_on_cpu(forward_call<double>(xc, gc, y, rstd, normalized, eps, group), rows);
          break;
      }
    } else if (x.is_cuda() && x.scalar_type() == at::kFloat) {
      kernels::rms_norm_cuda(forward_call<float>(xc, gc, y, rstd, normalized, eps, group), rows,
                             current_stream(x.device()));
    } else if (x.is_cuda() && x.scalar_type() == at::kBFloat16) {
      kernels::rms_norm_cuda(forward_call<Bfloat16>(xc, gc, y, rstd, normalized, eps, group), rows,
                             current_stream(x.device()));
    } else {
      fail(ErrorCode::device,
           fmt::format("rms_norm: no kernel for {} on {}; use the CPU, or float32 or bfloat16 on CUDA",
                       c10::toString(x.scalar_type()), x.device().str()));
    }
    if (want_rms) parts->rms = rstd.reciprocal();
    if (want_normalized) parts->normalized = normalized;
  }
  if (!recorded) return y;
  return differentiable(
      "RmsNormBackward", std::move(y), {x, g}, {x, g, rstd},
      [eps, group](const at::Tensor& dy, const std::vector<at::Tensor>& saved,
                   const std::vector<bool>& wanted) { return rms_backward(dy, saved, eps, group, wanted); });
}

at::Tensor apply_norm(Statistics statistics, const at::Tensor& x, const at::Tensor& g, const at::Tensor& bias,
                      double eps, std::int64_t group, NormParts* parts) {
  if (statistics == Statistics::rms && !bias.defined()) return rms_norm(x, g, eps, group, parts);
  group = check("norm", x, g, group);
  check("norm (bias)", x, bias, group);
  // Composite operators: these norms are rare in the models that this transformer runs.
  const at::Tensor xv = x.to(norm_dtype(x.scalar_type())).reshape(grouped(x, group));
  at::Tensor normalized = xv;
  if (statistics == Statistics::none) {
    std::vector<std::int64_t> groups = grouped(x, group);
    groups.back() = 1;
    give(parts, x, ops::empty(groups, xv.options().requires_grad(false)).fill_(1), xv);
  } else {
    const at::Tensor centred = statistics == Statistics::layer ? xv.sub(xv.mean(-1, true)) : xv;
    const at::Tensor rms = centred.square().mean(-1, true).add(eps).sqrt();
    normalized = centred.div(rms);
    give(parts, x, rms, normalized);
  }
  at::Tensor y = normalized.reshape(x.sizes());
  if (g.defined()) y = y.mul(g);
  if (bias.defined()) y = y.add(bias);
  return y.to(x.scalar_type());
}

}  // namespace scalevec
