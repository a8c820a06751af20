#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <doctest/doctest.h>
#include <readers/errors.h>
#include <support/tensors.h>

#include <scalevec/core/checkpoint/checkpoint.h>
#include <scalevec/core/dtype.h>
#include <scalevec/core/scale_vector.h>

using scalevec::DType;
using scalevec::ErrorCode;
using scalevec::Parametrisation;
using scalevec::ScaleVector;
using scalevec::Site;

namespace {

Site site(std::int64_t width, double offset = 0.0) {
  Site s;
  s.address = scalevec::Address::parse("layers.0.attn.input_norm");
  s.native = "model.layers.0.input_layernorm.weight";
  s.width = s.group = width;
  s.offset = offset;
  s.parametrisation = offset == 0.0 ? Parametrisation::plain : Parametrisation::offset;
  return s;
}

// All bit patterns of a 16-bit dtype, or many of a wider one: NaN payloads, subnormals, both zeros.
std::vector<std::byte> patterns(DType dtype) {
  std::vector<std::byte> bytes;
  const std::size_t each = scalevec::scale_dtype_bytes(dtype);
  for (unsigned i = 0; i < 65536; ++i) {
    for (std::size_t b = 0; b < each; ++b) {
      const bool high = b + 2 >= each;
      bytes.push_back(static_cast<std::byte>(high ? i >> (8 * (b + 2 - each)) : i * (b + 37)));
    }
  }
  return bytes;
}

at::Tensor of_bytes(std::vector<std::byte>& bytes, at::ScalarType dtype) {
  const auto count = static_cast<std::int64_t>(bytes.size() / c10::elementSize(dtype));
  return at::from_blob(bytes.data(), {count}, at::TensorOptions(dtype)).clone();
}

}  // namespace

TEST_CASE("scale vector: stored bytes go in and out bit for bit, NaN payloads and -0.0 included") {
  const std::pair<DType, at::ScalarType> dtypes[] = {{DType::f64, at::kDouble},
                                                     {DType::f32, at::kFloat},
                                                     {DType::f16, at::kHalf},
                                                     {DType::bf16, at::kBFloat16}};
  for (const auto& [dtype, scalar] : dtypes) {
    CAPTURE(std::string(scalevec::dtype_name(dtype)));
    std::vector<std::byte> bytes = patterns(dtype);
    const ScaleVector vector(site(65536), of_bytes(bytes, scalar));
    CHECK(vector.dtype() == dtype);
    CHECK(vector.bytes() == bytes);

    std::vector<std::byte> other(bytes.rbegin(), bytes.rend());
    const auto version = vector.stored()._version();
    const void* const storage = vector.stored().const_data_ptr();
    vector.overwrite(other);
    CHECK(vector.bytes() == other);
    CHECK(vector.stored().const_data_ptr() == storage);
    CHECK(vector.stored()._version() > version);

    // Our own decoder of files agrees with LibTorch's conversion, where there are numbers.
    const std::vector<double> decoded = scalevec::decode(dtype, other);
    const at::Tensor effective = vector.effective();
    const double* const values = effective.const_data_ptr<double>();
    bool equal = true;
    for (std::size_t i = 0; i < decoded.size(); ++i) {
      equal = equal && (std::isnan(decoded[i]) ? std::isnan(values[i])
                                               : std::memcmp(&decoded[i], &values[i], sizeof(double)) == 0);
    }
    CHECK(equal);
  }
}

TEST_CASE("scale vector: effective adds the offset in float64 and copies") {
  // In bfloat16 or float32 these small values would vanish beside 1.
  const at::Tensor stored = vector_of({0.0, 0x1p-30, -0x1p-40, -1.0}, at::kBFloat16);
  const ScaleVector vector(site(4, 1.0), stored);
  const at::Tensor effective = vector.effective();
  CHECK(effective.equal(vector_of({1.0, 1.0 + 0x1p-30, 1.0 - 0x1p-40, 0.0})));
  effective.fill_(7.0);
  CHECK(vector.effective().select(0, 0).item<double>() == 1.0);

  const ScaleVector plain(site(2), vector_of({-0.0, 0.5}));
  CHECK(std::signbit(plain.effective().select(0, 0).item<double>()));
  CHECK(plain.effective().const_data_ptr() != plain.stored().const_data_ptr());
}

TEST_CASE("scale vector: copies share the model's storage; a write under no-grad keeps requires_grad") {
  const at::Tensor parameter = vector_of({1.0, 2.0}, at::kFloat).requires_grad_();
  const ScaleVector vector(site(2), parameter);
  const ScaleVector copy = vector;  // NOLINT: the copy is what is tested
  const std::vector<float> values = {3.0F, 4.0F};
  copy.overwrite(std::as_bytes(std::span(values)));
  CHECK(parameter.requires_grad());
  CHECK(parameter.is_leaf());
  CHECK(parameter.detach().equal(vector_of({3.0, 4.0}, at::kFloat)));
  CHECK_FALSE(vector.effective().requires_grad());
}

TEST_CASE("scale vector: a write between forward and backward is noticed by autograd") {
  const at::Tensor parameter = vector_of({1.0, 2.0}).requires_grad_();
  const ScaleVector vector(site(2), parameter);
  const at::Tensor loss = parameter.mul(parameter).sum();
  vector.overwrite(vector.bytes());
  CHECK_THROWS_WITH(loss.backward(), doctest::Contains("modified by an inplace operation"));
}

TEST_CASE(
    "scale vector: the digest is that of a file with the same bytes, and sees every bit and the offset") {
  std::vector<std::byte> bytes = patterns(DType::bf16);
  const ScaleVector vector(site(65536), of_bytes(bytes, at::kBFloat16));
  CHECK(vector.digest() == scalevec::vector_digest(DType::bf16, 65536, 0.0, bytes));
  const ScaleVector offset(site(65536, 1.0), vector.stored());
  CHECK(offset.digest() != vector.digest());
  const std::string before = vector.digest();
  bytes[77] ^= std::byte{1};
  vector.overwrite(bytes);
  CHECK(vector.digest() != before);
}

TEST_CASE("scale vector: what does not fit is refused, by address") {
  const auto address = site(2).address.str();
  const auto shape = [&](const at::Tensor& stored) {
    CHECK(refusal([&] { ScaleVector(site(2), stored); }, ErrorCode::shape).tensor == address);
  };
  shape({});
  shape(vector_of({1.0, 2.0, 3.0}));
  shape(tensor({1.0, 2.0}, {1, 2}));
  shape(tensor({1.0, 2.0, 3.0, 4.0}, {2, 2}).select(1, 0));  // stride 2
  CHECK(refusal([&] { ScaleVector(site(0), tensor({}, {0})); }, ErrorCode::shape).tensor == address);
  for (const at::ScalarType dtype : {at::kInt, at::kFloat8_e4m3fn, at::kComplexFloat, at::kBool}) {
    CHECK(refusal(
              [&] {
                ScaleVector(site(2), vector_of({1.0, 2.0}, dtype));
              },
              ErrorCode::dtype)
              .tensor == address);
  }
  refusal([&] { ScaleVector(site(2), vector_of({1.0, 2.0}), vector_of({1.0})); }, ErrorCode::shape);
  refusal(
      [&] {
        ScaleVector(site(2), vector_of({1.0, 2.0}), vector_of({1.0, 1.0}, at::kInt));
      },
      ErrorCode::dtype);

  const ScaleVector vector(site(2), vector_of({1.0, 2.0}));
  const auto fields = refusal([&] { vector.overwrite(std::vector<std::byte>(15)); }, ErrorCode::size);
  CHECK(fields.expected == "16 bytes");
  CHECK(fields.found == "15 bytes");

  Site direction = site(2);
  direction.parametrisation = Parametrisation::magnitude_direction;
  refusal([&] { ScaleVector(direction, vector_of({1.0, 2.0})); }, ErrorCode::shape);  // no beta
  refusal(
      [&] {
        ScaleVector(direction, vector_of({1.0, 2.0}), {}, vector_of({1.0}, at::kFloat));
      },
      ErrorCode::dtype);
}
