#include <scalevec/core/scale_vector.h>

#include <cstring>
#include <utility>

#include <ATen/core/grad_mode.h>
#include <c10/core/ScalarType.h>
#include <fmt/format.h>

#include <scalevec/core/checkpoint/checkpoint.h>
#include <scalevec/core/error.h>

namespace scalevec {
namespace {

DType stored_dtype(const at::Tensor& stored, const std::string& address) {
  switch (stored.scalar_type()) {
    case at::kDouble:
      return DType::f64;
    case at::kFloat:
      return DType::f32;
    case at::kHalf:
      return DType::f16;
    case at::kBFloat16:
      return DType::bf16;
    default:
      fail(ErrorCode::dtype,
           fmt::format(
               "scale vector '{}' is stored as {}; expected F64, F32, F16 or BF16. Convert it to one of "
               "these before it becomes part of the model.",
               address, c10::toString(stored.scalar_type())),
           {.tensor = address,
            .expected = "F64, F32, F16 or BF16",
            .found = c10::toString(stored.scalar_type())});
  }
}

std::string shape_text(const at::Tensor& tensor) {
  if (!tensor.defined()) return "no tensor";
  std::string out;
  for (const std::int64_t size : tensor.sizes()) out += (out.empty() ? "" : ", ") + std::to_string(size);
  return "[" + out + "]";
}

void check(const Site& site, const at::Tensor& tensor, std::string_view what) {
  const std::string& address = site.address.str();
  if (!tensor.defined() || tensor.dim() != 1 || tensor.size(0) != site.width || site.width < 1) {
    const std::string found = shape_text(tensor);
    const std::string expected = fmt::format("[{}]", site.width);
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

ScaleVector::ScaleVector(Site site, at::Tensor stored, at::Tensor bias)
    : site_(std::move(site)), stored_(std::move(stored)), bias_(std::move(bias)), dtype_(DType::f32) {
  check(site_, stored_, "scale vector");
  dtype_ = stored_dtype(stored_, address());
  if (bias_.defined()) {
    check(site_, bias_, "bias");
    stored_dtype(bias_, address());
  }
}

at::Tensor ScaleVector::effective() const {
  require_one_tensor(site_);
  const at::NoGradGuard no_grad;
  at::Tensor values =
      stored_.detach().to(at::TensorOptions(at::kCPU).dtype(at::kDouble), false, /*copy=*/true);
  // Adding 0.0 would turn -0.0 into +0.0.
  if (offset() != 0.0) values.add_(offset());
  return values;
}

std::vector<std::byte> ScaleVector::bytes() const {
  const at::NoGradGuard no_grad;
  const at::Tensor host = stored_.detach().cpu();
  std::vector<std::byte> out(host.nbytes());
  std::memcpy(out.data(), host.const_data_ptr(), out.size());
  return out;
}

std::string ScaleVector::digest() const { return vector_digest(dtype_, width(), offset(), bytes()); }

void ScaleVector::overwrite(std::span<const std::byte> bytes) const {
  if (bytes.size() != stored_.nbytes()) {
    fail(ErrorCode::size,
         fmt::format("overwriting '{}' takes {} bytes ({} x {}), not {}", address(), stored_.nbytes(),
                     width(), dtype_name(dtype_), bytes.size()),
         {.tensor = address(),
          .expected = fmt::format("{} bytes", stored_.nbytes()),
          .found = fmt::format("{} bytes", bytes.size())});
  }
  const at::NoGradGuard no_grad;
  const at::Tensor source = stored_.new_empty({width()}, at::TensorOptions(at::kCPU));
  std::memcpy(source.mutable_data_ptr(), bytes.data(), bytes.size());
  stored_.copy_(source);  // the same dtype on both sides: bits are moved, none converted
}

}  // namespace scalevec
