#include <random>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <scalevec/core/store/crc32c.h>
#include <scalevec/core/store/trace_journal.h>

using namespace scalevec;

namespace {

constexpr std::size_t row_bytes = 24, head_bytes = 48;

std::vector<std::byte> row(std::int64_t step) {
  const std::string text = "row " + std::to_string(step) + std::string(row_bytes, '.');
  const auto bytes = std::as_bytes(std::span(text).first(row_bytes));
  return {bytes.begin(), bytes.end()};
}

// Rows 0 to 4, a gap of 5 to 7, rows 8 and 9; synced after row 2 and after the gap.
TraceJournal journal() {
  TraceJournal made(row_bytes, 3, std::string(64, 'a'));
  for (std::int64_t step = 0; step < 5; ++step) {
    made.row(step, row(step));
    if (step == 2) made.synced(made.bytes().size());
  }
  made.gap({5, 7, 3});
  made.synced(made.bytes().size());
  made.row(8, row(8));
  made.row(9, row(9));
  return made;
}

std::vector<std::byte> bytes_of(const TraceJournal& made) {
  return {made.bytes().begin(), made.bytes().end()};
}

// Rows are a prefix of those written, and right; how many.
std::size_t check_prefix(const TraceJournal::Parsed& parsed) {
  const std::vector<std::int64_t> steps{0, 1, 2, 3, 4, 8, 9};
  REQUIRE(parsed.journal.rows() <= steps.size());
  for (std::size_t i = 0; i < parsed.journal.rows(); ++i) {
    REQUIRE(parsed.journal.step(i) == steps[i]);
    const auto payload = parsed.journal.payload(i);
    REQUIRE(std::vector<std::byte>(payload.begin(), payload.end()) == row(steps[i]));
  }
  return parsed.journal.rows();
}

}  // namespace

TEST_CASE("crc32c: the values of RFC 3720, B.4, in pieces too, and the same without the instruction") {
  const auto of = [](const std::string& text) { return crc32c(std::as_bytes(std::span(text))); };
  CHECK(of("123456789") == 0xE3069283u);
  CHECK(of(std::string(32, '\0')) == 0x8A9136AAu);
  CHECK(of(std::string(32, '\xFF')) == 0x62A8AB43u);
  CHECK(of("") == 0);
  std::mt19937 random(1);
  std::vector<std::byte> bytes(1000);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  for (std::size_t size = 0; size < 300; ++size) {
    const auto all = std::span(bytes).subspan(size % 8, size);
    const std::uint32_t whole = crc32c(all);
    CHECK(detail::crc32c_portable(all, 0) == whole);
    CHECK(crc32c(all.subspan(size / 3), crc32c(all.first(size / 3))) == whole);
  }
}

TEST_CASE("TraceJournal: what is written is read, and goes on in the same bytes") {
  const TraceJournal made = journal();
  TraceJournal::Parsed parsed = TraceJournal::parse(bytes_of(made), row_bytes);
  CHECK(parsed.damage.empty());
  CHECK(parsed.torn == 0);
  CHECK(check_prefix(parsed) == 7);
  CHECK(parsed.journal.number() == 3);
  CHECK(parsed.journal.before() == std::string(64, 'a'));
  CHECK(parsed.journal.gaps() == std::vector<TraceGap>{{5, 7, 3}});
  CHECK(parsed.journal.last_step(-1) == 9);

  TraceJournal longer = made;
  longer.synced(0);
  parsed.journal.synced(0);
  longer.row(10, row(10));
  parsed.journal.row(10, row(10));
  CHECK(bytes_of(longer) == bytes_of(parsed.journal));
}

TEST_CASE(
    "TraceJournal: of a file cut anywhere, the whole rows are read; zeros or junk behind them are no rows") {
  const std::vector<std::byte> whole = bytes_of(journal());
  std::size_t most = 0;
  for (std::size_t size = 0; size <= whole.size(); ++size) {
    CAPTURE(size);
    for (const int tail : {0, 1, 2}) {
      std::vector<std::byte> cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
      if (tail == 1) cut.resize(size + 500);
      if (tail == 2 && size > 0)
        cut.insert(cut.end(), whole.begin(), whole.end());  // records of other places
      const TraceJournal::Parsed parsed = TraceJournal::parse(cut, row_bytes);
      const std::size_t rows = check_prefix(parsed);
      if (rows < most) FAIL("a shorter file held more rows");
      most = std::max(most, rows);
      // Nothing behind vouches for bytes that are missing; but no journal is without its start.
      CHECK(parsed.damage.empty() == (size >= head_bytes + 64));
      if (parsed.damage.empty()) CHECK(parsed.journal.bytes().size() + parsed.torn == cut.size());
    }
  }
  CHECK(most == 7);
}

TEST_CASE("TraceJournal: any changed bit ends the rows there; where it had been synced, that is damage") {
  const std::vector<std::byte> whole = bytes_of(journal());
  const std::size_t unsynced = whole.size() - 2 * (head_bytes + row_bytes);
  for (std::size_t at = 0; at < whole.size(); ++at) {
    for (const int bit : {0, 3, 7}) {
      std::vector<std::byte> bytes = whole;
      bytes[at] ^= static_cast<std::byte>(1 << bit);
      const TraceJournal::Parsed parsed = TraceJournal::parse(bytes, row_bytes);
      CAPTURE(at);
      CHECK(check_prefix(parsed) <= (at < unsynced ? 5u : 6u));
      CHECK(parsed.damage.empty() == (at >= unsynced));
    }
  }
}

TEST_CASE(
    "TraceJournal: records that are whole but cannot follow are damage: repeated, backwards, another "
    "length") {
  const auto damage = [](auto change) {
    TraceJournal made = journal();
    change(made);
    const TraceJournal::Parsed parsed = TraceJournal::parse(bytes_of(made), row_bytes);
    CHECK(check_prefix(parsed) == 7);
    return parsed.damage;
  };
  CHECK(damage([](TraceJournal&) {}).empty());
  CHECK(damage([](TraceJournal& made) { made.row(9, row(9)); }).find("step 9 after step 9") !=
        std::string::npos);
  CHECK(damage([](TraceJournal& made) { made.row(3, row(3)); }).find("row 7: step 3 after step 9") !=
        std::string::npos);
  CHECK(damage([](TraceJournal& made) {
          made.gap({9, 12, 2});
        }).find("a gap of 2 rows") != std::string::npos);
  CHECK(damage([](TraceJournal& made) {
          made.gap({12, 11, 2});
        }).find("a gap of 2 rows") != std::string::npos);
  const TraceJournal::Parsed other = TraceJournal::parse(bytes_of(journal()), row_bytes + 8);
  CHECK(other.damage.find("a record of kind 2 with 24 bytes") != std::string::npos);
  CHECK(other.journal.rows() == 0);
}
