#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include <scalevec/core/model/transformer.h>

namespace scalevec {

/// Keys and values of one layer, rows in order of position. What is appended counts only once committed, so a
/// forward that fails leaves the cache as it was.
class LayerCache {
 public:
  /// k, v: (1, tokens, heads, head_dim). Returns those of all held positions, then the new ones. With a
  /// window, rows that no later position sees are let go.
  std::pair<at::Tensor, at::Tensor> append(const at::Tensor& k, const at::Tensor& v, std::int64_t window);
  void commit(std::int64_t tokens) { rows_ += tokens; }

 private:
  at::Tensor k_, v_;  // (1, capacity, heads, head_dim)
  std::int64_t rows_ = 0;
};

struct KvCache::State {
  std::uint64_t model = 0;  // which Transformer filled it; 0: none yet
  std::vector<std::int64_t> ids;
  std::vector<std::uint32_t> versions;  // of the vectors, when they were read
  std::uint64_t lending = 0;            // ObserverList::lending_generation, likewise
  std::vector<LayerCache> layers;
};

}  // namespace scalevec
