#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <scalevec/core/site.h>
#include <scalevec/core/store/results_file.h>

namespace scalevec {

/// What a trace holds of one step: one number of the run, one of each site, or one of each channel of each
/// site.
struct TraceColumn {
  enum class Per { run, site, channel };
  using Type = hdf5::Number;

  std::string name;  // the dataset's: letters, digits and _
  std::string unit;
  std::string description;
  Per per = Per::site;
  Type type = Type::f32;
};
std::string_view trace_per_name(TraceColumn::Per per);     // "run", "site", "channel"
std::string_view trace_type_name(TraceColumn::Type type);  // "float32", "float64", "int64"

/// What stays the same while a trace grows.
struct TraceHeader {
  ResultsFile::Header run;   // the root's attributes
  std::string model_config;  // JSON, /model/config; may be empty
  std::vector<Site> sites;   // in forward order; channels follow one another by `width`
  std::vector<TraceColumn> columns;
};

/// Where the columns stand in a packed row: each begins at a multiple of 8 bytes.
class TraceLayout {
 public:
  struct Place {
    std::size_t offset = 0;  // bytes
    std::int64_t entries = 0;
    TraceColumn::Type type = TraceColumn::Type::f32;
    std::size_t bytes() const { return static_cast<std::size_t>(entries) * hdf5::number_bytes(type); }
  };

  /// E_NAME for a name that is empty, reserved or no word; E_DUP for one that comes twice.
  explicit TraceLayout(const TraceHeader& header);

  std::size_t row_bytes() const { return row_bytes_; }
  std::size_t columns() const { return places_.size(); }
  const Place& operator[](std::size_t column) const { return places_[column]; }
  /// The column's number; E_ADDR lists the columns.
  std::size_t find(std::string_view name) const;
  /// First channel of each site, and behind the last.
  const std::vector<std::int64_t>& start() const { return start_; }

 private:
  std::vector<Place> places_;
  std::vector<std::string> names_;
  std::vector<std::int64_t> start_;
  std::size_t row_bytes_ = 0;
};

/// One packed row to be filled: what is not measured at a step stays NaN (0 in columns of integers).
class TraceRow {
 public:
  explicit TraceRow(TraceLayout layout);
  void clear();
  /// The entries of a column; T is its type (assert).
  template <class T>
  std::span<T> column(std::size_t column);
  std::span<const std::byte> bytes() const;
  const TraceLayout& layout() const { return layout_; }

 private:
  TraceLayout layout_;
  std::vector<double> storage_;  // aligned for every type
};

/// Rows that the writer could not keep: `rows` rows of steps first to last.
struct TraceGap {
  std::int64_t first = 0, last = 0, rows = 0;
  bool operator==(const TraceGap&) const = default;
};

/// A writer that went on with a trace: rows after `step` were dropped, since the training makes them again.
struct TraceResume {
  std::int64_t step = 0, dropped = 0;
  bool operator==(const TraceResume&) const = default;
};

}  // namespace scalevec
