#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include <scalevec/core/dtype.h>
#include <scalevec/core/site.h>

namespace scalevec {

/// The learned scale of one norm site, with the model's convention attached.
///
/// Llama stores g; Gemma stores g - 1. `effective()` is the factor that the activation meets in both, and the
/// only one an edit may read. A value type; like at::Tensor, copies share storage, and the storage is the
/// model's.
class ScaleVector {
 public:
  /// stored: (site.width,), F64, F32, F16 or BF16, contiguous, any device; alpha where the site is
  /// parametrised by components, and beta, (1,), of its dtype, beside it. bias: as stored, or undefined.
  /// E_SHAPE or E_DTYPE otherwise.
  ScaleVector(Site site, at::Tensor stored, at::Tensor bias = {}, at::Tensor beta = {});

  const Site& site() const { return site_; }
  const std::string& address() const { return site_.address.str(); }
  std::int64_t width() const { return site_.width; }
  double offset() const { return site_.offset; }
  DType dtype() const { return dtype_; }

  /// (width,), as the model holds it: shared, do not write; edits go through a Transaction.
  const at::Tensor& stored() const { return stored_; }
  const at::Tensor& bias() const { return bias_; }
  const at::Tensor& beta() const { return beta_; }
  /// (width,), float64, on the CPU: a copy.
  at::Tensor effective() const;
  /// The stored bytes, little-endian, on the host, alpha's before beta's: a copy.
  std::vector<std::byte> bytes() const;
  /// A vector of this site with `bytes` in storage of its own, on the same device. E_SIZE.
  ScaleVector holding(std::span<const std::byte> bytes) const;
  /// See vector_digest (core/checkpoint/checkpoint.h): equal to the file's for an unedited vector.
  std::string digest() const;

  /// Replaces the stored bytes, in place, under no-grad, bumping the tensor's version. E_SIZE on another
  /// length. Only Transaction and ScaleMap::restore call this.
  void overwrite(std::span<const std::byte> bytes) const;

 private:
  Site site_;
  at::Tensor stored_;
  at::Tensor bias_, beta_;
  DType dtype_;
};

}  // namespace scalevec
