#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <support/errors.h>
#include <support/files.h>
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

}  // namespace

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
