#pragma once

#include <vector>

#include <ATen/core/Tensor.h>

#include <scalevec/core/model/transformer.h>

namespace scalevec {

/// The balance loss of mixtures in a backward pass: `weight` times its mean over layers joins the loss.
struct Balance {
  double weight = 0.0;
  double value = 0.0;  // found: mean over layers, 1 where choices are even; 0 without mixtures
};

/// One forward and one backward: the gradient of `scale` times the summed losses is added to that of each
/// leaf, and to nothing else. ids, targets: (batch, tokens), int64; leaves: what the model computes with and
/// requires gradients. Logits and their gradient exist for a few rows at a time. Returns the sum of the
/// losses, nats.
double backward_loss(Transformer& model, const at::Tensor& ids, const at::Tensor& targets,
                     const std::vector<at::Tensor>& leaves, double scale, Balance* balance = nullptr);

/// The sum of the losses, nats, without gradients.
double sum_losses(Transformer& model, const at::Tensor& ids, const at::Tensor& targets);

}  // namespace scalevec
