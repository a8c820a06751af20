#pragma once

#include <vector>

#include <ATen/core/Tensor.h>

#include <scalevec/analysis/line_sums.h>

namespace scalevec {

/// A tensor and AdamW's state of it, (..., columns), float32 on the CPU, dense.
struct AdamwMove {
  at::Tensor w, m, v, g;
  Lines* sums = nullptr;  // where the column sums of the step go, if anywhere
};

/// One step of torch.optim.AdamW on many tensors in place, `step` counted from 1. Where sums are wanted they
/// are those of column_sums, to the bit, from the same pass over memory. The same bits for any number of
/// threads, with sums and without. Counts a version of each parameter, by which others tell that what they
/// derived from it is stale.
void adamw(const std::vector<AdamwMove>& moves, double step, double rate, double beta1, double beta2,
           double eps, double weight_decay);

}  // namespace scalevec
