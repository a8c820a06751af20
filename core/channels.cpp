#include <scalevec/core/channels.h>

#include <algorithm>
#include <charconv>
#include <span>

#include <fmt/format.h>

#include <scalevec/core/error.h>
#include <scalevec/core/selector.h>

namespace scalevec {
namespace {

constexpr std::string_view spaces = " \t";

std::string_view trimmed(std::string_view text) {
  const std::size_t first = text.find_first_not_of(spaces);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(spaces) - first + 1);
}

[[noreturn]] void refuse(std::string_view source, std::size_t position, std::string_view item,
                         std::string_view reason) {
  fail(ErrorCode::addr,
       fmt::format(
           "selector '{}': channels '{}': {}; channels are like 17,40:48, where 48 is the first left out",
           printable(source), printable(item, 40), reason),
       {.key = printable(source), .offset = position});
}

std::int64_t read_channel(std::string_view text, std::string_view source, std::size_t position,
                          std::string_view item) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || end != text.data() + text.size() || error == std::errc::invalid_argument) {
    refuse(source, position, item, "not a number");
  }
  if (error == std::errc::result_out_of_range) refuse(source, position, item, "larger than any width");
  if (value < 0) refuse(source, position, item, "channels are not counted from the end");
  return value;
}

}  // namespace

std::vector<ChannelRange> parse_channel_ranges(std::string_view text, std::string_view source,
                                               std::size_t begin) {
  std::vector<ChannelRange> ranges;
  std::size_t at = 0;
  while (true) {
    const std::size_t comma = std::min(text.find(',', at), text.size());
    const std::string_view item = trimmed(text.substr(at, comma - at));
    const std::size_t position = begin + at;
    if (item.empty()) refuse(source, position, text, "an entry is missing");
    const std::size_t colon = item.find(':');
    ChannelRange range;
    if (colon == std::string_view::npos) {
      range.begin = read_channel(item, source, position, item);
      range.end = range.begin + 1;
    } else {
      const std::string_view first = trimmed(item.substr(0, colon)), last = trimmed(item.substr(colon + 1));
      if (last.find(':') != std::string_view::npos) refuse(source, position, item, "steps are not supported");
      if (!first.empty()) range.begin = read_channel(first, source, position, item);
      if (!last.empty()) range.end = read_channel(last, source, position, item);
      if (range.end && *range.end <= range.begin) refuse(source, position, item, "the range is empty");
    }
    ranges.push_back(range);
    if (comma == text.size()) return ranges;
    at = comma + 1;
  }
}

std::vector<std::int64_t> resolve_channels(const std::vector<ChannelRange>& ranges, std::int64_t width,
                                           std::string_view address) {
  const auto refuse_channel = [&](std::int64_t channel, std::string_view reason) {
    fail(ErrorCode::addr, fmt::format("channel {} of {} {}", channel, address, reason),
         {.tensor = std::string(address),
          .index = channel,
          .expected = fmt::format("0 to {}", width - 1),
          .found = std::to_string(channel)});
  };
  std::vector<std::int64_t> channels;
  for (const ChannelRange& range : ranges) {
    if (range.begin >= width || range.end.value_or(width) > width) {
      const std::int64_t channel = std::max(range.begin, range.end.value_or(width) - 1);
      if (width == 0) refuse_channel(channel, "does not exist: this norm has no vector");
      refuse_channel(channel,
                     fmt::format("does not exist: the vector has {} channels, 0 to {}", width, width - 1));
    }
    for (std::int64_t c = range.begin; c < range.end.value_or(width); ++c) channels.push_back(c);
  }
  std::sort(channels.begin(), channels.end());
  if (const auto twice = std::adjacent_find(channels.begin(), channels.end()); twice != channels.end()) {
    refuse_channel(*twice, "is named twice");
  }
  return channels;
}

std::string channel_ranges_text(const std::vector<ChannelRange>& ranges) {
  std::string text;
  for (const ChannelRange& range : ranges) {
    if (!text.empty()) text += ',';
    if (range.end == range.begin + 1) {
      text += std::to_string(range.begin);
    } else {
      text += fmt::format("{}:{}", range.begin, range.end ? std::to_string(*range.end) : "");
    }
  }
  return text;
}

std::string channels_text(std::span<const std::int64_t> channels) {
  std::vector<ChannelRange> ranges;
  for (const std::int64_t channel : channels) {
    if (!ranges.empty() && ranges.back().end == channel) {
      ranges.back().end = channel + 1;
    } else {
      ranges.push_back({channel, channel + 1});
    }
  }
  return channel_ranges_text(ranges);
}

std::vector<std::int64_t> parse_channels(std::string_view text, std::int64_t width) {
  return resolve_channels(parse_channel_ranges(text, text, 0), width, "the vector");
}

}  // namespace scalevec
