#include <scalevec/core/store/trace_merge.h>

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <optional>
#include <system_error>

#include <fmt/format.h>

#include <scalevec/core/atomic_file.h>
#include <scalevec/core/error.h>
#include <scalevec/core/store/trace_folder.h>
#include <scalevec/core/store/trace_segment.h>

namespace scalevec {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t block_bytes = 8 << 20;

using Told = std::function<void(std::size_t column)>;

// Blocks of whole chunks, so that each is compressed once. `told` of every block: columns done.
template <class Visit>
void each_block(const TraceReader& trace, std::size_t column, const Told& told, Visit visit) {
  const TraceLayout::Place& place = trace.layout()[column];
  const auto entries = static_cast<std::uint64_t>(place.entries);
  const std::uint64_t size = hdf5::number_bytes(place.type), unit = hdf5::Group::block_rows;
  const std::uint64_t tile = hdf5::Group::tile_bytes / size;
  const std::uint64_t width = std::min(entries, std::max(tile, block_bytes / unit / size / tile * tile));
  if (width == 0) return;
  const std::uint64_t rows = std::max(unit, block_bytes / (width * size) / unit * unit);
  for (std::uint64_t row = 0; row < trace.rows(); row += rows) {
    for (std::uint64_t entry = 0; entry < entries; entry += width) {
      told(column);
      visit(hdf5::Block{row, std::min(rows, trace.rows() - row), entry, std::min(width, entries - entry)});
    }
  }
}

std::vector<std::byte> read(const TraceReader& trace, std::size_t column, const hdf5::Block& block) {
  return trace.read(column, block.row, block.rows, block.entry, block.entries);
}

TraceManifest about(const TraceReader& trace) {
  TraceManifest out = trace.manifest();
  out.segments.clear();
  out.gaps = trace.gaps();
  out.resumes = trace.resumes();
  return out;
}

// All but the columns.
void write_small(const hdf5::Group& root, const TraceReader& trace) {
  const TraceHeader& header = trace.header();
  const TraceManifest manifest = about(trace);
  write_header(root, header.run, manifest.created);
  if (!header.model_config.empty()) {
    root.group("model").write("config", std::span<const std::string>(&header.model_config, 1), {});
  }
  write_sites(root, header.sites);

  const hdf5::Group group = root.group("trace");
  group.attribute("id", std::string_view(manifest.id));
  const std::string text = manifest_text(manifest);
  group.write("header", std::span<const std::string>(&text, 1), {});
  write_trace_dimensions(group, trace.layout(), trace.steps());
  const auto numbers = [](const auto& list, auto member) {
    std::vector<std::int64_t> values;
    for (const auto& entry : list) values.push_back(entry.*member);
    return values;
  };
  const auto first = numbers(manifest.gaps, &TraceGap::first), last = numbers(manifest.gaps, &TraceGap::last),
             rows = numbers(manifest.gaps, &TraceGap::rows),
             step = numbers(manifest.resumes, &TraceResume::step),
             dropped = numbers(manifest.resumes, &TraceResume::dropped);
  write_table(root, "trace/gaps", "gap", {{"first", first}, {"last", last}, {"rows", rows}});
  write_table(root, "trace/resumes", "resume", {{"step", step}, {"dropped", dropped}});
  root.attribute("complete", std::int64_t{1});
}

void write(const TraceReader& trace, const fs::path& path, int deflate, const Told& told) {
  hdf5::File file = hdf5::File::create(path);
  write_small(file.root(), trace);
  {
    const hdf5::Group group = file.root().group("trace");
    for (std::size_t i = 0; i < trace.header().columns.size(); ++i) {
      const TraceColumn& column = trace.header().columns[i];
      group.create(column.name, column.type, trace_dimensions(column), deflate);
      describe_trace_column(group, column);
      each_block(trace, i, told, [&](const hdf5::Block& block) {
        group.write_block(column.name, column.type, block, read(trace, i, block));
      });
    }
  }
  file.close();
}

[[noreturn]] void differs(const fs::path& path) {
  fail(ErrorCode::io, "the merged trace does not read as it was written: the disk or the memory is failing",
       {.file = path.string()});
}

// Every dataset of `wanted` and of those of its groups.
void compare(const hdf5::Group& wanted, const hdf5::Group& found, const fs::path& path,
             std::initializer_list<const char*> groups) {
  for (const std::string& name : wanted.names()) {
    if (std::ranges::find(groups, name) == groups.end()) {
      if (wanted.read(name).values != found.read(name).values) differs(path);
    } else {
      compare(wanted.group(name), found.group(name), path, {"gaps", "resumes"});
    }
  }
}

// The library has been seen to close a file with success after a write of its own had failed.
void verify(const TraceReader& trace, const fs::path& path, const Told& told) {
  const hdf5::File reference = hdf5::File::in_memory("reference");
  write_small(reference.root(), trace);
  const hdf5::File file = hdf5::File::open(path);
  compare(reference.root(), file.root(), path, {"model", "sites", "trace"});
  if (file.root().integer_attribute("complete") != 1) differs(path);
  const hdf5::Group group = file.root().group("trace");
  std::vector<std::byte> found;
  for (std::size_t i = 0; i < trace.header().columns.size(); ++i) {
    const TraceColumn& column = trace.header().columns[i];
    if (group.description(column.name, "units") != column.unit) differs(path);
    each_block(trace, i, told, [&](const hdf5::Block& block) {
      const std::vector<std::byte> written = read(trace, i, block);
      found.resize(written.size());
      group.read_block(column.name, column.type, block, found);
      if (std::memcmp(found.data(), written.data(), found.size()) != 0) differs(path);
    });
  }
}

bool is_earlier(const fs::path& path, const std::string& id) {
  std::error_code error;
  if (!fs::is_regular_file(fs::symlink_status(path, error)) || fs::file_size(path, error) == 0) return false;
  try {
    const hdf5::File file = hdf5::File::open(path);
    return file.root().has("trace") && file.root().group("trace").text_attribute("id") == id;
  } catch (const Error&) {
    return false;  // whatever it is, it is not ours to replace
  }
}

}  // namespace

void merge_locked(const fs::path& path, const fs::path& output, int deflate, TraceReader::Damage damage,
                  const Progress& progress) {
  const bool in_place = output.empty() || output == path;
  const fs::path target = in_place ? path : output;
  {
    const TraceReader trace(path, damage);
    AtomicFile file(target, is_earlier(target, trace.manifest().id) ? Replace::files : Replace::no);
    const std::size_t columns = trace.header().columns.size();
    const auto tell = [&](std::size_t done) { report(progress, "merging the trace", done, 2 * columns); };
    write(trace, file.path(), deflate, tell);
    verify(trace, file.path(), [&](std::size_t column) { tell(columns + column); });
    tell(2 * columns);
    file.commit();
  }
  if (!in_place) return;
  // First another name, at once and for good: half a folder would be taken for a damaged trace.
  const fs::path folder = live_folder(path);
  fs::path going =
      folder.parent_path() / fmt::format(".{}.{}.scalevec-tmp", folder.filename().string(), ::getpid());
  std::error_code error;
  fs::rename(folder, going, error);
  if (error) return;
  try {
    sync_folder(folder.parent_path());
    fs::remove_all(going, error);
  } catch (const Error&) {
    // What stays, the next writer in the parent folder clears.
  }
}

void merge_trace(const fs::path& given, const fs::path& output, int deflate, TraceReader::Damage damage,
                 const Progress& progress) {
  const fs::path path = trace_path(given);
  std::optional<TraceLock> lock;
  if (fs::exists(live_folder(path))) lock.emplace(live_folder(path));
  merge_locked(path, output, deflate, damage, progress);
}

}  // namespace scalevec
