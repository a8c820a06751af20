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
/// read or gave in a forward of `batches`, (windows, context) ids each; else the logits. `when` begins the
/// message.
[[noreturn]] void fail_for_loss(std::string_view when, double loss, const Optimizer& optimizer,
                                Transformer& model, const std::vector<at::Tensor>& batches);

bool all_finite(const Optimizer& optimizer);
/// E_VALUE with the first parameter, in forward order, that is not finite: what has one is no state to go on
/// from.
void check_finite(const Optimizer& optimizer);

}  // namespace scalevec
