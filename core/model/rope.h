#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include <scalevec/core/model_spec.h>

namespace scalevec {

/// Cosines and sines of one set of frequencies, for positions from 0 on; grows as it is asked.
///
/// Frequencies are computed in float64; they, angles, cosines and sines are each rounded to float32, as in
/// transformers, in every compute dtype: models were trained with such tables.
class RopeTable {
 public:
  RopeTable(std::vector<float> frequencies, double amplitude, at::Device device);

  /// (tokens, pairs), float32, of positions first, first + 1, ...
  std::pair<at::Tensor, at::Tensor> rows(std::int64_t first, std::int64_t tokens);

 private:
  std::vector<float> frequencies_;
  double amplitude_;
  at::Device device_;
  at::Tensor cos_, sin_;
};

/// The tables of one model: layers with equal frequencies share one.
class RopeTables {
 public:
  /// factors: (rope.dimensions / 2,), divisors of the frequencies, or undefined. E_SHAPE.
  std::shared_ptr<RopeTable> get(const RopeSpec& rope, const at::Tensor& factors, at::Device device);

 private:
  std::map<std::pair<std::vector<float>, double>, std::shared_ptr<RopeTable>> tables_;
};

/// Rotates heads by their positions. x: (batch, tokens, heads, head_dim), contiguous, F32, BF16 or F64; cos,
/// sin: (tokens, rope.dimensions / 2), float32. With `in_place`, x itself is written and returned: only where
/// nobody else holds it and no gradient is recorded. The bits are the same either way. Differentiable twice.
at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, const RopeSpec& rope,
                  bool in_place);

}  // namespace scalevec
