#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <scalevec/core/error.h>

namespace scalevec {

/// Fills a span with the bytes of the file from a position on; asked only for what lies within the file's
/// size.
using ReadBytes = std::function<void(std::uint64_t begin, std::span<std::byte> out)>;

/// Reads a GGUF header from front to back. No length is believed before it is compared with the bytes left.
class GgufCursor {
 public:
  static constexpr std::uint64_t most_header = std::uint64_t{256} << 20;

  /// file: its name, for messages. Both references must outlive the cursor.
  GgufCursor(std::uint64_t size, const ReadBytes& read, const std::string& file)
      : size_(size), read_(read), file_(file) {}

  std::uint64_t size() const { return size_; }
  std::uint64_t at() const { return at_; }
  std::uint64_t left() const { return size_ - at_; }
  const std::string& file() const { return file_; }

  /// Moves past `count` bytes and returns where they are, until the next call. E_TRUNC where the file ends
  /// before, E_LIMIT where the header would pass most_header.
  const char* take(std::uint64_t count);

  template <class T>
  T value() {
    T result;
    std::memcpy(&result, take(sizeof result), sizeof result);
    return result;
  }

  /// The first bytes of the file, at most `count`, without moving.
  std::string_view start(std::uint64_t count);
  /// Bytes that were taken; stays valid until the next take.
  std::string_view taken(std::uint64_t begin, std::uint64_t count) const {
    return {bytes_.data() + begin, count};
  }

  /// What is being read, for messages.
  struct Subject {
    std::string tensor = {};
    std::string key = {};
    std::optional<std::int64_t> index = {};
  };
  Subject subject;

  [[noreturn]] void refuse(ErrorCode code, std::string_view what, std::optional<std::uint64_t> offset,
                           std::string expected, std::string found) const;
  [[noreturn]] void refuse_duplicate(std::string_view name, std::uint64_t first, std::uint64_t second) const;

 private:
  void fill(std::uint64_t end);

  std::uint64_t size_;
  const ReadBytes& read_;
  const std::string& file_;
  std::vector<char> bytes_;  // the file's first bytes, as far as they have been needed
  std::uint64_t at_ = 0;
};

/// "12 bytes"
std::string in_bytes(std::uint64_t count);

}  // namespace scalevec
