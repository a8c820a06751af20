#include <scalevec/core/checkpoint/gguf_cursor.h>

#include <algorithm>

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

}  // namespace scalevec
