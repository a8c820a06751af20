#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

namespace scalevec {

/// Positions with the hashes of their names, sorted by hash, name and position: sorting and finding stay in
/// these few bytes, and names that were made to collide cost n log n, not n squared.
using NameOrder = std::vector<std::pair<std::uint64_t, std::uint32_t>>;

inline std::uint64_t name_hash(std::string_view name) { return std::hash<std::string_view>{}(name); }

/// name: from a position below `count` to its name.
template <class Name>
NameOrder order_by_name(std::size_t count, const Name& name) {
  NameOrder order;
  order.reserve(count);
  for (std::uint32_t i = 0; i < count; ++i) order.emplace_back(name_hash(name(i)), i);
  std::sort(order.begin(), order.end(), [&](const auto& a, const auto& b) {
    if (a.first != b.first) return a.first < b.first;
    const int compared = name(a.second).compare(name(b.second));
    return compared != 0 ? compared < 0 : a.second < b.second;
  });
  return order;
}

/// The position of a name.
template <class Name>
std::optional<std::uint32_t> find_name(const NameOrder& order, std::string_view wanted, const Name& name) {
  const std::uint64_t hash = name_hash(wanted);
  const auto at = std::partition_point(order.begin(), order.end(), [&](const auto& entry) {
    return entry.first != hash ? entry.first < hash : name(entry.second) < wanted;
  });
  if (at == order.end() || at->first != hash || name(at->second) != wanted) return std::nullopt;
  return at->second;
}

/// Of all names that stand twice, the two positions whose second comes first.
template <class Name>
std::optional<std::pair<std::uint32_t, std::uint32_t>> first_duplicate(const NameOrder& order,
                                                                       const Name& name) {
  std::optional<std::pair<std::uint32_t, std::uint32_t>> earliest;
  for (std::size_t i = 1; i < order.size(); ++i) {
    const auto& [hash_before, first] = order[i - 1];
    const auto& [hash, second] = order[i];
    if (hash_before != hash || name(first) != name(second)) continue;
    if (!earliest || second < earliest->second) earliest = std::pair{first, second};
  }
  return earliest;
}

}  // namespace scalevec
