#include <scalevec/core/scale_vector.h>

#include <cstring>
#include <utility>

#include <ATen/core/grad_mode.h>
#include <c10/core/ScalarType.h>
#include <fmt/format.h>

#include <scalevec/core/checkpoint/checkpoint.h>
#include <scalevec/core/components.h>
#include <scalevec/core/error.h>
#include <scalevec/core/torch_dtype.h>

namespace scalevec {
namespace {

DType stored_dtype(const at::Tensor& stored, const std::string& address) {
  if (const std::optional<DType> dtype = file_dtype(stored.scalar_type())) return *dtype;
  fail(
      ErrorCode::dtype,
      fmt::format("scale vector '{}' is stored as {}; expected F64, F32, F16 or BF16. Convert it to one of "
                  "these before it becomes part of the model.",
                  address, c10::toString(stored.scalar_type())),
      {.tensor = address, .expected = "F64, F32, F16 or BF16", .found = c10::toString(stored.scalar_type())});
}

std::string shape_text(const at::Tensor& tensor) {
  if (!tensor.defined()) return "no tensor";
  std::string out;
  for (const std::int64_t size : tensor.sizes()) out += (out.empty() ? "" : ", ") + std::to_string(size);
  return "[" + out + "]";
}

void check(const Site& site, const at::Tensor& tensor, std::int64_t width, std::string_view what) {
  const std::string& address = site.address.str();
  if (!tensor.defined() || tensor.dim() != 1 || tensor.size(0) != width || width < 1) {
    const std::string found = shape_text(tensor);
    const std::string expected = fmt::format("[{}]", width);
    fail(ErrorCode::shape,
         fmt::format(
             "the {} of '{}' has shape {}; expected {} as the site says. A norm without a vector has width 0 "
             "and belongs in no scale map.",
             what, address, found, expected),
         {.tensor = address, .expected = expected, .found = found});
  }
  if (!tensor.is_contiguous()) {
    fail(ErrorCode::shape,
         fmt::format(
             "the {} of '{}' is not contiguous (stride {}); make it contiguous in the model first, since the "
             "map shares its storage.",
             what, address, tensor.stride(0)),
         {.tensor = address, .expected = "stride 1", .found = fmt::format("stride {}", tensor.stride(0))});
  }
}

}  // namespace

ScaleVector::ScaleVector(Site site, at::Tensor stored, at::Tensor bias, at::Tensor beta)
    : site_(std::move(site)),
      stored_(std::move(stored)),
      bias_(std::move(bias)),
      beta_(std::move(beta)),
      dtype_(DType::f32) {
  check(site_, stored_, site_.width, "scale vector");
  dtype_ = stored_dtype(stored_, address());
  if (bias_.defined()) {
    check(site_, bias_, site_.width, "bias");
    stored_dtype(bias_, address());
  }
  if (in_one_tensor(site_.parametrisation)) return;
  check(site_, beta_, 1, "beta");
  if (stored_dtype(beta_, address()) != dtype_) {
    fail(ErrorCode::dtype, fmt::format("alpha of '{}' is {}, and beta is not", address(), dtype_name(dtype_)),
         {.tensor = address(), .expected = std::string(dtype_name(dtype_))});
  }
}

at::Tensor ScaleVector::effective() const {
  const at::NoGradGuard no_grad;
  const auto wide = [](const at::Tensor& tensor) {
    return tensor.detach().to(at::TensorOptions(at::kCPU).dtype(at::kDouble), false, /*copy=*/true);
  };
  at::Tensor values = wide(stored_);
  if (!in_one_tensor(site_.parametrisation)) return compose(site_.parametrisation, values, wide(beta_));
  // Adding 0.0 would turn -0.0 into +0.0.
  if (offset() != 0.0) values.add_(offset());
  return values;
}

std::vector<std::byte> ScaleVector::bytes() const {
  const at::NoGradGuard no_grad;
  std::vector<std::byte> out;
  for (const at::Tensor& tensor : {stored_, beta_}) {
    if (!tensor.defined()) continue;
    const at::Tensor host = tensor.detach().cpu();
    const auto* const data = static_cast<const std::byte*>(host.const_data_ptr());
    out.insert(out.end(), data, data + host.nbytes());
  }
  return out;
}

std::string ScaleVector::digest() const { return vector_digest(dtype_, width(), offset(), bytes()); }

ScaleVector ScaleVector::holding(std::span<const std::byte> bytes) const {
  const at::NoGradGuard no_grad;
  const auto like = [](const at::Tensor& tensor) {
    return tensor.defined() ? tensor.new_empty(tensor.sizes()) : tensor;
  };
  const ScaleVector made(site_, like(stored_), bias_, like(beta_));
  made.overwrite(bytes);
  return made;
}

void ScaleVector::overwrite(std::span<const std::byte> bytes) const {
  const std::size_t expected = stored_.nbytes() + (beta_.defined() ? beta_.nbytes() : 0);
  if (bytes.size() != expected) {
    fail(ErrorCode::size,
         fmt::format("overwriting '{}' takes {} bytes ({}), not {}", address(), expected, dtype_name(dtype_),
                     bytes.size()),
         {.tensor = address(),
          .expected = fmt::format("{} bytes", expected),
          .found = fmt::format("{} bytes", bytes.size())});
  }
  const at::NoGradGuard no_grad;
  const auto fill = [](const at::Tensor& tensor, std::span<const std::byte> from) {
    const at::Tensor source = tensor.new_empty(tensor.sizes(), at::TensorOptions(at::kCPU));
    std::memcpy(source.mutable_data_ptr(), from.data(), from.size());
    tensor.copy_(source);  // the same dtype on both sides: bits are moved, none converted
  };
  fill(stored_, bytes.first(stored_.nbytes()));
  if (beta_.defined()) fill(beta_, bytes.subspan(stored_.nbytes()));
}

}  // namespace scalevec
