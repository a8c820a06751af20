#include <scalevec/core/model/mixture.h>

#include <tuple>
#include <vector>

#include <scalevec/core/model/gated.h>
#include <scalevec/core/norm.h>
#include <scalevec/core/ops.h>

namespace scalevec {
namespace {

std::vector<std::int64_t> on_host(const at::Tensor& counts) {
  const at::Tensor host = counts.to(at::kCPU);
  const std::int64_t* const first = host.const_data_ptr<std::int64_t>();
  return {first, first + host.numel()};
}

}  // namespace

at::Tensor Mixture::operator()(const at::Tensor& router_input, const at::Tensor& gate_input,
                               const at::Tensor& up_input, RouterUse* use) const {
  const std::int64_t width = gate_input.size(-1), active = spec.active;
  const at::ScalarType dtype = norm_dtype(router_input.scalar_type());
  const at::Tensor probabilities =
      ops::linear(router_input.reshape({-1, width}).to(dtype), router.to(dtype), {}).softmax(-1);
  auto [weights, chosen] = probabilities.topk(active, -1);  // (tokens, active)
  if (spec.renormalise) weights = weights.div(weights.sum(-1, /*keepdim=*/true));

  // Choices in order of their expert, and where each choice went.
  const at::Tensor experts = chosen.reshape({-1});
  const at::Tensor order = experts.argsort(/*stable=*/true), place = order.argsort();
  const at::Tensor load = experts.bincount({}, spec.experts);
  if (use) {
    const at::Tensor share = load.to(dtype).div(static_cast<double>(experts.numel()));
    *use = {load, probabilities.mean(0).mul(share).sum().mul(static_cast<double>(spec.experts))};
  }

  const std::vector<std::int64_t> counts = on_host(load);
  const at::Tensor tokens = order.div(active, "floor");
  // Gradients of parts made at once are put together once, those of parts taken one by one as often as there
  // are experts.
  const auto parts = [&](const at::Tensor& input) {
    return input.reshape({-1, width}).index_select(0, tokens).split_with_sizes(counts);
  };
  const std::vector<at::Tensor> for_gate = parts(gate_input);
  const std::vector<at::Tensor> for_up = up_input.is_same(gate_input) ? for_gate : parts(up_input);
  const std::vector<at::Tensor> gates = gate.unbind(), ups = up.unbind(), downs = down.unbind();
  std::vector<at::Tensor> outputs;
  for (std::size_t e = 0; e < counts.size(); ++e) {
    if (counts[e] == 0) continue;
    at::Tensor g = ops::linear(for_gate[e], gates[e], {});
    const at::Tensor u = ops::linear(for_up[e], ups[e], {});
    const bool in_place = !g.requires_grad() && !u.requires_grad();
    outputs.push_back(ops::linear(gated(activation, std::move(g), u, in_place), downs[e], {}));
  }
  // Each token sums its own experts, the most probable first: no order of threads enters.
  const at::Tensor by_token = ops::cat(outputs, 0).index_select(0, place).view({-1, active, width});
  return by_token.mul(weights.to(by_token.scalar_type()).unsqueeze(-1)).sum(1).view(gate_input.sizes());
}

}  // namespace scalevec
