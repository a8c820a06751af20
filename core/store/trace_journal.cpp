#include <scalevec/core/store/trace_journal.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cstring>
#include <optional>

#include <fmt/format.h>

#include <scalevec/core/store/crc32c.h>

namespace scalevec {
namespace {

static_assert(std::endian::native == std::endian::little,
              "the file is little-endian, and written as memory is");

enum Kind : std::uint64_t { start = 1, row_kind, gap_kind, resume_kind };

struct Head {
  std::array<char, 4> magic{'S', 'V', 'J', '1'};
  std::uint32_t crc = 0;
  std::uint64_t offset = 0, synced = 0, kind = 0;
  std::int64_t step = 0;
  std::uint64_t length = 0;
};
static_assert(sizeof(Head) == 48);
constexpr std::size_t covered = offsetof(Head, offset);  // the CRC's first byte

constexpr std::size_t digest_length = 64;

// The record that stands whole at `offset`.
std::optional<Head> record_at(std::span<const std::byte> bytes, std::size_t offset) {
  if (bytes.size() - offset < sizeof(Head)) return std::nullopt;
  Head head;
  const std::array<char, 4> magic = head.magic;
  std::memcpy(&head, bytes.data() + offset, sizeof head);
  if (head.magic != magic || head.offset != offset) return std::nullopt;
  if (head.length > bytes.size() - offset - sizeof head) return std::nullopt;
  const auto checked = bytes.subspan(offset + covered, sizeof head - covered + head.length);
  return crc32c(checked) == head.crc ? std::optional(head) : std::nullopt;
}

// The most that any record behind `begin` knows to be synced.
std::uint64_t vouched_behind(std::span<const std::byte> bytes, std::size_t begin) {
  const Head sample;
  std::uint64_t synced = 0;
  for (auto at = bytes.begin() + static_cast<std::ptrdiff_t>(begin);;) {
    const auto magic = std::as_bytes(std::span(sample.magic));
    at = std::search(at, bytes.end(), magic.begin(), magic.end());
    if (at == bytes.end()) return synced;
    const auto head = record_at(bytes, static_cast<std::size_t>(at - bytes.begin()));
    if (head) synced = std::max(synced, head->synced);
    ++at;
  }
}

template <class T>
T value_of(std::span<const std::byte> payload) {
  T value;
  std::memcpy(&value, payload.data(), sizeof value);
  return value;
}

}  // namespace

TraceJournal::TraceJournal(std::size_t row_bytes, std::int64_t number, std::string_view before)
    : row_bytes_(row_bytes) {
  restart(number, before);
}

void TraceJournal::restart(std::int64_t number, std::string_view before) {
  assert(before.empty() || before.size() == digest_length);
  number_ = number;
  before_ = before;
  bytes_.clear();
  rows_.clear();
  gaps_.clear();
  resumes_.clear();
  synced_ = 0;
  record(start, number, std::as_bytes(std::span(before_)));
}

void TraceJournal::record(std::uint64_t kind, std::int64_t step, std::span<const std::byte> payload) {
  Head head{.offset = bytes_.size(), .synced = synced_, .kind = kind, .step = step, .length = payload.size()};
  const auto whole = std::as_bytes(std::span(&head, 1));
  head.crc = crc32c(payload, crc32c(whole.subspan(covered)));
  bytes_.insert(bytes_.end(), whole.begin(), whole.end());
  bytes_.insert(bytes_.end(), payload.begin(), payload.end());
}

void TraceJournal::row(std::int64_t step, std::span<const std::byte> payload) {
  assert(payload.size() == row_bytes_);
  rows_.push_back(bytes_.size());
  record(row_kind, step, payload);
}

void TraceJournal::gap(const TraceGap& gap) {
  gaps_.push_back(gap);
  record(gap_kind, gap.last, std::as_bytes(std::span(&gap, 1)));
}

void TraceJournal::resume(const TraceResume& resume) {
  resumes_.push_back(resume);
  record(resume_kind, resume.step, std::as_bytes(std::span(&resume, 1)));
}

std::int64_t TraceJournal::step(std::size_t row) const {
  return value_of<Head>(std::span(bytes_).subspan(rows_[row])).step;
}

std::span<const std::byte> TraceJournal::payload(std::size_t row) const {
  return std::span(bytes_).subspan(rows_[row] + sizeof(Head), row_bytes_);
}

std::int64_t TraceJournal::last_step(std::int64_t otherwise) const {
  if (rows() > 0) otherwise = std::max(otherwise, step(rows() - 1));
  if (!gaps_.empty()) otherwise = std::max(otherwise, gaps_.back().last);
  return otherwise;
}

TraceJournal::Parsed TraceJournal::parse(std::vector<std::byte> bytes, std::size_t row_bytes) {
  Parsed out{.journal = TraceJournal(), .torn = 0, .damage = {}};
  TraceJournal& journal = out.journal;
  journal.row_bytes_ = row_bytes;
  std::size_t at = 0;
  std::uint64_t vouched = 0;
  std::optional<std::int64_t> last;
  std::string broken;  // a record that is whole and says what no writer says
  while (at < bytes.size()) {
    const auto head = record_at(bytes, at);
    if (!head) break;
    const auto payload = std::span(bytes).subspan(at + sizeof(Head), head->length);
    const bool first = at == 0;
    if ((head->kind == start) != first) {
      broken = first ? "it does not begin with a start" : "a second start";
    } else if (head->kind == start && (payload.empty() || payload.size() == digest_length)) {
      journal.number_ = head->step;
      journal.before_.assign(reinterpret_cast<const char*>(payload.data()), payload.size());
    } else if (head->kind == row_kind && payload.size() == row_bytes) {
      if (last && head->step <= *last) broken = fmt::format("step {} after step {}", head->step, *last);
      if (broken.empty()) journal.rows_.push_back(at);
      last = head->step;
    } else if (head->kind == gap_kind && payload.size() == sizeof(TraceGap)) {
      const auto gap = value_of<TraceGap>(payload);
      if ((last && gap.first <= *last) || gap.last < gap.first || gap.rows < 1 || gap.last != head->step) {
        broken = fmt::format("a gap of {} rows from step {} to {}", gap.rows, gap.first, gap.last);
      }
      if (broken.empty()) journal.gaps_.push_back(gap);
      last = gap.last;
    } else if (head->kind == resume_kind && payload.size() == sizeof(TraceResume)) {
      journal.resumes_.push_back(value_of<TraceResume>(payload));
    } else {
      broken = fmt::format("a record of kind {} with {} bytes", head->kind, payload.size());
    }
    if (!broken.empty()) break;
    vouched = std::max(vouched, head->synced);
    at += sizeof(Head) + head->length;
  }
  if (broken.empty() && at < bytes.size()) vouched = std::max(vouched, vouched_behind(bytes, at + 1));
  if (!broken.empty()) {
    out.damage = fmt::format("byte {}, row {}: {}", at, journal.rows_.size(), broken);
  } else if (at == 0) {
    out.damage = "byte 0, row 0: no whole record";
  } else if (vouched > at) {
    out.damage = fmt::format("byte {}, row {}: the record's bytes are not those that were synced", at,
                             journal.rows_.size());
  }
  out.torn = bytes.size() - at;
  bytes.resize(at);
  journal.bytes_ = std::move(bytes);
  journal.synced_ = vouched;
  return out;
}

}  // namespace scalevec
