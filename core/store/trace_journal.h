#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <scalevec/core/store/trace.h>

namespace scalevec {

/// The unsealed end of a trace, in memory exactly as its file holds it, so that what is held can be written
/// again whole.
///
/// A sequence of records: 48 bytes of head (magic, CRC-32C of all that follows in the record, offset of the
/// record, bytes known to be synced when it was made, kind, step, payload length; little-endian), then the
/// payload. A record at another offset than its own is none, so that nothing old or copied is taken for new.
class TraceJournal {
 public:
  /// `number` counts the journals of a trace from 1; `before`: SHA-256 of the segment sealed before, empty
  /// for the first. A journal that does not follow the segment that a reader knows is not the one it wants.
  TraceJournal(std::size_t row_bytes, std::int64_t number, std::string_view before);

  /// As a new one, in the same memory.
  void restart(std::int64_t number, std::string_view before);

  struct Parsed;
  /// What a file's bytes hold; the torn end of a write that was cut short is left out.
  static Parsed parse(std::vector<std::byte> bytes, std::size_t row_bytes);

  void reserve(std::size_t bytes) { bytes_.reserve(bytes); }
  void row(std::int64_t step, std::span<const std::byte> payload);
  void gap(const TraceGap& gap);
  void resume(const TraceResume& resume);
  /// Later records say that so many bytes are on the disk.
  void synced(std::uint64_t bytes) { synced_ = bytes; }

  std::int64_t number() const { return number_; }
  const std::string& before() const { return before_; }
  std::span<const std::byte> bytes() const { return bytes_; }
  std::size_t rows() const { return rows_.size(); }
  std::int64_t step(std::size_t row) const;
  std::span<const std::byte> payload(std::size_t row) const;
  const std::vector<TraceGap>& gaps() const { return gaps_; }
  const std::vector<TraceResume>& resumes() const { return resumes_; }
  /// Step of the last row or gap; `otherwise` where there is none.
  std::int64_t last_step(std::int64_t otherwise) const;

 private:
  TraceJournal() = default;
  void record(std::uint64_t kind, std::int64_t step, std::span<const std::byte> payload);

  std::size_t row_bytes_ = 0;
  std::int64_t number_ = 0;
  std::string before_;
  std::vector<std::byte> bytes_;
  std::vector<std::size_t> rows_;  // offsets of their records
  std::vector<TraceGap> gaps_;
  std::vector<TraceResume> resumes_;
  std::uint64_t synced_ = 0;
};

struct TraceJournal::Parsed {
  TraceJournal journal;
  std::uint64_t torn = 0;  // bytes left out at the end
  std::string damage;  // not empty: bytes that were synced are not what was written; the rows before are kept
};

}  // namespace scalevec
