#pragma once

#include <functional>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

namespace scalevec {

/// Functions that are called with gradients in later backward passes.
///
/// A hook on a tensor inside a graph lives and dies with the graph, so its function must hold what it writes
/// to weakly. A hook on a leaf would stay on it for ever: these are remembered and taken off again.
class GradientHooks {
 public:
  GradientHooks() = default;
  ~GradientHooks() { clear(); }
  GradientHooks(const GradientHooks&) = delete;
  GradientHooks& operator=(const GradientHooks&) = delete;

  /// False, and nothing is done, where no gradient will reach `tensor`. `receive` gets the whole gradient of
  /// one backward pass, detached.
  bool add(const at::Tensor& tensor, std::function<void(const at::Tensor&)> receive);
  /// Takes the hooks off every leaf.
  void clear() noexcept;

 private:
  std::vector<std::pair<at::Tensor, unsigned>> leaves_;
};

}  // namespace scalevec
