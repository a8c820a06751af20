#pragma once

#include <ATen/core/Tensor.h>

#include <scalevec/core/model_spec.h>

namespace scalevec {

/// Mean entropy, nats, of the attention of one text, over heads and positions (metric 38): 0 where each
/// position reads one alone, the mean of log(positions read) where it reads all alike. q: (tokens, heads,
/// head_dim), k: (tokens, kv_heads, head_dim), both after their norms and before RoPE, whose scaling tensor
/// is not for it. Scores are float32, as those of a model that trains, sums float64: tokens^2 exponentials
/// for each head. E_SHAPE.
double attention_entropy(const at::Tensor& q, const at::Tensor& k, const AttentionSpec& spec);

}  // namespace scalevec
