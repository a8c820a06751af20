#include <scalevec/core/store/trace_segment.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>

#include <fmt/format.h>

#include <scalevec/core/atomic_file.h>
#include <scalevec/core/error.h>
#include <scalevec/core/sha256.h>

namespace scalevec {
namespace {

namespace fs = std::filesystem;

// One column of the rows, one row after the other.
void gather(const Journal& journal, const TraceLayout::Place& place, std::vector<std::byte>& out) {
  out.resize(journal.rows() * place.bytes());
  for (std::size_t row = 0; row < journal.rows(); ++row) {
    std::memcpy(out.data() + row * place.bytes(), journal.payload(row).data() + place.offset, place.bytes());
  }
}

std::vector<std::int64_t> steps_of(const Journal& journal) {
  std::vector<std::int64_t> steps;
  for (std::size_t row = 0; row < journal.rows(); ++row) steps.push_back(journal.step(row));
  return steps;
}

std::vector<std::byte> image_of(const TraceHeader& header, const TraceLayout& layout,
                                const Journal& journal) {
  hdf5::File file = hdf5::File::in_memory("segment");
  const hdf5::Group group = file.root().group("trace");
  write_trace_dimensions(group, layout, steps_of(journal));
  std::vector<std::byte> values;
  for (std::size_t i = 0; i < layout.columns(); ++i) {
    const TraceColumn& column = header.columns[i];
    gather(journal, layout[i], values);
    group.write(column.name, hdf5::view(column.type, values), trace_dimensions(column));
    describe_trace_column(group, column);
  }
  return file.image();
}

void verify(const fs::path& path, std::span<const std::byte> image, const TraceHeader& header,
            const TraceLayout& layout, const Journal& journal) {
  const auto differs = [&] {
    fail(ErrorCode::io,
         fmt::format("'{}' does not read as it was written: the disk or the memory is failing",
                     printable(path.string())),
         {.file = path.string()});
  };
  if (!std::ranges::equal(read_whole(path), image)) differs();
  hdf5::File file = hdf5::File::open(path);
  const hdf5::Group group = file.root().group("trace");
  const hdf5::Array step = group.read("step");
  if (std::get<std::vector<std::int64_t>>(step.values) != steps_of(journal)) differs();
  std::vector<std::byte> written, found;
  for (std::size_t i = 0; i < layout.columns(); ++i) {
    gather(journal, layout[i], written);
    found.resize(written.size());
    const hdf5::Block all{.rows = journal.rows(), .entries = static_cast<std::uint64_t>(layout[i].entries)};
    group.read_block(header.columns[i].name, layout[i].type, all, found);
    if (found != written) differs();
  }
  file.close();
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
                           const Journal& journal) {
  const std::vector<std::byte> image = image_of(header, layout, journal);
  TraceSegment segment{.file = {},
                       .sha256 = sha256_hex(image),
                       .bytes = image.size(),
                       .rows = static_cast<std::int64_t>(journal.rows()),
                       .first = journal.step(0),
                       .last = journal.step(journal.rows() - 1)};
  segment.file = segment_name(journal.number(), segment.sha256);
  AtomicFile file(folder / segment.file, Replace::files);
  file.append(image);
  file.sync();
  verify(file.path(), image, header, layout, journal);
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
  if (error == 0) bytes.resize(static_cast<std::size_t>(there.st_size));
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
