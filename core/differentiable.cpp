// The one source that sees autograd's own headers: they cost six seconds.
#include <scalevec/core/differentiable.h>

#include <memory>
#include <string>
#include <utility>

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

namespace scalevec {
namespace {

using torch::autograd::variable_list;

class DifferentiableNode final : public torch::autograd::Node {
 public:
  DifferentiableNode(const char* name, const std::vector<at::Tensor>& saved, Backward backward)
      : name_(name), backward_(std::move(backward)) {
    saved_.reserve(saved.size());
    for (const at::Tensor& tensor : saved) saved_.emplace_back(tensor, /*is_output=*/false);
  }

  std::string name() const override { return name_; }
  void release_variables() override {
    for (auto& variable : saved_) variable.reset_data();
  }

 protected:
  variable_list apply(variable_list&& grads) override {
    if (!grads[0].defined()) return variable_list(num_outputs());
    std::vector<at::Tensor> saved;
    for (const auto& variable : saved_) saved.push_back(variable.unpack());
    std::vector<bool> wanted;
    for (std::size_t i = 0; i < num_outputs(); ++i) wanted.push_back(task_should_compute_output(i));
    return backward_(grads[0], saved, wanted);
  }

 private:
  const char* name_;
  Backward backward_;
  std::vector<torch::autograd::SavedVariable> saved_;
};

}  // namespace

at::Tensor differentiable(const char* name, at::Tensor output, const std::vector<at::Tensor>& inputs,
                          const std::vector<at::Tensor>& saved, Backward backward) {
  bool recorded = false;
  for (const at::Tensor& input : inputs) recorded = recorded || (input.defined() && input.requires_grad());
  if (!recorded || !at::GradMode::is_enabled()) return output;
  auto node = std::shared_ptr<DifferentiableNode>(new DifferentiableNode(name, saved, std::move(backward)),
                                                  torch::autograd::deleteNode);
  torch::autograd::edge_list edges;
  for (const at::Tensor& input : inputs) {
    edges.push_back(input.defined() ? torch::autograd::impl::gradient_edge(input) : torch::autograd::Edge{});
  }
  node->set_next_edges(std::move(edges));
  torch::autograd::set_history(output, node);
  return output;
}

}  // namespace scalevec
