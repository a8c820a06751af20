#include <scalevec/core/model/gated.h>

#include <utility>

#include <scalevec/core/ops.h>

namespace scalevec {

at::Tensor gated(Activation activation, at::Tensor gate, const at::Tensor& up, bool in_place) {
  gate = activation == Activation::silu ? ops::silu(std::move(gate), in_place)
                                        : ops::gelu_tanh(std::move(gate), in_place);
  return in_place ? gate.mul_(up) : gate.mul(up);
}

}  // namespace scalevec
