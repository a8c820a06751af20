#pragma once

#include <ATen/core/Tensor.h>

namespace scalevec {

/// The ranks that train one model together, each with its share of every batch. This one is alone; others
/// come from a process group.
class Collective {
 public:
  virtual ~Collective() = default;
  virtual int rank() const { return 0; }
  virtual int size() const { return 1; }
  /// The sum over ranks, in place, the same bits on each. Ranks call it in the same order.
  virtual void sum(at::Tensor& /*tensor*/) {}
};

}  // namespace scalevec
