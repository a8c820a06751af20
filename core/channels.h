#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace scalevec {

/// The text after `@` of a selector, parsed but not yet held against a width: 17 is [17, 18); a missing end
/// is open.
struct ChannelRange {
  std::int64_t begin = 0;
  std::optional<std::int64_t> end;
};

/// E_ADDR on anything but "17,40:48,500:"; `source` is the whole selector and `begin` where `text` starts in
/// it.
std::vector<ChannelRange> parse_channel_ranges(std::string_view text, std::string_view source,
                                               std::size_t begin);

/// Ascending. E_ADDR with `address` and the width for a channel outside [0, width), or one that stands twice.
std::vector<std::int64_t> resolve_channels(const std::vector<ChannelRange>& ranges, std::int64_t width,
                                           std::string_view address);

/// As it was parsed, without spaces.
std::string channel_ranges_text(const std::vector<ChannelRange>& ranges);

}  // namespace scalevec
