#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include <ATen/core/Tensor.h>

#include <scalevec/core/model/transformer.h>
#include <scalevec/trainer/optimizer.h>

namespace scalevec {

/// Whether a forward pass comes to one slot's tensor before the other's. A backward pass goes the other way:
/// of gradients that are not finite, the last in this order is the one that the others have it from.
bool comes_before(std::string_view slot, std::string_view other);

/// E_VALUE with the first tensor that is not finite: a parameter, in forward order; else what a norm site
/// read or gave in a forward of `batches`, (windows, context) ids each; else the logits.
[[noreturn]] void fail_for_loss(std::int64_t step, double loss, const Optimizer& optimizer,
                                Transformer& model, const std::vector<at::Tensor>& batches);

}  // namespace scalevec
