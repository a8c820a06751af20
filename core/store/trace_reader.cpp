#include <scalevec/core/store/trace_reader.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <scalevec/core/error.h>
#include <scalevec/core/store/trace_folder.h>
#include <scalevec/core/store/trace_segment.h>

namespace scalevec {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t packed_at_once = 8 << 20;  // bytes

std::string text_of(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

bool is_trace(const fs::path& path) {
  if (fs::is_directory(live_folder(path))) return true;
  if (path.extension() != ".h5") return false;
  try {
    const hdf5::File file = hdf5::File::open(path);
    return file.root().has("trace") && file.root().group("trace").has("header");
  } catch (const Error&) {
    return false;
  }
}

[[noreturn]] void refuse_folder(const fs::path& folder) {
  std::set<std::string> files;
  std::error_code unreadable;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, unreadable)) {
    const fs::path file = trace_path(entry.path());
    if (is_trace(file)) files.insert(fmt::format("'{}'", printable(file.string())));
  }
  fail(ErrorCode::path,
       fmt::format("'{}' is a folder, no trace; {}", printable(folder.string()),
                   files.empty() ? "there is none in it"
                                 : fmt::format("give one of its files: {}", fmt::join(files, ", "))),
       {.file = folder.string()});
}

// An HDF5 file that holds rows [row, row + rows): a segment, or the finished trace.
struct Part {
  fs::path file;
  std::size_t row = 0, rows = 0;
  std::optional<TraceSegment> unchecked;  // to be compared with its digest before the first use
};

}  // namespace

struct TraceReader::State {
  fs::path path, folder;
  Damage mode;
  bool finished = false;
  TraceManifest manifest;
  std::optional<TraceLayout> layout;
  std::optional<TraceJournal> journal;
  std::vector<TraceGap> gaps;
  std::vector<TraceResume> resumes;
  std::vector<std::string> damage;
  std::size_t rows = 0;
  std::size_t journal_row = 0;  // the first that is the journal's

  std::mutex mutex;  // of what follows
  std::vector<Part> parts;
  std::vector<std::int64_t> steps;
  bool has_steps = false;
  std::optional<std::pair<std::size_t, hdf5::File>> open;

  State(const fs::path& given, Damage how) : path(trace_path(given)), folder(live_folder(path)), mode(how) {
    load();
    layout.emplace(manifest.header);
  }

  void load() {
    using namespace std::chrono_literals;
    // A writer seals between our look at the contents and at what they name: look again.
    constexpr int attempts = 200;
    std::string before, why;
    int same = 0;
    for (int attempt = 0; attempt < attempts; ++attempt) {
      if (attempt > 0) std::this_thread::sleep_for(2ms);
      std::string text;
      try {
        text = text_of(read_whole(manifest_path(folder)));
      } catch (const Error& error) {
        if (error.code() != ErrorCode::path) throw;
        if (!fs::exists(path)) {
          if (fs::exists(folder)) throw;
          fail(ErrorCode::path,
               fmt::format("there is no trace '{}': neither the file nor its live folder",
                           printable(path.string())),
               {.file = path.string()});
        }
        if (fs::is_directory(path)) refuse_folder(path);
        if (load_finished()) return;
        continue;
      }
      manifest = parse_manifest(text, manifest_path(folder));
      why = load_journal();
      if (why.empty()) {
        load_segments();
        return;
      }
      same = text == before ? same + 1 : 0;
      before = std::move(text);
      if (same == 5) break;  // nobody is at work
    }
    note(ErrorCode::state, why, journal_path(folder, manifest.next_journal()));
    load_segments();
  }

  // Damage: thrown, or listed.
  void note(ErrorCode code, const std::string& what, const fs::path& file) {
    if (mode == Damage::refuse) {
      fail(code,
           fmt::format("the trace '{}' is damaged: {}. Reading it with damage skipped leaves that part out",
                       printable(path.string()), what),
           {.file = file.string()});
    }
    damage.push_back(fmt::format("{}: {}", file.filename().string(), what));
  }

  bool load_finished() {
    hdf5::File file = hdf5::File::open(path);
    if (!file.root().has("trace") || !file.root().group("trace").has("header")) {
      fail(ErrorCode::format, fmt::format("'{}' is no trace", printable(path.string())),
           {.file = path.string()});
    }
    const hdf5::Group group = file.root().group("trace");
    const auto header = std::get<std::vector<std::string>>(group.read("header").values);
    manifest = parse_manifest(header.empty() ? "" : header.front(), path);
    steps = std::get<std::vector<std::int64_t>>(group.read("step").values);
    has_steps = finished = true;
    rows = journal_row = steps.size();
    parts.push_back({.file = path, .row = 0, .rows = rows, .unchecked = {}});
    gaps = manifest.gaps;
    resumes = manifest.resumes;
    open.emplace(0, std::move(file));
    return true;
  }

  // Why not; empty: done.
  std::string load_journal() {
    std::vector<std::byte> bytes;
    try {
      bytes = read_whole(journal_path(folder, manifest.next_journal()));
    } catch (const Error& error) {
      if (error.code() != ErrorCode::path) throw;
      return "its journal is missing";
    }
    TraceJournal::Parsed parsed =
        TraceJournal::parse(std::move(bytes), TraceLayout(manifest.header).row_bytes());
    if (parsed.damage.empty() && (parsed.journal.before() != manifest.last_digest() ||
                                  parsed.journal.number() != manifest.next_journal())) {
      return "its journal is another's";
    }
    if (!parsed.damage.empty()) {
      note(ErrorCode::state, "journal, " + parsed.damage, journal_path(folder, manifest.next_journal()));
    }
    if (parsed.journal.bytes().empty()) return "";
    journal = std::move(parsed.journal);
    return "";
  }

  void load_segments() {
    gaps = manifest.gaps;
    resumes = manifest.resumes;
    for (const TraceSegment& segment : manifest.segments) {
      Part part{.file = folder / segment.file,
                .row = rows,
                .rows = static_cast<std::size_t>(segment.rows),
                .unchecked = segment};
      try {
        std::error_code error;
        const std::uintmax_t size = fs::file_size(part.file, error);
        if (mode == Damage::skip || (!error && size != segment.bytes)) {
          check_segment(folder, segment);
          part.unchecked.reset();
        }
      } catch (const Error& error) {
        if (mode == Damage::refuse) throw;
        note(error.code(), error.message(), part.file);
        gaps.push_back({segment.first, segment.last, segment.rows});
        continue;
      }
      rows += part.rows;
      parts.push_back(std::move(part));
    }
    journal_row = rows;
    if (journal) {
      rows += journal->rows();
      gaps.insert(gaps.end(), journal->gaps().begin(), journal->gaps().end());
      resumes.insert(resumes.end(), journal->resumes().begin(), journal->resumes().end());
    }
    std::ranges::sort(gaps, {}, &TraceGap::first);
  }

  hdf5::Group group_of(std::size_t number) {
    Part& part = parts[number];
    try {
      if (part.unchecked) {
        check_segment(folder, *part.unchecked);
        part.unchecked.reset();
      }
      if (!open || open->first != number) open.emplace(number, hdf5::File::open(part.file));
    } catch (const Error& error) {
      // The folder of a trace that was merged or cut back is gone, or another's.
      if (fs::exists(part.file)) throw;
      fail(ErrorCode::state,
           fmt::format("the trace '{}' has been merged or cut back since it was opened; open it again",
                       printable(path.string())),
           {.file = part.file.string()});
    }
    return open->second.root().group("trace");
  }

  void read(std::size_t column, std::size_t row, std::size_t count, std::size_t entry, std::size_t entries,
            std::byte* out) {
    const TraceLayout::Place& place = (*layout)[column];
    const std::size_t width = entries * hdf5::number_bytes(place.type);
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const std::size_t begin = std::max(row, parts[i].row);
      const std::size_t end = std::min(row + count, parts[i].row + parts[i].rows);
      if (begin >= end) continue;
      const hdf5::Block block{begin - parts[i].row, end - begin, entry, entries};
      group_of(i).read_block(manifest.header.columns[column].name, place.type, block,
                             {out + (begin - row) * width, (end - begin) * width});
    }
    for (std::size_t at = std::max(row, journal_row); at < row + count; ++at) {
      const auto payload = journal->payload(at - journal_row);
      std::memcpy(out + (at - row) * width,
                  payload.data() + place.offset + entry * hdf5::number_bytes(place.type), width);
    }
  }
};

TraceReader::TraceReader(const fs::path& path, Damage damage)
    : state_(std::make_unique<State>(path, damage)) {}
TraceReader::~TraceReader() = default;
TraceReader::TraceReader(TraceReader&&) noexcept = default;
TraceReader& TraceReader::operator=(TraceReader&&) noexcept = default;

const TraceHeader& TraceReader::header() const { return state_->manifest.header; }
const TraceLayout& TraceReader::layout() const { return *state_->layout; }
const std::string& TraceReader::created() const { return state_->manifest.created; }
const TraceManifest& TraceReader::manifest() const { return state_->manifest; }
bool TraceReader::finished() const { return state_->finished; }
std::size_t TraceReader::rows() const { return state_->rows; }
const std::vector<TraceGap>& TraceReader::gaps() const { return state_->gaps; }
const std::vector<TraceResume>& TraceReader::resumes() const { return state_->resumes; }
const std::vector<std::string>& TraceReader::damage() const { return state_->damage; }
std::optional<TraceJournal> TraceReader::take_journal() && {
  return std::exchange(state_->journal, std::nullopt);
}

const std::vector<std::int64_t>& TraceReader::steps() const {
  State& s = *state_;
  const std::lock_guard guard(s.mutex);
  if (s.has_steps) return s.steps;
  std::vector<std::int64_t> steps;
  for (std::size_t i = 0; i < s.parts.size(); ++i) {
    const hdf5::Array part = s.group_of(i).read("step");
    const auto& values = std::get<std::vector<std::int64_t>>(part.values);
    steps.insert(steps.end(), values.begin(), values.end());
  }
  for (std::size_t row = 0; row < s.rows - s.journal_row; ++row) steps.push_back(s.journal->step(row));
  s.steps = std::move(steps);
  s.has_steps = true;
  return s.steps;
}

std::vector<std::byte> TraceReader::read(std::size_t column, std::size_t row, std::size_t rows,
                                         std::size_t entry, std::size_t entries) const {
  const TraceLayout::Place& place = layout()[column];
  const auto most = static_cast<std::size_t>(place.entries);
  if (row > this->rows() || rows > this->rows() - row || entry > most || entries > most - entry) {
    fail(ErrorCode::shape,
         fmt::format("trace: '{}' is {} x {}; rows {} + {} and entries {} + {} are not in it",
                     header().columns[column].name, this->rows(), most, row, rows, entry, entries),
         {.file = state_->path.string()});
  }
  std::vector<std::byte> out(rows * entries * hdf5::number_bytes(place.type));
  const std::lock_guard guard(state_->mutex);
  state_->read(column, row, rows, entry, entries, out.data());
  return out;
}

void TraceReader::each_row(
    std::size_t row, std::size_t rows,
    const std::function<void(std::int64_t step, std::span<const std::byte> packed)>& take) const {
  const std::size_t bytes = layout().row_bytes();
  const std::size_t at_once = std::max<std::size_t>(1, packed_at_once / std::max<std::size_t>(1, bytes));
  const std::vector<std::int64_t>& all_steps = steps();
  for (const std::size_t end = row + rows; row < end;) {
    const std::size_t count = std::min(at_once, end - row);
    std::vector<std::byte> packed(count * bytes);
    for (std::size_t i = 0; i < layout().columns(); ++i) {
      const TraceLayout::Place& place = layout()[i];
      const std::vector<std::byte> values = read(i, row, count, 0, static_cast<std::size_t>(place.entries));
      for (std::size_t r = 0; r < count; ++r) {
        std::memcpy(packed.data() + r * bytes + place.offset, values.data() + r * place.bytes(),
                    place.bytes());
      }
    }
    for (std::size_t r = 0; r < count; ++r) {
      take(all_steps[row + r], std::span(packed).subspan(r * bytes, bytes));
    }
    row += count;
  }
}

}  // namespace scalevec
