// core/checkpoint/gguf_cursor.cpp
#include <scalevec/core/checkpoint/gguf_cursor.h>

#include <algorithm>
#include <numeric>

#include <fmt/format.h>

namespace scalevec {

void GgufCursor::fill(std::uint64_t end) {
  if (end <= bytes_.size()) return;
  const std::size_t have = bytes_.size();
  // Ahead by half: the whole header is copied few times, and the buffer and its successor stay small beside
  // it.
  const std::uint64_t ahead = have + std::max<std::uint64_t>(have / 2, 262'144);
  bytes_.resize(std::min(size_, std::max(end, ahead)));
  read_(have, std::as_writable_bytes(std::span(bytes_)).subspan(have));
}

const char* GgufCursor::take(std::uint64_t count) {
  if (count > left()) {
    refuse(ErrorCode::trunc, "the file ends inside its header", at_, in_bytes(count), in_bytes(left()));
  }
  if (count > most_header - at_) {
    refuse(ErrorCode::limit, "the header is longer than is read", at_, in_bytes(most_header),
           in_bytes(at_ + count));
  }
  fill(at_ + count);
  at_ += count;
  return bytes_.data() + (at_ - count);
}

std::string_view GgufCursor::start(std::uint64_t count) {
  count = std::min(count, size_);
  fill(count);
  return {bytes_.data(), count};
}

void GgufCursor::refuse(ErrorCode code, std::string_view what, std::optional<std::uint64_t> offset,
                        std::string expected, std::string found) const {
  fail(code, fmt::format("reading GGUF: {}", what),
       {.file = file_,
        .tensor = subject.tensor,
        .key = subject.key,
        .offset = offset,
        .index = subject.index,
        .expected = std::move(expected),
        .found = std::move(found)});
}

void GgufCursor::refuse_duplicate(std::string_view name, std::uint64_t first, std::uint64_t second) const {
  refuse(ErrorCode::dup, fmt::format("'{}' stands twice, at bytes {} and {}", printable(name), first, second),
         second, "each name once", fmt::format("the first at byte {}", first));
}

std::string in_bytes(std::uint64_t count) { return fmt::format("{} bytes", count); }

std::vector<std::uint32_t> sorted_by_name(std::size_t count,
                                          const std::function<std::string_view(std::uint32_t)>& name) {
  std::vector<std::uint32_t> order(count);
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
    const int compared = name(a).compare(name(b));
    return compared != 0 ? compared < 0 : a < b;
  });
  return order;
}

std::optional<std::pair<std::uint32_t, std::uint32_t>> first_duplicate(
    const std::vector<std::uint32_t>& sorted, const std::function<std::string_view(std::uint32_t)>& name) {
  std::optional<std::pair<std::uint32_t, std::uint32_t>> earliest;
  for (std::size_t i = 1; i < sorted.size(); ++i) {
    if (name(sorted[i - 1]) != name(sorted[i])) continue;
    if (!earliest || sorted[i] < earliest->second) earliest = std::pair{sorted[i - 1], sorted[i]};
  }
  return earliest;
}

}  // namespace scalevec
