#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>
#include <support/errors.h>
#include <support/files.h>
#include <support/full.h>
#include <support/temporary_folder.h>
#include <support/tiny_trace.h>

#include <scalevec/core/store/trace_folder.h>
#include <scalevec/core/store/trace_journal.h>
#include <scalevec/core/store/trace_manifest.h>
#include <scalevec/core/store/trace_merge.h>
#include <scalevec/core/store/trace_reader.h>
#include <scalevec/core/store/trace_writer.h>

using namespace scalevec;
using scalevec::testing::append;
using scalevec::testing::check_rows;
using scalevec::testing::error_of;
using scalevec::testing::small;
using scalevec::testing::snapshot;
using scalevec::testing::steps_to;
using scalevec::testing::TemporaryFolder;
using scalevec::testing::tiny_header;
using scalevec::testing::tiny_row;
namespace fs = std::filesystem;

namespace {

std::size_t rows_in(const std::string& journal) {
  const auto bytes = std::as_bytes(std::span(journal));
  return TraceJournal::parse({bytes.begin(), bytes.end()}, TraceLayout(tiny_header()).row_bytes())
      .journal.rows();
}

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

TEST_CASE(
    "any bit of a sealed segment, of the contents or of a merged file: never a wrong row, and the file is "
    "named") {
  const TemporaryFolder folder;
  const fs::path path = folder / "run.h5";
  {
    TraceWriter writer(path, tiny_header(), small());
    append(writer, 0, 22);
    REQUIRE(writer.close(false).error.empty());
  }
  const auto files = snapshot(live_folder(path));
  std::mt19937_64 random(3);
  const auto segment_list = TraceReader(path).manifest().segments;
  for (int i = 0; i < 1000; ++i) {
    const TraceSegment& hit = segment_list[random() % segment_list.size()];
    const fs::path file = live_folder(path) / hit.file;
    std::string bytes = files.at(hit.file);
    bytes[random() % bytes.size()] ^= static_cast<char>(1 << random() % 8);
    testing::write_text(file, bytes);
    const auto caught = error_of([&] { check_rows(TraceReader(path)); });
    CHECK(caught.code == ErrorCode::state);
    CHECK(caught.fields.file == file.string());
    const TraceReader rest(path, TraceReader::Damage::skip);
    CHECK(rest.rows() == 23 - static_cast<std::size_t>(hit.rows));
    CHECK(check_rows(rest).size() == rest.rows());
    CHECK(rest.gaps() == std::vector<TraceGap>{{hit.first, hit.last, hit.rows}});
    CHECK(rest.damage().size() == 1);
    testing::write_text(file, files.at(hit.file));
  }
  for (const std::size_t size : {std::size_t{0}, std::size_t{24}, std::size_t{48}, std::size_t{2000}}) {
    const TraceSegment& hit = segment_list[1];
    testing::write_text(live_folder(path) / hit.file, files.at(hit.file).substr(0, size));
    CHECK(error_of([&] { TraceReader{path}; }).code == ErrorCode::trunc);
    CHECK(check_rows(TraceReader(path, TraceReader::Damage::skip)).size() ==
          23 - static_cast<std::size_t>(hit.rows));
    testing::write_text(live_folder(path) / hit.file, files.at(hit.file));
  }
  const std::string contents = files.at("trace.json");
  for (std::size_t at = 0; at < contents.size(); ++at) {
    std::string bytes = contents;
    bytes[at] ^= static_cast<char>(1 << random() % 8);
    testing::write_text(manifest_path(live_folder(path)), bytes);
    CHECK(error_of([&] { TraceReader{path}; }).code == ErrorCode::state);
  }
  testing::write_text(manifest_path(live_folder(path)), contents);
  CHECK(check_rows(TraceReader(path)) == steps_to(22));

  // In a merged file, every value has a checksum.
  merge_trace(path, {}, /*deflate=*/0);
  const std::string merged = testing::read_text(path);
  for (std::size_t column = 0; column <= tiny_header().columns.size(); ++column) {
    std::string sought(8, '\0');  // steps 4 and 5, or two rows of a column
    if (column == tiny_header().columns.size()) {
      for (const std::int64_t step : {4, 5}) sought += std::string(reinterpret_cast<const char*>(&step), 8);
      sought.erase(0, 8);
    } else {
      const TraceReader reader(path);
      const auto bytes =
          reader.read(column, 4, 2, 0, static_cast<std::size_t>(reader.layout()[column].entries));
      sought.assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    }
    const std::size_t at = merged.find(sought);
    REQUIRE(at != std::string::npos);
    for (std::size_t i = 0; i < sought.size(); ++i) {
      std::string bytes = merged;
      bytes[at + i] ^= static_cast<char>(1 << random() % 8);
      testing::write_text(path, bytes);
      CHECK(error_of([&] { check_rows(TraceReader(path)); }).code == ErrorCode::io);
    }
  }
}

TEST_CASE("a journal that is missing, another's or damaged is told apart from a torn end") {
  const TemporaryFolder folder;
  const fs::path path = folder / "run.h5", live = live_folder(path);
  {
    TraceWriter writer(path, tiny_header(), small());
    append(writer, 0, 14);
    REQUIRE(writer.flush());
    append(writer, 15, 16);
    REQUIRE(writer.flush());
    fs::copy(live, folder / "copy", fs::copy_options::recursive);
  }
  const auto files = snapshot(folder / "copy");
  const auto restore = [&] {
    fs::remove_all(live);
    fs::copy(folder / "copy", live, fs::copy_options::recursive);
  };
  restore();
  const fs::path journal = journal_path(live, TraceReader(path).manifest().next_journal());
  const std::string bytes = files.at(journal.filename().string());
  const std::size_t sealed = TraceReader(path).rows() - rows_in(bytes);
  REQUIRE(sealed < 15);

  testing::write_text(journal, bytes.substr(0, bytes.size() - 10));
  CHECK(check_rows(TraceReader(path)) == steps_to(15));
  testing::write_text(journal, bytes + std::string(4096, '\0'));
  CHECK(check_rows(TraceReader(path)) == steps_to(16));
  {
    TraceWriter writer(path, tiny_header(), small());
    append(writer, 17, 17);
  }
  CHECK(check_rows(TraceReader(path)) == steps_to(17));

  restore();
  fs::remove(journal);
  CHECK(error_of([&] { TraceReader{path}; }).code == ErrorCode::state);
  CHECK(check_rows(TraceReader(path, TraceReader::Damage::skip)).size() == sealed);
  testing::write_text(journal, bytes.substr(0, 120) + "!" + bytes.substr(121));
  const auto caught = error_of([&] { TraceReader{path}; });
  CHECK(caught.code == ErrorCode::state);
  CHECK(caught.message.find("byte 112, row 0") != std::string::npos);
  CHECK(error_of([&] { TraceWriter(path, tiny_header(), small()); }).code == ErrorCode::state);
  merge_trace(path, folder / "rest.h5", 1, TraceReader::Damage::skip);
  CHECK(check_rows(TraceReader(folder / "rest.h5")).size() == sealed);
  CHECK(fs::exists(live));
  TraceJournal foreign(TraceLayout(tiny_header()).row_bytes(),
                       TraceReader(path, TraceReader::Damage::skip).manifest().next_journal(),
                       std::string(64, 'b'));
  foreign.row(17, tiny_row(TraceLayout(tiny_header()), 17));
  testing::write_text(journal,
                      {reinterpret_cast<const char*>(foreign.bytes().data()), foreign.bytes().size()});
  CHECK(error_of([&] { TraceReader{path}; }).message.find("another's") != std::string::npos);
}
