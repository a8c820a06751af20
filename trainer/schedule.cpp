#include <scalevec/trainer/schedule.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <scalevec/core/error.h>

namespace scalevec {
namespace {

constexpr std::array<std::string_view, 3> names{"constant", "cosine", "wsd"};

}  // namespace

double Schedule::at(std::int64_t step) const {
  const auto i = static_cast<double>(step);
  if (step < warmup) return (i + 1.0) / static_cast<double>(warmup);
  if (kind == Kind::constant) return 1.0;
  const double begin = kind == Kind::cosine
                           ? static_cast<double>(warmup)
                           : std::max(static_cast<double>(warmup), stable * static_cast<double>(steps));
  if (i <= begin) return 1.0;
  const double done = std::min((i - begin) / (static_cast<double>(steps) - 1.0 - begin), 1.0);
  if (kind == Kind::cosine) return floor + (1.0 - floor) * 0.5 * (1.0 + std::cos(std::numbers::pi * done));
  return 1.0 + (floor - 1.0) * done;
}

Schedule::Kind parse_schedule(std::string_view text) {
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (text == names[i]) return static_cast<Schedule::Kind>(i);
  }
  fail(ErrorCode::value, fmt::format("schedule of the learning rate: '{}' is unknown", printable(text)),
       {.expected = fmt::format("{}", fmt::join(names, ", ")), .found = printable(text)});
}

std::string_view schedule_name(Schedule::Kind kind) { return names.at(static_cast<std::size_t>(kind)); }

}  // namespace scalevec
