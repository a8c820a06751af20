#pragma once

#include <ATen/core/Tensor.h>

#include <scalevec/core/site.h>

namespace scalevec {

/// The vector of a site that is parametrised by components (arXiv 2605.26895, section 4.2).
///
/// alpha: (width,), beta: (1,), of one floating dtype. Returns (width,) of that dtype, differentiable in
/// both: OR: beta * sqrt(width) * alpha / |alpha|, not a number where alpha is 0; ER: exp(beta) * exp(alpha -
/// mean(alpha)). E_CONFIG for another form.
at::Tensor compose(Parametrisation form, const at::Tensor& alpha, const at::Tensor& beta);

}  // namespace scalevec
