// Readers and writers at the same time: threads, and processes (P11).
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>
#include <support/full.h>
#include <support/temporary_folder.h>
#include <support/tiny_trace.h>

#include <scalevec/core/error.h>
#include <scalevec/core/store/trace_reader.h>
#include <scalevec/core/store/trace_writer.h>

using namespace scalevec;
using scalevec::testing::append;
using scalevec::testing::check_rows;
using scalevec::testing::small;
using scalevec::testing::steps_to;
using scalevec::testing::TemporaryFolder;
using scalevec::testing::tiny_header;
using scalevec::testing::tiny_row;
namespace fs = std::filesystem;

TEST_CASE("readers beside a writer that seals, is cut back and merged: always a right prefix") {
  const TemporaryFolder folder;
  const fs::path path = folder / "run.h5";
  std::atomic<bool> stop{false};
  std::atomic<std::int64_t> acknowledged{-1};
  std::atomic<int> views{0};
  std::string wrong;
  { TraceWriter writer(path, tiny_header(), small()); }
  std::vector<std::thread> readers;
  for (int i = 0; i < 2; ++i) {
    readers.emplace_back([&] {
      while (!stop) {
        const std::int64_t known = acknowledged;
        try {
          const TraceReader reader(path);
          std::int64_t last = -1;
          reader.each_row(0, reader.rows(), [&](std::int64_t step, std::span<const std::byte>) {
            if (step != ++last) wrong = "a row is left out";
          });
          if (last < known) wrong = "an acknowledged row is missing";
          ++views;
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
        } catch (const Error& error) {
          if (error.message().find("open it again") == std::string::npos) wrong = error.message();
        }
      }
    });
  }
  std::int64_t step = 0;
  for (int round = 0; round < 6; ++round) {
    TraceWriter::Options options = small();
    options.after = step - 1;
    TraceWriter writer(path, tiny_header(), options);
    for (int i = 0; i < 20; ++i) {
      append(writer, step, step + 3);
      step += 4;
      if (writer.flush()) acknowledged = step - 1;
    }
    CHECK(writer.close(round % 2 == 1).error.empty());
    step -= 30;  // the training goes on from a checkpoint
    acknowledged = step - 1;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  stop = true;
  for (std::thread& reader : readers) reader.join();
  CHECK(wrong == "");
  MESSAGE("views: ", views.load());
  CHECK(views > 20);
}

TEST_CASE(
    "writers of one process, each asked by three threads: nobody is waited for, and all rows are there") {
  const TemporaryFolder folder;
  std::vector<std::thread> threads;
  std::vector<std::unique_ptr<TraceWriter>> writers;
  std::atomic<bool> over{false};
  std::atomic<int> wrong{0};
  for (const char* name : {"a.h5", "b.h5"}) {
    writers.push_back(std::make_unique<TraceWriter>(folder / name, tiny_header(), small()));
    TraceWriter& writer = *writers.back();
    threads.emplace_back([&] {
      for (std::int64_t step = 0; step < 60; ++step) {
        while (writer.status().appended - writer.status().kept > 40) writer.flush();
        if (!writer.append(step, tiny_row(writer.layout(), step))) ++wrong;
      }
    });
    threads.emplace_back([&] {
      while (!over) wrong += !writer.flush();
    });
    threads.emplace_back([&] {
      while (!over) {
        const TraceWriter::Status status = writer.status();
        wrong +=
            status.kept > status.appended || status.last_kept + 1 != status.kept || !status.error.empty();
      }
    });
  }
  for (const std::size_t appending : {0, 3}) threads[appending].join();
  over = true;
  for (const std::size_t asking : {1, 2, 4, 5}) threads[asking].join();
  threads.clear();
  for (const auto& writer : writers) threads.emplace_back([&] { wrong += writer->close().kept != 60; });
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
  for (const char* name : {"a.h5", "b.h5"}) CHECK(check_rows(TraceReader(folder / name)) == steps_to(59));
}

namespace {

// Processes that open a trace at random moments until it is over: exit status 0, or the number of what was
// wrong.
int read_until(const fs::path& path, unsigned seed, const std::atomic<std::int64_t>& acknowledged,
               const std::atomic<bool>& over, std::atomic<std::int64_t>& views,
               std::atomic<double>& slowest) {
  std::mt19937_64 random(seed);
  while (!over) {
    ::alarm(30);  // what hangs is killed
    const std::int64_t known = acknowledged;
    const auto start = std::chrono::steady_clock::now();
    const TraceReader reader(path);
    const std::chrono::duration<double> opening = std::chrono::steady_clock::now() - start;
    for (double before = slowest;
         before < opening.count() && !slowest.compare_exchange_weak(before, opening.count());) {
    }
    const auto rows = static_cast<std::int64_t>(reader.rows());
    if (rows <= known) return 2;
    // Of all steps every segment is read: not each time.
    if (random() % 16 == 0 && reader.steps() != steps_to(rows - 1)) return 3;
    for (int i = 0; i < 5; ++i) {
      const auto step = i == 0 ? rows - 1 : static_cast<std::int64_t>(random() % static_cast<unsigned>(rows));
      const std::vector<std::byte> wanted = tiny_row(reader.layout(), step);
      for (std::size_t column = 0; column < reader.layout().columns(); ++column) {
        const TraceLayout::Place& place = reader.layout()[column];
        const auto found = reader.read(column, static_cast<std::size_t>(step), 1, 0,
                                       static_cast<std::size_t>(place.entries));
        if (std::memcmp(found.data(), wanted.data() + place.offset, place.bytes()) != 0) return 4;
      }
    }
    ++views;
    std::this_thread::sleep_for(std::chrono::milliseconds(random() % 1000));
  }
  return 0;
}

}  // namespace

TEST_CASE("eight reading processes beside 1,000 rows a second: none wrong, late, blocked or blocking") {
  const TemporaryFolder folder;
  const fs::path path = folder / "run.h5";
  struct Shared {
    std::atomic<std::int64_t> acknowledged{0}, views{0};
    std::atomic<bool> over{false};
    std::atomic<double> slowest{0.0};
  };
  void* const memory =
      ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  REQUIRE(memory != MAP_FAILED);
  Shared& shared = *new (memory) Shared;
  { TraceWriter(path, tiny_header()).append(0, tiny_row(TraceLayout(tiny_header()), 0)); }
  std::vector<pid_t> readers;
  for (unsigned i = 0; i < 8; ++i) {
    readers.push_back(::fork());
    REQUIRE(readers.back() >= 0);
    if (readers.back() != 0) continue;
    int status = 1;
    try {
      status = read_until(path, i, shared.acknowledged, shared.over, shared.views, shared.slowest);
    } catch (...) {
    }
    ::_exit(status);
  }
  const std::int64_t rows = testing::in_full(600'000, 3'000);
  double appending = 0.0;  // what the training waits for
  const auto start = std::chrono::steady_clock::now();
  {
    TraceWriter writer(path, tiny_header(), {.flush_seconds = 0.2, .segment_bytes = 1 << 17});
    for (std::int64_t step = 1; step <= rows; ++step) {
      std::this_thread::sleep_until(start + std::chrono::milliseconds(step));
      const std::vector<std::byte> row = tiny_row(writer.layout(), step);
      const auto before = std::chrono::steady_clock::now();
      REQUIRE(writer.append(step, row));
      appending += std::chrono::duration<double>(std::chrono::steady_clock::now() - before).count();
      if (step % 50 == 0) shared.acknowledged = writer.status().last_kept;
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    if (testing::in_full(true, false)) {  // a busy machine may stop everybody for a second
      CHECK(took.count() < 1.05e-3 * static_cast<double>(rows));
      CHECK(appending < 0.05 * took.count());
    }
    shared.over = true;
    for (const pid_t reader : readers) {
      int status = -1;
      REQUIRE(::waitpid(reader, &status, 0) == reader);
      CHECK(status == 0);
    }
    const TraceWriter::Status status = writer.close();
    CHECK(status.kept == rows);
    CHECK(status.dropped == 0);
  }
  MESSAGE("views: ", shared.views.load(), ", slowest opening: ", shared.slowest.load(),
          " s, the training waited ", appending, " s for ", rows, " rows");
  CHECK(shared.views > 8);
  CHECK(shared.slowest < testing::in_full(1.0, 30.0));
  CHECK(check_rows(TraceReader(path)) == steps_to(rows));
  ::munmap(memory, sizeof(Shared));
}
