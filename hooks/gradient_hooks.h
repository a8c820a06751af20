#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include <ATen/core/Tensor.h>

namespace scalevec {

/// Functions that are called with gradients in later backward passes.
///
/// A hook on a tensor inside a graph lives and dies with the graph, so its function must hold what it writes
/// to weakly. On a leaf it would stay for ever: these functions are remembered and taken off again.
class GradientHooks {
 public:
  /// Gets the whole gradient of one backward pass, detached.
  using Receive = std::function<void(const at::Tensor&)>;

  GradientHooks() = default;
  ~GradientHooks() { clear(); }
  GradientHooks(const GradientHooks&) = delete;
  GradientHooks& operator=(const GradientHooks&) = delete;

  /// False, and nothing is done, where no gradient will reach `tensor`.
  bool add(const at::Tensor& tensor, Receive receive);
  /// Takes the functions off every leaf.
  void clear() noexcept;

 private:
  class Leaf;
  struct OnLeaf {
    at::Tensor tensor;  // as long as it lives, no other has its address
    std::shared_ptr<Leaf> leaf;
    std::uint64_t key;
  };
  std::vector<OnLeaf> leaves_;
};

}  // namespace scalevec
