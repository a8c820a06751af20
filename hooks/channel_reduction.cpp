#include <scalevec/hooks/channel_reduction.h>

#include <algorithm>
#include <string>

#include <ATen/core/grad_mode.h>
#include <c10/core/ScalarType.h>
#include <fmt/format.h>

#include <scalevec/core/error.h>

namespace scalevec {
namespace {

// Entries that are widened to float64 at once: 2 MiB, so that the copy stays in a processor's cache.
constexpr std::int64_t block_entries = 1 << 18;

std::int64_t channels_of(const at::Tensor& values, const at::Tensor& before) {
  if (!at::isFloatingType(values.scalar_type())) {
    fail(ErrorCode::dtype, "only floating values can be reduced by channel",
         {.expected = "a floating dtype", .found = c10::toString(values.scalar_type())});
  }
  const std::int64_t channels = values.dim() == 0 ? 0 : values.size(-1);
  if (channels < 1 || (before.defined() && before.size(0) != channels)) {
    const std::string expected =
        before.defined() ? fmt::format("{} channels", before.size(0)) : std::string("at least one channel");
    fail(ErrorCode::shape,
         fmt::format("a reduction by channel met rows of {} channels; expected {}", channels, expected),
         {.expected = expected, .found = std::to_string(channels)});
  }
  return channels;
}

// Calls `use` with one block of float64 rows after the other.
template <class Use>
void by_block(std::int64_t rows, std::int64_t channels, Use use) {
  const std::int64_t step = std::max<std::int64_t>(1, block_entries / channels);
  for (std::int64_t first = 0; first < rows; first += step) use(first, std::min(step, rows - first));
}

// Out of place, so that a copy of a reduction stays as it was.
void accumulate(at::Tensor& total, const at::Tensor& more) {
  total = total.defined() ? total.add(more.to(total.device())) : more;
}

void extend(at::Tensor& extreme, const at::Tensor& more, bool upwards) {
  if (!extreme.defined()) {
    extreme = more;
    return;
  }
  const at::Tensor here = more.to(extreme.device());
  extreme = upwards ? extreme.maximum(here) : extreme.minimum(here);
}

}  // namespace

void ChannelReduction::add(const at::Tensor& values) {
  const at::NoGradGuard no_grad;
  const std::int64_t channels = channels_of(values, sum_);
  const at::Tensor rows = values.detach().reshape({-1, channels});
  by_block(rows.size(0), channels, [&](std::int64_t first, std::int64_t length) {
    const at::Tensor block = rows.narrow(0, first, length).to(at::kDouble);
    accumulate(sum_, block.sum(0));
    accumulate(sum_of_squares_, block.mul(block).sum(0));
    extend(minimum_, block.amin(0), false);
    extend(maximum_, block.amax(0), true);
    count_ += length;
  });
}

void ChannelReduction::add_product(const at::Tensor& values, const at::Tensor& gradient) {
  const at::NoGradGuard no_grad;
  const std::int64_t channels = channels_of(values, product_);
  channels_of(gradient, product_);
  if (values.sizes() != gradient.sizes()) {
    fail(ErrorCode::shape, "a product needs a gradient of the values' own shape");
  }
  const at::Tensor rows = values.detach().reshape({-1, channels});
  const at::Tensor slopes = gradient.detach().reshape({-1, channels});
  by_block(rows.size(0), channels, [&](std::int64_t first, std::int64_t length) {
    const at::Tensor block = rows.narrow(0, first, length).to(at::kDouble);
    accumulate(product_, block.mul(slopes.narrow(0, first, length).to(at::kDouble)).sum(0));
    product_count_ += length;
  });
}

void ChannelReduction::merge(const ChannelReduction& other) {
  const at::NoGradGuard no_grad;
  if (other.sum_.defined()) {
    channels_of(other.sum_, sum_);
    accumulate(sum_, other.sum_);
    accumulate(sum_of_squares_, other.sum_of_squares_);
    extend(minimum_, other.minimum_, false);
    extend(maximum_, other.maximum_, true);
    count_ += other.count_;
  }
  if (other.product_.defined()) {
    channels_of(other.product_, product_);
    accumulate(product_, other.product_);
    product_count_ += other.product_count_;
  }
}

const at::Tensor& ChannelReduction::need(const at::Tensor& figure) const {
  if (!figure.defined()) {
    fail(ErrorCode::state, "nothing was added to this reduction yet: run the model while it is watched");
  }
  return figure;
}

at::Tensor ChannelReduction::sum() const { return need(sum_).clone(); }
at::Tensor ChannelReduction::sum_of_squares() const { return need(sum_of_squares_).clone(); }
at::Tensor ChannelReduction::minimum() const { return need(minimum_).clone(); }
at::Tensor ChannelReduction::maximum() const { return need(maximum_).clone(); }
at::Tensor ChannelReduction::max_abs() const { return need(minimum_).abs().maximum(need(maximum_).abs()); }
at::Tensor ChannelReduction::mean() const { return need(sum_).div(static_cast<double>(count_)); }
at::Tensor ChannelReduction::mean_square() const {
  return need(sum_of_squares_).div(static_cast<double>(count_));
}

at::Tensor ChannelReduction::product() const {
  if (!product_.defined()) {
    fail(ErrorCode::state,
         "no gradient reached this reduction: ask for products when it is made, run the model with grad mode "
         "on and "
         "something before the norm that requires gradients, then call backward");
  }
  return product_.clone();
}

}  // namespace scalevec
