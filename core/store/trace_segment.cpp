#include <scalevec/core/store/trace_segment.h>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <system_error>
#include <utility>

#include <fmt/format.h>

#include <scalevec/core/atomic_file.h>
#include <scalevec/core/error.h>
#include <scalevec/core/sha256.h>
#include <scalevec/core/store/crc32c.h>
#include <scalevec/core/store/trace_folder.h>

namespace scalevec {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t piece_bytes = 1 << 20;

// Every column in pieces of whole rows.
template <class Visit>
void each_piece(const TraceLayout& layout, const TraceJournal& journal, Visit visit) {
  std::vector<std::byte> values;
  for (std::size_t i = 0; i < layout.columns(); ++i) {
    const TraceLayout::Place& place = layout[i];
    const std::size_t at_once =
        std::max<std::size_t>(1, piece_bytes / std::max<std::size_t>(1, place.bytes()));
    for (std::size_t begin = 0; begin < journal.rows(); begin += at_once) {
      const std::size_t rows = std::min(at_once, journal.rows() - begin);
      values.resize(rows * place.bytes());
      for (std::size_t row = 0; row < rows; ++row) {
        std::memcpy(values.data() + row * place.bytes(), journal.payload(begin + row).data() + place.offset,
                    place.bytes());
      }
      visit(i, hdf5::Block{.row = begin, .rows = rows, .entries = static_cast<std::uint64_t>(place.entries)},
            values);
    }
  }
}

std::vector<std::int64_t> steps_of(const TraceJournal& journal) {
  std::vector<std::int64_t> steps;
  for (std::size_t row = 0; row < journal.rows(); ++row) steps.push_back(journal.step(row));
  return steps;
}

void write(const fs::path& path, const TraceHeader& header, const TraceLayout& layout,
           const TraceJournal& journal) {
  hdf5::File file = hdf5::File::create(path);
  {
    const hdf5::Group group = file.root().group("trace");
    write_trace_dimensions(group, layout, steps_of(journal));
    for (const TraceColumn& column : header.columns) {
      group.create(column.name, column.type, trace_dimensions(column), -1);
      describe_trace_column(group, column);
    }
    each_piece(layout, journal,
               [&](std::size_t i, const hdf5::Block& block, std::span<const std::byte> values) {
                 group.write_block(header.columns[i].name, layout[i].type, block, values);
               });
  }
  file.close();
}

// The library has been seen to close a file with success after a write of its own had failed.
void verify(const fs::path& path, const TraceHeader& header, const TraceLayout& layout,
            const TraceJournal& journal) {
  const auto differs = [&] {
    fail(ErrorCode::io,
         fmt::format("'{}' does not read as it was written: the disk or the memory is failing",
                     printable(path.string())),
         {.file = path.string()});
  };
  const hdf5::File file = hdf5::File::open(path);
  const hdf5::Group group = file.root().group("trace");
  const hdf5::Array step = group.read("step");
  if (std::get<std::vector<std::int64_t>>(step.values) != steps_of(journal)) differs();
  for (const TraceColumn& column : header.columns) {
    if (group.description(column.name, "units") != column.unit) differs();
  }
  std::vector<std::byte> found;
  each_piece(layout, journal,
             [&](std::size_t i, const hdf5::Block& block, std::span<const std::byte> written) {
               found.resize(written.size());
               group.read_block(header.columns[i].name, layout[i].type, block, found);
               if (!found.empty() && std::memcmp(found.data(), written.data(), found.size()) != 0) differs();
             });
}

// Size and digest of what the file holds.
std::pair<std::uint64_t, std::string> digest_of(int descriptor, const fs::path& path) {
  Sha256 digest;
  std::vector<std::byte> piece(piece_bytes);
  for (std::uint64_t at = 0;;) {
    const ssize_t got = ::pread(descriptor, piece.data(), piece.size(), static_cast<off_t>(at));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      fail(ErrorCode::io,
           fmt::format("reading '{}': {}", printable(path.string()), std::generic_category().message(errno)),
           {.file = path.string()});
    }
    if (got == 0) return {at, digest.hex()};
    digest.update(std::span(piece).first(static_cast<std::size_t>(got)));
    at += static_cast<std::uint64_t>(got);
  }
}

// Touching fresh memory page by page costs more than reading a file into it and checking it.
void ask_for_large_pages(std::byte* memory, std::size_t size) {
  constexpr std::size_t page = 2 << 20;
  void* begin = memory;
  if (std::align(page, page, begin, size) != nullptr) ::madvise(begin, size / page * page, MADV_HUGEPAGE);
}

}  // namespace

std::vector<std::string> trace_dimensions(const TraceColumn& column) {
  switch (column.per) {
    case TraceColumn::Per::site:
      return {"step", "site"};
    case TraceColumn::Per::channel:
      return {"step", "channel"};
    case TraceColumn::Per::run:
      break;
  }
  return {"step"};
}

void write_trace_dimensions(const hdf5::Group& group, const TraceLayout& layout,
                            std::span<const std::int64_t> steps) {
  group.dimension("step", steps);
  group.dimension("site", layout.start().size() - 1);
  group.dimension("channel", static_cast<std::uint64_t>(layout.start().back()));
}

void describe_trace_column(const hdf5::Group& group, const TraceColumn& column) {
  group.describe(column.name, "units", column.unit);
  group.describe(column.name, "description", column.description);
  group.describe(column.name, "per", trace_per_name(column.per));
}

TraceSegment write_segment(const fs::path& folder, const TraceHeader& header, const TraceLayout& layout,
                           const TraceJournal& journal) {
  const std::string name = segment_name(journal.number(), crc32c(journal.bytes()));
  AtomicFile file(folder / name, Replace::files);
  write(file.path(), header, layout, journal);
  file.sync();
  verify(file.path(), header, layout, journal);
  auto [bytes, sha256] = digest_of(file.descriptor(), file.path());
  TraceSegment segment{.file = name,
                       .sha256 = std::move(sha256),
                       .bytes = bytes,
                       .rows = static_cast<std::int64_t>(journal.rows()),
                       .first = journal.step(0),
                       .last = journal.step(journal.rows() - 1)};
  file.commit();
  return segment;
}

void check_segment(const fs::path& folder, const TraceSegment& segment) {
  const fs::path path = folder / segment.file;
  const std::vector<std::byte> bytes = read_whole(path);
  if (bytes.size() != segment.bytes) {
    fail(ErrorCode::trunc, "a sealed segment of a trace is not of the size that was sealed",
         {.file = path.string(),
          .expected = fmt::format("{} bytes", segment.bytes),
          .found = fmt::format("{} bytes", bytes.size())});
  }
  if (const std::string digest = sha256_hex(bytes); digest != segment.sha256) {
    fail(ErrorCode::state, "a sealed segment of a trace is not what was sealed: its bytes were changed",
         {.file = path.string(), .expected = segment.sha256, .found = digest});
  }
}

std::vector<std::byte> read_whole(const fs::path& path) {
  const auto refuse = [&](ErrorCode code, int error) {
    fail(code,
         fmt::format("reading '{}': {}", printable(path.string()), std::generic_category().message(error)),
         {.file = path.string()});
  };
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) refuse(errno == ENOENT || errno == ENOTDIR ? ErrorCode::path : ErrorCode::io, errno);
  struct stat there {};
  std::vector<std::byte> bytes;
  int error = ::fstat(descriptor, &there) == 0 ? 0 : errno;
  std::size_t done = 0;
  if (error == 0) {
    bytes.reserve(static_cast<std::size_t>(there.st_size));
    ask_for_large_pages(bytes.data(), bytes.capacity());
    bytes.resize(static_cast<std::size_t>(there.st_size));
  }
  while (error == 0 && done < bytes.size()) {
    const ssize_t got =
        ::pread(descriptor, bytes.data() + done, bytes.size() - done, static_cast<off_t>(done));
    if (got < 0 && errno != EINTR) error = errno;
    if (got == 0) bytes.resize(done);  // it shrank
    if (got > 0) done += static_cast<std::size_t>(got);
  }
  ::close(descriptor);
  if (error != 0) refuse(ErrorCode::io, error);
  return bytes;
}

}  // namespace scalevec
