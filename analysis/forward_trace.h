#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include <scalevec/analysis/tracer.h>
#include <scalevec/core/model/transformer.h>
#include <scalevec/core/observer.h>

namespace scalevec {

/// Shows a Tracer what maps read, where inputs are traced, and how attention spreads, in the forward passes
/// of training steps: those that record a graph.
class ForwardTrace final : public NormObserver {
 public:
  /// step: of the pass at hand, counted from 1; 0 for one of no step. The tracer and the model's spec must
  /// outlive it.
  ForwardTrace(const Transformer& model, Tracer& tracer, bool inputs, std::function<std::int64_t()> step);

  unsigned wants(std::size_t site) const override;
  void see(const NormEvent& event) override;

 private:
  const ModelSpec& spec_;
  Tracer& tracer_;
  std::function<std::int64_t()> step_;
  std::vector<unsigned> wanted_;  // by site, parts of a pass
  // Of sites of keys, the site of their queries and its address.
  std::map<std::size_t, std::pair<std::size_t, std::string>> queries_of_;
  std::map<std::size_t, std::int64_t> entropy_of_;  // of sites of queries, the step in which it was noted
  at::Tensor queries_;                              // seen, and not yet met by their keys
};

}  // namespace scalevec
