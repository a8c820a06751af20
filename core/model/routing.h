#pragma once

#include <cstddef>
#include <map>

#include <ATen/core/Tensor.h>

namespace scalevec {

/// What the router of one layer did in one forward.
struct RouterUse {
  /// (experts,), int64: tokens sent to each expert; their sum is tokens * active.
  at::Tensor load;
  /// Scalar, float32 (float64 when that is the compute dtype), differentiable: experts * sum_e f_e P_e, f_e
  /// the share of choices that fell on e, P_e the mean probability of e (Fedus et al., arXiv 2101.03961,
  /// equation 4). 1 where choices are even. A trainer adds it to the loss, times a coefficient of its own.
  at::Tensor balance;
};

/// By layer; dense layers have none.
using Routing = std::map<std::size_t, RouterUse>;

}  // namespace scalevec
