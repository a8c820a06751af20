#include <scalevec/core/store/trace.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <limits>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <scalevec/core/error.h>

namespace scalevec {
namespace {

// /trace holds these beside the columns.
constexpr std::array<std::string_view, 6> reserved{"step", "site", "channel", "gaps", "resumes", "header"};

bool is_word(std::string_view name) {
  return !name.empty() && name.size() <= 64 && std::ranges::all_of(name, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
  });
}

}  // namespace

std::string_view trace_per_name(TraceColumn::Per per) {
  constexpr std::array<std::string_view, 3> names{"run", "site", "channel"};
  return names[static_cast<std::size_t>(per)];
}

std::string_view trace_type_name(TraceColumn::Type type) {
  constexpr std::array<std::string_view, 3> names{"float32", "float64", "int64"};
  return names[static_cast<std::size_t>(type)];
}

TraceLayout::TraceLayout(const TraceHeader& header) : start_{0} {
  for (const Site& site : header.sites) start_.push_back(start_.back() + site.width);
  for (const TraceColumn& column : header.columns) {
    if (!is_word(column.name) || std::ranges::count(reserved, column.name) != 0) {
      fail(ErrorCode::name,
           fmt::format("trace: '{}' cannot name a column; take 1 to 64 letters, digits and _, and none of {}",
                       printable(column.name), fmt::join(reserved, ", ")));
    }
    if (std::ranges::count(names_, column.name) != 0) {
      fail(ErrorCode::dup, fmt::format("trace: two columns are named '{}'", column.name),
           {.key = column.name});
    }
    Place place{.offset = row_bytes_, .entries = 1, .type = column.type};
    if (column.per == TraceColumn::Per::site) place.entries = static_cast<std::int64_t>(header.sites.size());
    if (column.per == TraceColumn::Per::channel) place.entries = start_.back();
    names_.push_back(column.name);
    places_.push_back(place);
    row_bytes_ += (place.bytes() + 7) / 8 * 8;
  }
}

std::size_t TraceLayout::find(std::string_view name) const {
  const auto found = std::ranges::find(names_, name);
  if (found == names_.end()) {
    fail(
        ErrorCode::addr,
        fmt::format("trace: there is no column '{}'; there are {}", printable(name), fmt::join(names_, ", ")),
        {.key = std::string(name)});
  }
  return static_cast<std::size_t>(found - names_.begin());
}

TraceRow::TraceRow(TraceLayout layout) : layout_(std::move(layout)), storage_(layout_.row_bytes() / 8) {
  clear();
}

void TraceRow::clear() {
  for (std::size_t i = 0; i < layout_.columns(); ++i) {
    // Two float NaNs side by side in each double, padding included; doubles are NaN by themselves.
    constexpr float nan = std::numeric_limits<float>::quiet_NaN();
    double fill = std::numeric_limits<double>::quiet_NaN();
    if (layout_[i].type == TraceColumn::Type::f32) fill = std::bit_cast<double>(std::array{nan, nan});
    if (layout_[i].type == TraceColumn::Type::i64) fill = 0.0;
    std::fill_n(storage_.begin() + static_cast<std::ptrdiff_t>(layout_[i].offset / 8),
                (layout_[i].bytes() + 7) / 8, fill);
  }
}

template <class T>
std::span<T> TraceRow::column(std::size_t column) {
  const TraceLayout::Place& place = layout_[column];
  assert(sizeof(T) == hdf5::number_bytes(place.type));
  assert(std::is_integral_v<T> == (place.type == TraceColumn::Type::i64));
  // float and int64 views of the storage: written here only, and read as bytes.
  return {reinterpret_cast<T*>(reinterpret_cast<std::byte*>(storage_.data()) + place.offset),
          static_cast<std::size_t>(place.entries)};
}
template std::span<float> TraceRow::column(std::size_t);
template std::span<double> TraceRow::column(std::size_t);
template std::span<std::int64_t> TraceRow::column(std::size_t);

std::span<const std::byte> TraceRow::bytes() const { return std::as_bytes(std::span(storage_)); }

}  // namespace scalevec
