#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <scalevec/core/scale_vector.h>
#include <scalevec/core/selector.h>

namespace scalevec {

/// Every scale vector of one model, in forward order: the only door to a vector. Shares storage with the
/// model.
///
/// Remembers the vectors as they were when the map was made (the base): what a file held, so that edits name
/// it and a measurement can put it back.
class ScaleMap {
 public:
  ScaleMap() = default;
  explicit ScaleMap(std::vector<ScaleVector> vectors);

  std::size_t size() const { return vectors_.size(); }
  const ScaleVector& operator[](std::size_t index) const { return vectors_[index]; }
  auto begin() const { return vectors_.begin(); }
  auto end() const { return vectors_.end(); }

  /// By canonical address or native name; E_ADDR names the nearest three.
  const ScaleVector& at(std::string_view name) const;
  std::size_t index_of(std::string_view name) const;
  /// `Selection::site` indexes this map.
  std::vector<Selection> select(const Selector& selector) const;
  const std::vector<Site>& sites() const { return sites_; }

  /// Stored bytes and digest of vector `index` when the map was made.
  const std::vector<std::byte>& base_bytes(std::size_t index) const { return base_bytes_[index]; }
  const std::string& base_digest(std::size_t index) const { return base_digests_[index]; }
  /// The vector as it was, in storage of its own.
  ScaleVector base(std::size_t index) const { return vectors_[index].holding(base_bytes_[index]); }
  /// Puts the base back, bit for bit.
  void restore(std::size_t index) const;

 private:
  std::vector<ScaleVector> vectors_;
  std::vector<Site> sites_;
  std::vector<std::vector<std::byte>> base_bytes_;
  std::vector<std::string> base_digests_;
};

}  // namespace scalevec
