#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>
#include <support/errors.h>
#include <support/files.h>
#include <support/temporary_folder.h>
#include <support/tiny_trace.h>

#include <scalevec/core/store/trace_folder.h>
#include <scalevec/core/store/trace_manifest.h>
#include <scalevec/core/store/trace_merge.h>
#include <scalevec/core/store/trace_reader.h>
#include <scalevec/core/store/trace_writer.h>

using namespace scalevec;
using scalevec::testing::append;
using scalevec::testing::check_rows;
using scalevec::testing::error_of;
using scalevec::testing::small;
using scalevec::testing::steps_to;
using scalevec::testing::TemporaryFolder;
using scalevec::testing::tiny_header;
using scalevec::testing::tiny_row;
namespace fs = std::filesystem;

namespace {

std::size_t segments(const fs::path& path) { return TraceReader(path).manifest().segments.size(); }

}  // namespace

TEST_CASE("TraceLayout: names that are no words, reserved or twice are refused") {
  const auto code = [](std::vector<std::string> names) {
    TraceHeader header;
    for (const std::string& name : names) header.columns.push_back({name, "", ""});
    return error_of([&] { TraceLayout{header}; }).code;
  };
  for (const char* name : {"", "a b", "step", "header", "../x", "\xC3\xA9"})
    CHECK(code({name}) == ErrorCode::name);
  CHECK(code({"a", "b", "a"}) == ErrorCode::dup);
  const TraceLayout layout(tiny_header());
  CHECK(layout.start() == std::vector<std::int64_t>{0, 2, 2, 5});
  CHECK(layout[layout.find("scale")].entries == 5);
  CHECK(error_of([&] { layout.find("scales"); }).message.find("loss, count, rms, scale") !=
        std::string::npos);
}

TEST_CASE("merging tells how far it is; what is thrown from that leaves a whole trace, not merged") {
  struct Enough {};
  const TemporaryFolder folder;
  const fs::path path = folder / "run.h5";
  TraceWriter writer(path, tiny_header(), small());
  append(writer, 0, 22);
  const auto leave = [&](std::string_view, std::uint64_t done, std::uint64_t total) {
    CHECK(writer.close().kept == 23);  // a signal's handler may
    CHECK(error_of([&] { writer.append(23, tiny_row(writer.layout(), 23)); }).code == ErrorCode::state);
    if (2 * done > total) throw Enough();  // while it is read back
  };
  CHECK_THROWS_AS(writer.close(true, leave), Enough);
  CHECK(writer.status().kept == 23);
  CHECK(writer.status().error.empty());
  CHECK_THROWS_AS(merge_trace(path, {}, 1, TraceReader::Damage::refuse, leave), Enough);
  const std::vector<fs::path> left(fs::directory_iterator(folder.path()), fs::directory_iterator());
  CHECK(left == std::vector{live_folder(path)});
  CHECK(check_rows(TraceReader(path)) == steps_to(22));

  std::vector<std::uint64_t> told;
  merge_trace(path, {}, 1, TraceReader::Damage::refuse,
              [&](std::string_view what, std::uint64_t done, std::uint64_t total) {
                CHECK(what == "merging the trace");
                CHECK(total == 2 * tiny_header().columns.size());
                told.push_back(done);
              });
  CHECK(std::ranges::is_sorted(told));
  CHECK(std::ranges::adjacent_find(told, [](auto a, auto b) { return b > a + 1; }) == told.end());
  CHECK(told.front() == 0);
  CHECK(told.back() == 2 * tiny_header().columns.size());
  CHECK(check_rows(TraceReader(path)) == steps_to(22));
  CHECK(fs::is_regular_file(path));
}

TEST_CASE("a trace is readable while it grows, after it is closed, and after it is merged: the same rows") {
  const TemporaryFolder folder;
  const fs::path path = folder / "run.h5";
  TraceWriter writer(path, tiny_header(), small());
  CHECK(TraceReader(path).rows() == 0);
  append(writer, 0, 22);
  REQUIRE(writer.flush());
  CHECK(segments(path) >= 3);
  CHECK(check_rows(TraceReader(path)) == steps_to(22));
  CHECK(check_rows(TraceReader(live_folder(path))) == steps_to(22));
  const TraceReader early(path);
  append(writer, 23, 40);
  REQUIRE(writer.flush());
  CHECK(check_rows(early) == steps_to(22));
  const TraceWriter::Status status = writer.close();
  CHECK(status.error.empty());
  CHECK(status.kept == 41);
  CHECK(status.appended == 41);
  CHECK(status.dropped == 0);
  CHECK(status.last_kept == 40);
  CHECK_FALSE(fs::exists(live_folder(path)));
  const TraceReader done(path);
  CHECK(done.finished());
  CHECK(check_rows(done) == steps_to(40));
  CHECK(done.header().sites[2].consumers[0].native == "a=b c");
  CHECK(done.header().run.command == "scalevec train e.toml");
  CHECK(std::get<double>(done.header().run.more[2].second) == 0.5);
  CHECK(error_of([&] { check_rows(early); }).message.find("open it again") != std::string::npos);
  CHECK(error_of([&] { writer.append(41, tiny_row(writer.layout(), 41)); }).code == ErrorCode::state);
  // Part of a column, across segments.
  const auto bytes = done.read(3, 4, 3, 2, 3);
  const auto* values = reinterpret_cast<const float*>(bytes.data());
  CHECK(std::vector<float>(values, values + 9) == std::vector<float>{42, 43, 44, 52, 53, 54, 62, 63, 64});
  CHECK(error_of([&] { done.read(3, 40, 2, 0, 1); }).code == ErrorCode::shape);
  CHECK(error_of([&] { done.read(3, 0, 1, 3, 3); }).code == ErrorCode::shape);
}

TEST_CASE("however the rows were sealed, the merged datasets are the same bytes") {
  const TemporaryFolder folder;
  std::vector<std::string> texts;
  for (const std::size_t rows : {1, 5, 1000}) {
    const fs::path path = folder / ("run" + std::to_string(rows) + ".h5");
    TraceWriter::Options options = small();
    options.segment_bytes = rows * 200;
    options.ring_bytes = 1 << 20;
    TraceWriter writer(path, tiny_header(), options);
    append(writer, 0, 150);
    REQUIRE(writer.close().error.empty());
    hdf5::File file = hdf5::File::open(path);
    const hdf5::Group trace = file.root().group("trace");
    std::string text;
    for (const TraceColumn& column : tiny_header().columns) {
      CHECK(trace.dimensions(column.name).front() == "step");
      CHECK(trace.description(column.name, "units") == column.unit);
      std::visit(
          [&](const auto& values) {
            text.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(values[0]));
          },
          trace.read(column.name).values);
    }
    texts.push_back(text);
  }
  CHECK(texts[0].size() > 1000);
  CHECK(texts[0] == texts[1]);
  CHECK(texts[0] == texts[2]);
}

TEST_CASE("a writer goes on with what another left, and drops what the training makes again") {
  const TemporaryFolder folder;
  const fs::path path = folder / "run.h5";
  for (std::int64_t cut = -1; cut <= 18; ++cut) {
    CAPTURE(cut);
    fs::remove_all(live_folder(path));
    fs::remove(path);
    {
      TraceWriter writer(path, tiny_header(), small());
      append(writer, 0, 12);
      CHECK(writer.close(false).kept == 13);
    }
    CHECK(fs::exists(live_folder(path)));
    {
      TraceWriter writer(path, tiny_header(), small());  // as after a kill: no step is named
      CHECK(writer.status().last_kept == 12);
      CHECK(error_of([&] {
              writer.append(12, tiny_row(writer.layout(), 12));
            }).message.find("step 12 does not come after step 12") != std::string::npos);
      append(writer, 13, 16);
    }
    TraceWriter::Options options = small();
    options.after = cut;
    {
      TraceWriter writer(path, tiny_header(), options);
      CHECK(writer.status().last_kept == std::min<std::int64_t>(cut, 16));
      CHECK(check_rows(TraceReader(path)) == steps_to(std::min<std::int64_t>(cut, 16)));
      append(writer, cut + 1, 20);
      const TraceWriter::Status status = writer.close();
      CHECK(status.error.empty());
      CHECK(status.kept == 20 - cut);
    }
    std::vector<std::int64_t> wanted = steps_to(std::min<std::int64_t>(cut, 16));
    for (const std::int64_t step : steps_to(20, cut + 1)) wanted.push_back(step);
    const TraceReader done(path);
    CHECK(check_rows(done) == wanted);
    CHECK(done.resumes() == std::vector<TraceResume>{{cut, 16 - std::min<std::int64_t>(cut, 16)}});
  }
}

TEST_CASE("a finished trace is gone on with where a step is named, and else refused") {
  const TemporaryFolder folder;
  const fs::path path = folder / "run.h5";
  {
    TraceWriter writer(path, tiny_header(), small());
    append(writer, 0, 12);
    CHECK(writer.close().error.empty());
  }
  CHECK(error_of([&] { TraceWriter(path, tiny_header(), small()); }).code == ErrorCode::path);
  TraceWriter::Options options = small();
  options.after = 9;
  {
    TraceWriter writer(path, tiny_header(), options);
    CHECK(check_rows(TraceReader(path)) == steps_to(9));
    append(writer, 10, 30);
    CHECK(writer.close().error.empty());
  }
  CHECK(check_rows(TraceReader(path)) == steps_to(30));
  CHECK(TraceReader(path).resumes() == std::vector<TraceResume>{{9, 3}});

  TraceHeader other = tiny_header();
  other.columns.pop_back();
  options.after = 5;
  CHECK(error_of([&] { TraceWriter(path, other, options); }).code == ErrorCode::state);
  options.after = -1;
  {
    TraceWriter writer(path, other, options);
    CHECK(TraceReader(path).rows() == 0);
    CHECK(writer.append(0, std::vector<std::byte>(writer.layout().row_bytes())));
    CHECK(writer.close().error.empty());
  }
  CHECK(TraceReader(path).rows() == 1);
  testing::write_text(folder / "other.h5", "something of mine");
  for (const std::optional<std::int64_t> after :
       {std::optional<std::int64_t>{}, std::optional<std::int64_t>{-1}}) {
    options.after = after;
    CHECK_THROWS_AS(TraceWriter(folder / "other.h5", tiny_header(), options), std::runtime_error);
  }
  CHECK(testing::read_text(folder / "other.h5") == "something of mine");
}

TEST_CASE("a second writer is told which process has the trace; the right ends with it, and is no child's") {
  const TemporaryFolder folder;
  const fs::path path = folder / "run.h5";
  auto writer = std::make_unique<TraceWriter>(path, tiny_header(), small());
  append(*writer, 0, 3);
  const std::string mine = "process " + std::to_string(::getpid());
  CHECK(error_of([&] { TraceWriter(path, tiny_header(), small()); }).message.find(mine) != std::string::npos);
  CHECK(error_of([&] { merge_trace(path); }).code == ErrorCode::state);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    int status = 0;
    try {
      TraceWriter second(path, tiny_header(), small());
      status |= 1;
    } catch (const Error& error) {
      if (error.message().find(mine) == std::string::npos) status |= 2;
    }
    try {
      writer->append(4, tiny_row(writer->layout(), 4));
      status |= 4;
    } catch (const Error& error) {
      if (error.code() != ErrorCode::state) status |= 8;
    }
    writer.reset();  // ends nothing
    ::_exit(status);
  }
  int status = -1;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(status == 0);
  append(*writer, 4, 6);
  CHECK(writer->flush());
  writer.reset();
  TraceWriter second(path, tiny_header(), small());
  CHECK(second.status().last_kept == 6);
}

TEST_CASE("rows that come faster than they are written are dropped whole, and the gap is exact") {
  const TemporaryFolder folder;
  const fs::path path = folder / "run.h5";
  TraceWriter::Options options = small();
  options.ring_bytes = 4 * TraceLayout(tiny_header()).row_bytes();
  TraceWriter writer(path, tiny_header(), options);
  std::vector<std::int64_t> kept, lost;
  for (std::int64_t step = 0; step < 20000; ++step) {
    (writer.append(step, tiny_row(writer.layout(), step)) ? kept : lost).push_back(step);
    if (step % 100 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  const TraceWriter::Status status = writer.close();
  CHECK(status.dropped == static_cast<std::int64_t>(lost.size()));
  CHECK(status.kept == static_cast<std::int64_t>(kept.size()));
  REQUIRE_FALSE(lost.empty());
  REQUIRE(kept.size() > 8);
  const TraceReader done(path);
  CHECK(check_rows(done) == kept);
  std::vector<std::int64_t> gaps;
  for (const TraceGap& gap : done.gaps()) {
    CHECK(gap.rows == gap.last - gap.first + 1);
    for (const std::int64_t step : steps_to(gap.last, gap.first)) gaps.push_back(step);
  }
  CHECK(gaps == lost);
}
