#include <scalevec/edits/describe.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include <scalevec/core/error.h>
#include <scalevec/core/selector.h>

namespace scalevec {
namespace {

constexpr std::size_t shown_channels = 6;
constexpr std::size_t longest_list = 60;  // characters of a channel list

std::string thousands(std::int64_t number) {
  std::string digits = std::to_string(number);
  for (std::size_t i = digits.size(); i > 3; i -= 3) digits.insert(i - 3, ",");
  return digits;
}

std::string counted(std::int64_t number, std::string_view what) {
  return fmt::format("{} {}{}", thousands(number), what, number == 1 ? "" : "s");
}

std::string counts(std::int64_t selected, std::int64_t changed, std::int64_t lost) {
  std::string out = fmt::format("{} selected, {} changed", counted(selected, "channel"), thousands(changed));
  if (lost > 0) out += fmt::format(", {} lost (below half a unit in the last place)", thousands(lost));
  return out;
}

std::string range(const std::vector<double>& values) {
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
  return fmt::format("{:.6g} .. {:.6g}, mean {:.6g}", *low, *high, mean);
}

std::string vector_text(const Edit& edit, const EditedVector& vector) {
  const std::vector<double> before = StoredVector{vector.dtype, vector.offset, vector.old}.effective();
  const std::vector<double> after =
      StoredVector{vector.dtype, vector.offset, new_bytes(edit, vector)}.effective();
  std::string by;
  for (const Step& step : vector.steps) by += fmt::format("{}{}", by.empty() ? "" : ", ", step.operation + 1);
  std::string out = fmt::format(
      "  {}  ({})  {}[{}]{}\n", vector.address, printable(vector.native), dtype_name(vector.dtype),
      vector.width, vector.offset == 0.0 ? "" : fmt::format(", stored without the {}", vector.offset));
  std::string channels = channels_text(vector.channels);
  if (channels.size() > longest_list)
    channels = channels.substr(0, channels.rfind(',', longest_list)) + ",...";
  out += fmt::format("    {} of {} channels change, by operation {}: @{}\n", vector.channels.size(),
                     vector.width, by, channels);
  if (before.size() <= shown_channels) {
    for (std::size_t i = 0; i < before.size(); ++i) {
      out += fmt::format("    @{:<6} {:.9g} -> {:.9g}\n", vector.channels[i], before[i], after[i]);
    }
  } else {
    out += fmt::format("    before {}\n    after  {}\n", range(before), range(after));
  }
  return out + fmt::format("    base   {}\n    edited {}\n", vector.base, vector.after);
}

}  // namespace

std::string describe(const Edit& edit, bool brief) {
  std::int64_t channels = 0;
  std::size_t bytes = 0;
  for (const EditedVector& vector : edit.vectors) {
    channels += static_cast<std::int64_t>(vector.channels.size());
    bytes += vector.old.size();
  }
  std::string out =
      fmt::format("An edit of {} ({}), made by {}: {} in {}, {} in all.\n", printable(edit.source.file),
                  printable(edit.source.family), printable(edit.tool),
                  channels == 1 ? "1 entry" : thousands(channels) + " entries",
                  counted(static_cast<std::int64_t>(edit.vectors.size()), "vector"),
                  counted(static_cast<std::int64_t>(bytes), "byte"));
  if (!edit.note.empty()) out += fmt::format("Note: {}\n", printable(edit.note, 1000));
  out += edit.operations.empty() ? "\nNo operations.\n" : "\nOperations, in order:\n";
  for (std::size_t i = 0; i < edit.operations.size(); ++i) {
    const Operation& operation = edit.operations[i];
    out += fmt::format("{:>4}. {}  on  {}\n      {}\n", i + 1,
                       find_verb(operation.verb).text(operation.arguments), printable(operation.selector),
                       counts(operation.selected, operation.changed, operation.lost));
    std::string allowed;
    if (operation.allow.no_effect) allowed += " no effect;";
    if (operation.allow.non_finite) allowed += " NaN and infinities;";
    if (operation.allow.tied) allowed += " vectors that share storage;";
    if (!allowed.empty()) out += "      allowed:" + allowed.substr(0, allowed.size() - 1) + "\n";
  }
  if (brief || edit.vectors.empty()) return out;
  out += "\nVectors (effective values):\n";
  for (const EditedVector& vector : edit.vectors) out += vector_text(edit, vector);
  return out;
}

std::string describe(const OperationReport& report) {
  const VerbReport total = report.total();
  return fmt::format("{}, {}; largest rounding {:.3g}",
                     counted(static_cast<std::int64_t>(report.vectors.size()), "vector"),
                     counts(total.selected, total.changed, total.lost), total.largest_rounding);
}

}  // namespace scalevec
