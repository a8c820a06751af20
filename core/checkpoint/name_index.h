#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <string_view>
#include <utility>
#include <vector>

#include <scalevec/core/checkpoint/tensor_file.h>

namespace scalevec {

/// Finds tensors by name, compared byte by byte. Sixteen bytes per tensor, and n log n also for names that
/// were made to collide. Positions are those of the vector that it was built from, which must not change
/// after.
class NameIndex {
 public:
  NameIndex() = default;
  explicit NameIndex(const std::vector<TensorInfo>& tensors) {
    entries_.reserve(tensors.size());
    for (std::size_t i = 0; i < tensors.size(); ++i) entries_.emplace_back(hash(tensors[i].name), i);
    std::sort(entries_.begin(), entries_.end(), [&](const Entry& a, const Entry& b) {
      if (a.first != b.first) return a.first < b.first;
      const int order = tensors[a.second].name.compare(tensors[b.second].name);
      return order != 0 ? order < 0 : a.second < b.second;
    });
  }

  /// The first tensor of that name, or null.
  const TensorInfo* find(const std::vector<TensorInfo>& tensors, std::string_view name) const {
    const auto before = [&](const Entry& entry, const std::pair<std::uint64_t, std::string_view>& wanted) {
      if (entry.first != wanted.first) return entry.first < wanted.first;
      return tensors[entry.second].name < wanted.second;
    };
    const auto at = std::lower_bound(entries_.begin(), entries_.end(), std::pair{hash(name), name}, before);
    return at != entries_.end() && tensors[at->second].name == name ? &tensors[at->second] : nullptr;
  }

 private:
  using Entry = std::pair<std::uint64_t, std::size_t>;
  static std::uint64_t hash(std::string_view name) { return std::hash<std::string_view>{}(name); }
  std::vector<Entry> entries_;
};

}  // namespace scalevec
