// The trace's storage, with every call that writes failing, killed, or torn: whatever was said to be on the
// disk is there, nothing that is there is wrong, and what is left can be gone on with.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
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

#include "faults/system_calls.h"
#include "support/temporary_folder.h"
#include "support/tiny_trace.h"

namespace fs = std::filesystem;
using namespace scalevec;
using testing::Fault;
using testing::TemporaryFolder;

namespace {

constexpr std::int64_t rows = 13;

// What the writing process has said, which outlives it.
struct Said {
  std::int64_t claimed = 0;  // rows on the disk
  bool reached = false, opened = false, merged = false;
  bool failing = false;
  int wrong = 0;
};

// Five rows or so in a segment, a sync after every third; then the results file.
void write_trace(const fs::path& path, std::optional<std::int64_t> after, Said& said) {
  const TraceLayout layout(testing::tiny_header());
  TraceStore store(path, testing::tiny_header(), after, 5 * (layout.row_bytes() + 60));
  said.opened = true;
  said.claimed = store.rows_on_disk();
  TraceGap gap;
  for (std::int64_t step = store.last_step() + 1; step < rows; ++step) {
    if (gap.rows > 0) store.put(std::exchange(gap, {}));
    if (!store.put(step, testing::tiny_row(layout, step))) gap = {step, step, 1};
    store.write();
    if (step % 3 == 2) store.sync();
    said.claimed = store.rows_on_disk();
  }
  if (gap.rows > 0) store.put(gap);
  store.sync();
  said.claimed = store.rows_on_disk();
  said.failing = store.failing();
  if (store.failing() && store.error().find("free space") == std::string::npos) said.wrong = 3;
  if (store.failing()) return;
  store.close_file();
  merge_locked(path, {}, 1, TraceReader::Damage::refuse);
  said.merged = true;
}

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
  std::uint64_t points = 0, complete = 0, with_gaps = 0;
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
                                              {Fault::Kind::half_fail, EIO, 0}}) {
      const bool once = kind.lasts == 0 && kind.error != EIO;
      bool reached = !resumed || once;
      for (std::uint64_t at = 1; reached; ++at) {
        CAPTURE(resumed);
        CAPTURE(at);
        CAPTURE(static_cast<int>(kind.kind));
        CAPTURE(kind.error);
        CAPTURE(kind.lasts);
        fs::remove_all(live_folder(path));
        fs::remove(path);
        if (resumed) {  // nine rows from before, of which seven are kept
          TraceStore store(path, testing::tiny_header(), {},
                           5 * (TraceLayout(testing::tiny_header()).row_bytes() + 60));
          for (std::int64_t step = 0; step < 9; ++step) {
            store.put(step, testing::tiny_row(TraceLayout(testing::tiny_header()), step));
          }
          store.sync();
        }
        const Fault fault{.kind = kind.kind,
                          .error = kind.error,
                          .lasting = kind.lasts > 0,
                          .at = at,
                          .until = at + kind.lasts};
        const Said said = run(path, fault, resumed ? std::optional<std::int64_t>(6) : std::nullopt);
        reached = said.reached;
        points += reached;
        // Opening cuts back: what is claimed before that is what the step leaves.
        const std::int64_t found =
            check_trace(path, resumed ? std::max<std::int64_t>(7, said.claimed) : said.claimed);
        if (!said.reached) REQUIRE(said.merged);
        if (said.merged) {
          CHECK(fs::is_regular_file(path));  // beside it the live folder, if it could not be removed
          CHECK(said.claimed == found);
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
  MESSAGE("points: ", points, ", complete: ", complete, ", with gaps: ", with_gaps);
  CHECK(points >= 2000);
}

TEST_CASE(
    "a writing process killed at 300 random moments: no acknowledged row is lost, and the next goes on") {
  const TemporaryFolder folder;
  const fs::path path = folder / "run.h5";
  void* const shared = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  REQUIRE(shared != MAP_FAILED);
  auto& acknowledged = *new (shared) std::atomic<std::int64_t>(-1);
  std::mt19937_64 random(5);
  std::int64_t most = 0, segments = 0;
  for (int kill = 0; kill < 300; ++kill) {
    CAPTURE(kill);
    if (kill % 25 == 0) {  // also the making of a trace is interrupted
      fs::remove_all(live_folder(path));
      acknowledged = -1;
    }
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      try {
        TraceWriter writer(path, testing::tiny_header(),
                           {.flush_seconds = 0.002, .ring_bytes = 1 << 20, .segment_bytes = 1 << 13});
        for (std::int64_t step = writer.status().last_kept + 1;; ++step) {
          if (!writer.append(step, testing::tiny_row(writer.layout(), step))) ::_exit(1);
          if (step % 7 == 0 && writer.flush()) acknowledged = step;
        }
      } catch (...) {
        ::_exit(2);
      }
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 30000));
    ::kill(child, SIGKILL);
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status));
    if (!fs::exists(live_folder(path))) {
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
  }
  ::munmap(shared, 4096);
  MESSAGE("longest trace: ", most + 1, " rows");
  CHECK(most > 500);
  CHECK(segments > 100);
}
