// The trace's storage, with every call that writes failing, killed, or torn: whatever was said to be on the
// disk is there, nothing that is there is wrong, and what is left can be gone on with.
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <ctime>
#include <filesystem>
#include <optional>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <scalevec/core/error.h>
#include <scalevec/core/store/trace_folder.h>
#include <scalevec/core/store/trace_manifest.h>
#include <scalevec/core/store/trace_merge.h>
#include <scalevec/core/store/trace_reader.h>
#include <scalevec/core/store/trace_store.h>
#include <scalevec/core/store/trace_writer.h>

#include "faults/disk.h"
#include "faults/system_calls.h"
#include "support/full.h"
#include "support/temporary_folder.h"
#include "support/tiny_trace.h"

namespace fs = std::filesystem;
using namespace scalevec;
using testing::Disk;
using testing::Fault;
using testing::TemporaryFolder;

namespace {

std::int64_t rows = 13;  // of a whole trace

const TraceLayout& tiny_layout() {
  static const TraceLayout layout(testing::tiny_header());
  return layout;
}
std::size_t five_rows() { return 5 * (tiny_layout().row_bytes() + 60); }  // or so, in a segment

// What the writing process has said, which outlives it.
struct Said {
  std::int64_t claimed = 0;  // rows on the disk
  bool reached = false, opened = false, merged = false;
  bool failing = false;
  int wrong = 0;
};

// A sync after every third row; then the results file.
template <class Acknowledge>
void write_trace(const fs::path& path, std::optional<std::int64_t> after, Said& said,
                 Acknowledge acknowledge) {
  TraceStore store(path, testing::tiny_header(), after, five_rows());
  const auto claim = [&] { acknowledge(said.claimed = store.rows_on_disk()); };
  said.opened = true;
  claim();
  TraceGap gap;
  for (std::int64_t step = store.last_step() + 1; step < rows; ++step) {
    if (gap.rows > 0) store.put(std::exchange(gap, {}));
    if (!store.put(step, testing::tiny_row(tiny_layout(), step))) gap = {step, step, 1};
    store.write();
    if (step % 3 == 2) store.sync();
    claim();
  }
  if (gap.rows > 0) store.put(gap);
  store.sync();
  claim();
  said.failing = store.failing();
  if (store.failing() && store.error().find("free space") == std::string::npos) said.wrong = 3;
  if (store.failing()) return;
  store.close_file();
  merge_locked(path, {}, 1, TraceReader::Damage::refuse);
  said.merged = true;
}
void write_trace(const fs::path& path, std::optional<std::int64_t> after, Said& said) {
  write_trace(path, after, said, [](std::int64_t) {});
}

// Nine rows from before, of which seven are kept.
void write_nine(const fs::path& path) {
  TraceStore store(path, testing::tiny_header(), {}, five_rows());
  for (std::int64_t step = 0; step < 9; ++step) store.put(step, testing::tiny_row(tiny_layout(), step));
  store.sync();
}
constexpr std::int64_t kept_of_nine = 7;

Said run(const fs::path& path, const Fault& fault, std::optional<std::int64_t> after) {
  void* const shared =
      ::mmap(nullptr, sizeof(Said), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  REQUIRE(shared != MAP_FAILED);
  Said& said = *new (shared) Said;
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    testing::calls = 0;
    testing::fault = fault;
    testing::fault.enabled = true;
    said.reached =
        fault.kind == Fault::Kind::kill || fault.kind == Fault::Kind::half;  // if it is not to return
    try {
      write_trace(path, after, said);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::io && error.code() != ErrorCode::path) said.wrong = 1;
    } catch (...) {
      said.wrong = 2;
    }
    said.reached = testing::calls >= fault.at;
    ::_exit(0);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE_MESSAGE(WIFEXITED(status), "the process crashed");
  const Said out = said;
  ::munmap(shared, sizeof(Said));
  CHECK(out.wrong == 0);
  return out;
}

// All rows that are there are right, and no step before the last is in neither a row nor a gap.
std::int64_t check_trace(const fs::path& path, std::int64_t claimed) {
  if (!fs::exists(path) && !fs::exists(live_folder(path))) {
    CHECK(claimed == 0);
    return 0;
  }
  const TraceReader reader(path);
  std::vector<std::int64_t> steps = testing::check_rows(reader);
  const auto found = static_cast<std::int64_t>(steps.size());
  CHECK_MESSAGE(found >= claimed, "acknowledged rows are lost");
  for (const TraceGap& gap : reader.gaps()) {
    CHECK(gap.rows == gap.last - gap.first + 1);
    for (std::int64_t step = gap.first; step <= gap.last; ++step) steps.push_back(step);
  }
  std::ranges::sort(steps);
  CHECK(steps == testing::steps_to(static_cast<std::int64_t>(steps.size()) - 1));
  return found;
}

}  // namespace

TEST_CASE("a trace, with every writing call failing for once, for long or for ever, killed, or torn") {
  const TemporaryFolder folder;
  const fs::path path = folder / "run.h5";
  std::uint64_t points = 0, ends = 0, complete = 0, with_gaps = 0;
  struct Kind {
    Fault::Kind kind;
    int error;
    std::uint64_t lasts;  // calls
  };
  constexpr std::uint64_t ever = 1'000'000;
  for (const bool resumed : {false, true}) {
    for (const Kind& kind : std::vector<Kind>{{Fault::Kind::kill, 0, 0},
                                              {Fault::Kind::half, 0, 0},
                                              {Fault::Kind::fail, ENOSPC, 0},
                                              {Fault::Kind::fail, ENOSPC, 20},
                                              {Fault::Kind::fail, ENOSPC, ever},
                                              {Fault::Kind::fail, EIO, 0},
                                              {Fault::Kind::fail, EDQUOT, ever},
                                              {Fault::Kind::half_fail, ENOSPC, 20},
                                              {Fault::Kind::half_fail, EIO, 0},
                                              // of which a short run takes some calls
                                              {Fault::Kind::fail, EIO, 20},
                                              {Fault::Kind::fail, EIO, ever},
                                              {Fault::Kind::fail, EDQUOT, 20},
                                              {Fault::Kind::brief, 0, ever}}) {
      const bool ending = kind.kind == Fault::Kind::kill || kind.kind == Fault::Kind::half;
      const bool some = kind.kind == Fault::Kind::brief || (kind.error == EIO && kind.lasts > 0) ||
                        (kind.error == EDQUOT && kind.lasts < ever);
      const bool once = kind.lasts == 0 && kind.error != EIO;
      rows = ending ? testing::in_full(40, 13) : 13;
      bool reached = !resumed || once || testing::in_full(true, false);
      for (std::uint64_t at = 1; reached; at += some ? testing::in_full(1, 8) : 1) {
        CAPTURE(resumed);
        CAPTURE(at);
        CAPTURE(static_cast<int>(kind.kind));
        CAPTURE(kind.error);
        CAPTURE(kind.lasts);
        fs::remove_all(live_folder(path));
        fs::remove(path);
        if (resumed) write_nine(path);
        const Fault fault{.kind = kind.kind,
                          .error = kind.error,
                          .lasting = kind.lasts > 0,
                          .at = at,
                          .until = at + kind.lasts};
        const Said said = run(path, fault, resumed ? std::optional(kept_of_nine - 1) : std::nullopt);
        reached = said.reached;
        points += reached;
        ends += reached && ending;
        // Opening cuts back: what is claimed before that is what the step leaves.
        const std::int64_t found =
            check_trace(path, resumed ? std::max(kept_of_nine, said.claimed) : said.claimed);
        if (!said.reached) REQUIRE(said.merged);
        if (said.merged) {
          CHECK(fs::is_regular_file(path));  // beside it the live folder, if it could not be removed
          CHECK(said.claimed == found);
        }
        if (kind.kind == Fault::Kind::brief) {
          CHECK(said.merged);
          CHECK(found == rows);
        }
        complete += found == rows;
        with_gaps += said.merged && found < rows;
        // The next one goes on from there.
        if (!said.merged) {
          Said next;
          write_trace(path, found == 0 ? std::nullopt : std::optional(rows), next);
          CHECK(next.merged);
          const std::int64_t now = check_trace(path, next.claimed);
          CHECK(now >= found);
          if (now < rows) CHECK_FALSE(TraceReader(path).gaps().empty());
        }
      }
    }
  }
  MESSAGE("points: ", points, ", of them the process's end: ", ends, ", complete: ", complete,
          ", with gaps: ", with_gaps);
  CHECK(points >= testing::in_full(5000, 2000));
  CHECK(ends >= testing::in_full(2000, 500));
}

TEST_CASE(
    "a trace after a power cut: what flush acknowledged is there, nothing is wrong, unsynced calls dropped "
    "in every "
    "mixture") {
  const TemporaryFolder folder;
  const fs::path path = folder / "disk" / "run.h5", left = folder / "left" / "run.h5";
  std::mt19937_64 random(3);
  std::uint64_t states = 0, merged = 0, fewer = 0;
  rows = 13;
  for (const bool resumed : {false, true}) {
    CAPTURE(resumed);
    fs::remove_all(folder / "disk");
    fs::create_directory(folder / "disk");
    if (resumed) write_nine(path);
    Disk disk(folder / "disk");
    std::vector<std::pair<std::size_t, std::int64_t>> acknowledged;  // rows, from so many calls on
    testing::recorded.clear();
    testing::recording = true;
    Said said;
    write_trace(path, resumed ? std::optional(kept_of_nine - 1) : std::nullopt, said,
                [&](std::int64_t claimed) { acknowledged.emplace_back(testing::recorded.size(), claimed); });
    testing::recording = false;
    REQUIRE(said.merged);
    disk.replay(testing::recorded);
    for (std::size_t end = 0; end <= disk.calls(); end += testing::in_full(1, 2)) {
      std::int64_t claimed = resumed ? kept_of_nine : 0;
      for (const auto& [calls, claim] : acknowledged) {
        if (calls <= end) claimed = std::max(claimed, claim);
      }
      const std::size_t mixtures = testing::in_full(20, 4);
      for (std::size_t i = 0; i < mixtures; ++i) {
        CAPTURE(end);
        CAPTURE(i);
        fs::remove_all(folder / "left");
        fs::create_directory(folder / "left");
        Disk::write(disk.after(end, static_cast<double>(i) / static_cast<double>(mixtures - 1), random),
                    folder / "left");
        const std::int64_t found = check_trace(left, claimed);
        fewer += found < (resumed ? 9 : rows);
        merged += fs::exists(left);
        ++states;
        // The next one goes on from there.
        if (i != end / 2 % mixtures || fs::exists(left)) continue;
        Said next;
        write_trace(left, found == 0 ? std::nullopt : std::optional(rows), next);
        CHECK(next.merged);
        CHECK(check_trace(left, next.claimed) == rows);
      }
    }
  }
  MESSAGE("states: ", states, ", with the results file: ", merged);
  CHECK(states >= testing::in_full(5000, 500));
  CHECK(merged > 0);
  CHECK(fewer > states / 4);
}

TEST_CASE("a writing process killed at random moments: no acknowledged row is lost, and the next goes on") {
  const TemporaryFolder folder;
  const fs::path path = folder / "run.h5";
  // What is promised to be there: rows up to `acknowledged`.
  void* const shared = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  REQUIRE(shared != MAP_FAILED);
  auto& acknowledged = *new (shared) std::atomic<std::int64_t>(-1);
  auto& merged = *new (static_cast<std::byte*>(shared) + 64) std::atomic<std::int64_t>(0);
  std::mt19937_64 random(5);
  std::int64_t most = 0, segments = 0, cut = 0;
  const int kills = testing::in_full(1000, 300);
  for (int kill = 0; kill < kills; ++kill) {
    CAPTURE(kill);
    if (kill % 25 == 0) {  // also the making of a trace is interrupted
      fs::remove_all(live_folder(path));
      fs::remove(path);
      acknowledged = -1;
    }
    // Some go on from a checkpoint, and some end in between.
    const bool from_checkpoint = kill % 3 == 1 || !fs::exists(live_folder(path)), ends = kill % 5 == 1;
    const std::int64_t checkpoint =
        std::max<std::int64_t>(-1, acknowledged - static_cast<std::int64_t>(random() % 40));
    if (from_checkpoint) acknowledged = checkpoint;
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      try {
        TraceWriter::Options options{.flush_seconds = 0.002, .ring_bytes = 1 << 20, .segment_bytes = 1 << 13};
        if (from_checkpoint) options.after = checkpoint;
        for (;;) {
          TraceWriter writer(path, testing::tiny_header(), options);
          const std::int64_t first = writer.status().last_kept + 1;
          for (std::int64_t step = first; !ends || step < first + 60; ++step) {
            if (!writer.append(step, testing::tiny_row(writer.layout(), step))) ::_exit(1);
            if (step % 7 == 0 && writer.flush()) acknowledged = step;
          }
          if (!writer.close().error.empty()) ::_exit(3);
          ++merged;
          options.after = first + 59;
          acknowledged = first + 59;
        }
      } catch (...) {
        ::_exit(2);
      }
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random() % (ends ? 120'000 : 30'000)));
    ::kill(child, SIGKILL);
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status));
    if (!fs::exists(live_folder(path)) && !fs::exists(path)) {
      CHECK(acknowledged == -1);
      continue;
    }
    const TraceReader reader(path);
    const std::vector<std::int64_t> steps = testing::check_rows(reader);
    const auto last = static_cast<std::int64_t>(steps.size()) - 1;
    CHECK(last >= acknowledged);
    CHECK(steps == testing::steps_to(last));
    CHECK(reader.gaps().empty());
    most = std::max(most, last);
    segments += static_cast<std::int64_t>(reader.manifest().segments.size());
    cut += from_checkpoint;
  }
  MESSAGE("kills: ", kills, ", longest trace: ", most + 1, " rows, gone on with from a checkpoint: ", cut,
          ", merged: ", merged.load());
  CHECK(most > 500);
  CHECK(segments > 100);
  CHECK(merged > 10);
  ::munmap(shared, 4096);
}

TEST_CASE(
    "a limit on the length of files: the training lives, gaps are exact, and it goes on when there is room") {
  const TemporaryFolder folder;
  const fs::path path = folder / "run.h5";
  const std::size_t row_bytes = tiny_layout().row_bytes();
  for (const bool lifted : {true, false}) {
    CAPTURE(lifted);
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {  // whose limit is its own; SIGXFSZ ends it unless somebody sees to that
      int wrong = 0;
      TraceWriter writer(
          path, testing::tiny_header(),
          {.flush_seconds = 3600, .ring_bytes = 8 * row_bytes, .segment_bytes = 8 * (row_bytes + 60)});
      std::vector<std::int64_t> kept, lost;
      const auto append = [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t step = first; step <= last; ++step) {
          (writer.append(step, testing::tiny_row(writer.layout(), step)) ? kept : lost).push_back(step);
          if (step % 3 == 2) writer.flush();
        }
      };
      append(0, 5);
      rlimit limit{.rlim_cur = 600, .rlim_max = RLIM_INFINITY};
      ::setrlimit(RLIMIT_FSIZE, &limit);
      append(6, 49);
      if (!writer.status().failing || writer.status().error.find("free space") == std::string::npos)
        wrong |= 1;
      limit.rlim_cur = RLIM_INFINITY;
      if (lifted) ::setrlimit(RLIMIT_FSIZE, &limit);
      if (lifted) append(50, 60);
      const TraceWriter::Status status = writer.close();
      ::setrlimit(RLIMIT_FSIZE, &limit);
      if (lost.empty()) wrong |= 2;
      const TraceReader reader(path);
      std::vector<std::int64_t> gaps;
      for (const TraceGap& gap : reader.gaps()) {
        for (const std::int64_t step : testing::steps_to(gap.last, gap.first)) gaps.push_back(step);
        if (gap.rows != gap.last - gap.first + 1) wrong |= 4;
      }
      const std::vector<std::int64_t> found = testing::check_rows(reader);
      if (lifted && (found != kept || gaps != lost || !reader.finished())) wrong |= 8;
      const auto claimed = static_cast<std::size_t>(status.kept);
      if (found.size() < claimed || !std::equal(found.begin(), found.end(), kept.begin())) wrong |= 16;
      if (status.kept + status.dropped != status.appended) wrong |= 32;
      ::_exit(wrong);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 0);
    fs::remove_all(live_folder(path));
    fs::remove(path);
  }
}

TEST_CASE("what a killed writer left is gone on with in 2 s of work for a GB of journal") {
  for (const std::int64_t width : {0, 1'000'000}) {  // narrow rows, and those of a model
    CAPTURE(width);
    const TemporaryFolder folder;
    const fs::path path = folder / "run.h5";
    TraceHeader header = testing::tiny_header();
    header.sites.back().width += width;
    const TraceLayout layout(header);
    const auto bytes = testing::in_full<std::size_t>(1'000'000'000, 50'000'000);
    const auto count = static_cast<std::int64_t>(bytes / (layout.row_bytes() + 48));
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      TraceStore store(path, header, {}, 2 * bytes);
      const std::vector<std::byte> row(layout.row_bytes(), std::byte{1});
      for (std::int64_t step = 0; step < count; ++step) store.put(step, row);
      store.sync();
      ::_exit(0);
    }
    int status = -1;
    REQUIRE(::waitpid(child, &status, 0) == child);
    REQUIRE(status == 0);
    double seconds = 1e9;
    for (int i = 0; i < 3; ++i) {  // the machine does other things too
      const std::clock_t start = std::clock();
      const TraceStore store(path, header, {}, 2 * bytes);
      seconds = std::min(seconds, static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC);
      CHECK(store.rows_on_disk() == count);
    }
    const double per_gb =
        seconds * 1e9 / static_cast<double>(fs::file_size(journal_path(live_folder(path), 1)));
    MESSAGE("rows of ", layout.row_bytes(), " bytes: ", per_gb, " s of processor time for a GB");
    CHECK(per_gb <= testing::in_full(2.0, 20.0));  // of little data a busy machine says less
  }
}
