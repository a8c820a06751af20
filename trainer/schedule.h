#pragma once

#include <cstdint>
#include <string_view>

namespace scalevec {

/// How the learning rate goes over a run (arXiv 2605.26895, section 5).
struct Schedule {
  enum class Kind {
    constant,  // after the warm-up
    cosine,    // down to `floor` of the largest at the last step
    wsd,       // constant up to `stable` of the steps, then linearly down to `floor`
  };
  Kind kind = Kind::cosine;
  std::int64_t steps = 0;
  std::int64_t warmup = 0;  // steps of linear rise: step i < warmup has (i + 1) / warmup of the largest
  double floor = 0.05;      // share of the largest rate; the paper: 1/20 for cosine, 0 for WSD
  double stable = 0.8;      // share of all steps, warm-up included

  /// Share of the largest learning rate in step `step`, counted from 0, of `steps`.
  double at(std::int64_t step) const;
};

/// "constant", "cosine", "wsd"; E_VALUE.
Schedule::Kind parse_schedule(std::string_view text);
std::string_view schedule_name(Schedule::Kind kind);

}  // namespace scalevec
