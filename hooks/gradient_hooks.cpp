#include <scalevec/hooks/gradient_hooks.h>

#include <ATen/core/grad_mode.h>

namespace scalevec {

bool GradientHooks::add(const at::Tensor& tensor, std::function<void(const at::Tensor&)> receive) {
  if (!at::GradMode::is_enabled() || !tensor.defined() || !tensor.requires_grad()) return false;
  const bool leaf = tensor.is_leaf();
  if (leaf) leaves_.reserve(leaves_.size() + 1);
  const unsigned handle = tensor.register_hook([receive = std::move(receive)](const at::Tensor& gradient) {
    if (gradient.defined()) receive(gradient.detach());
  });
  if (leaf) leaves_.emplace_back(tensor, handle);
  return true;
}

void GradientHooks::clear() noexcept {
  for (const auto& [tensor, handle] : leaves_) tensor.remove_hook(handle);
  leaves_.clear();
}

}  // namespace scalevec
