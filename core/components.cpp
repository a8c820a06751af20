#include <scalevec/core/components.h>

#include <fmt/format.h>

#include <scalevec/core/error.h>

namespace scalevec {

at::Tensor compose(Parametrisation form, const at::Tensor& alpha, const at::Tensor& beta) {
  switch (form) {
    case Parametrisation::magnitude_direction:
      return alpha.mul(beta.div(alpha.square().mean().sqrt()));
    case Parametrisation::exponential:
      return alpha.sub(alpha.mean()).add(beta).exp();
    default:
      fail(ErrorCode::config,
           fmt::format("a vector that is {} has no components", parametrisation_name(form)));
  }
}

}  // namespace scalevec
