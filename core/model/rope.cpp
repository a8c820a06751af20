#include <scalevec/core/model/rope.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <scalevec/core/differentiable.h>
#include <scalevec/core/error.h>
#include <scalevec/core/kernels/rope.h>
#include <scalevec/core/ops.h>
#include <scalevec/core/parallel.h>

namespace scalevec {
namespace {

template <class T>
void rotate_on_cpu(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, const RopeSpec& rope,
                   bool inverse) {
  const kernels::Rotation<T> call{static_cast<T*>(x.mutable_data_ptr()),
                                  cos.const_data_ptr<float>(),
                                  sin.const_data_ptr<float>(),
                                  x.size(1),
                                  x.size(2),
                                  x.size(3),
                                  rope.dimensions,
                                  rope.pairing == RopeSpec::Pairing::interleaved,
                                  inverse};
  const std::int64_t width = std::max<std::int64_t>(1, x.size(2) * x.size(3));
  at::parallel_for(0, x.size(0) * x.size(1), std::max<std::int64_t>(1, 16384 / width),
                   [&](std::int64_t begin, std::int64_t end) { kernels::rotate(call, begin, end); });
}

// For devices without the kernel, and for gradients of gradients.
at::Tensor composite(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, const RopeSpec& rope,
                     bool inverse) {
  const at::ScalarType dtype = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const std::int64_t pairs = rope.dimensions / 2;
  const at::Tensor turned = x.narrow(-1, 0, rope.dimensions).to(dtype);
  const at::Tensor c = cos.to(dtype).unsqueeze(1), s = (inverse ? sin.neg() : sin).to(dtype).unsqueeze(1);
  const auto first = [&](const at::Tensor& a, const at::Tensor& b) { return a.mul(c).sub(b.mul(s)); };
  const auto second = [&](const at::Tensor& a, const at::Tensor& b) { return b.mul(c).add(a.mul(s)); };
  at::Tensor out;
  if (rope.pairing == RopeSpec::Pairing::interleaved) {
    const at::Tensor split = turned.unflatten(-1, {pairs, 2});
    const at::Tensor a = split.select(-1, 0), b = split.select(-1, 1);
    out = ops::cat({first(a, b).unsqueeze(-1), second(a, b).unsqueeze(-1)}, -1).flatten(-2);
  } else {
    const at::Tensor a = turned.narrow(-1, 0, pairs), b = turned.narrow(-1, pairs, pairs);
    out = ops::cat({first(a, b), second(a, b)}, -1);
  }
  out = out.to(x.scalar_type());
  const std::int64_t rest = x.size(-1) - rope.dimensions;
  return rest == 0 ? out : ops::cat({out, x.narrow(-1, rope.dimensions, rest)}, -1);
}

// Writes into x.
void turn(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, const RopeSpec& rope,
          bool inverse) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return rotate_on_cpu<float>(x, cos, sin, rope, inverse);
    case at::kBFloat16:
      return rotate_on_cpu<kernels::Bfloat16>(x, cos, sin, rope, inverse);
    default:
      return rotate_on_cpu<double>(x, cos, sin, rope, inverse);
  }
}

}  // namespace

RopeTable::RopeTable(std::vector<float> frequencies, double amplitude, at::Device device)
    : frequencies_(std::move(frequencies)), amplitude_(amplitude), device_(device) {}

std::pair<at::Tensor, at::Tensor> RopeTable::rows(std::int64_t first, std::int64_t tokens) {
  const std::int64_t needed = first + tokens;
  if (!cos_.defined() || cos_.size(0) < needed) {
    const std::int64_t count = std::max(needed, cos_.defined() ? 2 * cos_.size(0) : std::int64_t{64});
    const auto pairs = static_cast<std::int64_t>(frequencies_.size());
    const at::NoGradGuard no_grad;
    const at::Tensor cos = ops::empty({count, pairs}, at::kFloat),
                     sin = ops::empty({count, pairs}, at::kFloat);
    float* const c = cos.mutable_data_ptr<float>();
    float* const s = sin.mutable_data_ptr<float>();
    const auto amplitude = static_cast<float>(amplitude_);
    at::parallel_for(0, count, 64, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t p = begin; p < end; ++p) {
        for (std::int64_t i = 0; i < pairs; ++i) {
          const float angle = static_cast<float>(p) * frequencies_[static_cast<std::size_t>(i)];
          c[p * pairs + i] = static_cast<float>(std::cos(static_cast<double>(angle))) * amplitude;
          s[p * pairs + i] = static_cast<float>(std::sin(static_cast<double>(angle))) * amplitude;
        }
      }
    });
    cos_ = cos.to(device_);
    sin_ = sin.to(device_);
  }
  return {cos_.narrow(0, first, tokens), sin_.narrow(0, first, tokens)};
}

std::shared_ptr<RopeTable> RopeTables::get(const RopeSpec& rope, const at::Tensor& factors,
                                           at::Device device) {
  const std::vector<double> exact = rope.inverse_frequencies();
  std::vector<float> frequencies(exact.begin(), exact.end());
  if (factors.defined()) {
    if (factors.numel() != static_cast<std::int64_t>(frequencies.size())) {
      fail(ErrorCode::shape,
           fmt::format("the rotary factors have {} entries; expected {}, one a frequency", factors.numel(),
                       frequencies.size()),
           {.tensor = rope.factors_tensor});
    }
    const at::Tensor host = factors.detach().to(at::kCPU).to(at::kFloat).contiguous();
    const float* const divisors = host.const_data_ptr<float>();
    for (std::size_t i = 0; i < frequencies.size(); ++i) frequencies[i] /= divisors[i];
  }
  auto& table = tables_[{frequencies, rope.amplitude()}];
  if (!table) table = std::make_shared<RopeTable>(frequencies, rope.amplitude(), device);
  return table;
}

at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, const RopeSpec& rope,
                  bool in_place) {
  if (!x.is_cpu()) return composite(x, cos, sin, rope, false);
  at::Tensor y;
  {
    const at::NoGradGuard no_grad;
    y = in_place ? x : x.detach().clone();
    turn(y, cos, sin, rope, false);
  }
  if (in_place) return y;
  return differentiable(
      "RopeBackward", y, {x}, {cos, sin},
      [rope](const at::Tensor& dy, const std::vector<at::Tensor>& saved, const std::vector<bool>&) {
        if (at::GradMode::is_enabled()) {
          return std::vector<at::Tensor>{composite(dy, saved[0], saved[1], rope, true)};
        }
        at::Tensor dx = dy.clone(at::MemoryFormat::Contiguous);
        turn(dx, saved[0], saved[1], rope, true);
        return std::vector<at::Tensor>{dx};
      });
}

}  // namespace scalevec
