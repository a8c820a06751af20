#include <scalevec/core/store/trace_store.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <set>
#include <system_error>
#include <utility>

#include <fmt/format.h>

#include <scalevec/core/atomic_file.h>
#include <scalevec/core/error.h>
#include <scalevec/core/store/trace_reader.h>
#include <scalevec/core/store/trace_segment.h>

namespace scalevec {
namespace {

namespace fs = std::filesystem;

// Memory that grows is copied and faulted in again; what is reserved and not used costs nothing.
constexpr std::size_t most_reserved = 64 << 20;

[[noreturn]] void refuse(std::string_view what, const fs::path& path, int error) {
  fail(ErrorCode::io,
       fmt::format("{} '{}': {}", what, printable(path.string()), std::generic_category().message(error)),
       {.file = path.string()});
}

void check_same(const TraceHeader& mine, const TraceHeader& there, const fs::path& path) {
  if (same_shape(mine, there)) return;
  // A column of one alone tells more than that something differs.
  std::string column;
  for (const auto& [some, others] : {std::pair{&mine, &there}, std::pair{&there, &mine}}) {
    for (const TraceColumn& own : some->columns) {
      if (!column.empty() ||
          std::ranges::find(others->columns, own.name, &TraceColumn::name) != others->columns.end())
        continue;
      column = fmt::format(" (it {} column '{}')", some == &mine ? "lacks" : "alone has", own.name);
    }
  }
  fail(ErrorCode::state,
       fmt::format("the trace '{}' has other columns or sites than this training{}; go on with what made it, "
                   "the same experiment and version of scalevec, or choose another path",
                   printable(path.string()), column),
       {.file = path.string()});
}

std::size_t rows_until(const TraceReader& reader, std::int64_t step) {
  const auto& steps = reader.steps();
  return static_cast<std::size_t>(std::ranges::upper_bound(steps, step) - steps.begin());
}

// The training makes the rest again.
std::vector<TraceGap> gaps_until(std::vector<TraceGap> gaps, std::int64_t step) {
  std::erase_if(gaps, [&](const TraceGap& gap) { return gap.first > step; });
  for (TraceGap& gap : gaps) {
    if (gap.last <= step) continue;
    gap.last = step;
    gap.rows = std::min(gap.rows, gap.last - gap.first + 1);
  }
  return gaps;
}

}  // namespace

TraceStore::TraceStore(const fs::path& path, const TraceHeader& header, std::optional<std::int64_t> after,
                       std::size_t segment_bytes)
    : path_(trace_path(path)),
      folder_(live_folder(path_)),
      segment_bytes_(segment_bytes),
      layout_(header),
      held_(layout_.row_bytes(), 1, "") {
  if (fs::exists(fs::symlink_status(folder_))) {
    resume(header, after);
  } else {
    begin(header, after);
  }
  synced_rows_ = held_.rows();
  held_.reserve(std::min(segment_bytes_, most_reserved));
}

TraceStore::~TraceStore() { close_file(); }

void TraceStore::close_file() {
  if (descriptor_ >= 0) ::close(std::exchange(descriptor_, -1));
}

// A new folder, whole with its first contents: what a finished file holds, where one is gone on with.
void TraceStore::begin(const TraceHeader& header, std::optional<std::int64_t> after) {
  std::optional<TraceReader> finished;
  std::error_code ignored;
  if (after && fs::exists(path_) && fs::file_size(path_, ignored) > 0) {
    finished.emplace(path_);
  } else {
    require_free(path_, Replace::no);
  }
  AtomicFolder made(folder_);
  const fs::path live = std::exchange(folder_, made.path());
  manifest_ = new_manifest(header);
  if (finished) {
    const std::size_t rows = rows_until(*finished, *after);
    if (rows > 0) check_same(header, finished->header(), path_);
    manifest_ = finished->manifest();
    if (rows == 0) manifest_.header = header;
    manifest_.gaps = gaps_until(finished->gaps(), *after);
    manifest_.resumes.push_back({*after, static_cast<std::int64_t>(finished->rows() - rows)});
    put_rows(*finished, 0, rows);
  }
  new_journal(held_);
  write_atomically(manifest_path(folder_), manifest_text(manifest_), Replace::files);
  made.commit();
  folder_ = live;
  lock_.emplace(folder_);
}

void TraceStore::resume(const TraceHeader& header, std::optional<std::int64_t> after) {
  lock_.emplace(folder_);
  const fs::path file = manifest_path(folder_);
  const std::vector<std::byte> text = read_whole(file);
  manifest_ = parse_manifest({reinterpret_cast<const char*>(text.data()), text.size()}, file);
  // Refuses damage: a training that is about to begin can still be told.
  TraceReader reader(path_);
  for (const TraceSegment& segment : manifest_.segments) sealed_ += segment.rows;
  if (!after || rows_until(reader, *after) > 0) check_same(header, manifest_.header, path_);

  if (after) {
    cut(reader, *after, header);
  } else {
    held_ = std::move(reader).take_journal().value();
    const fs::path journal = journal_path(folder_, held_.number());
    descriptor_ = ::open(journal.c_str(), O_WRONLY | O_CLOEXEC);
    if (descriptor_ < 0) refuse("opening", journal, errno);
    if (::ftruncate(descriptor_, static_cast<off_t>(held_.bytes().size())) != 0) {
      refuse("cutting the torn end off", journal, errno);
    }
    sync_file(descriptor_, journal);
    written_ = held_.bytes().size();
    held_.synced(written_);
  }
  remove_strangers();
}

// Whole segments up to the step stay; the rows behind them become the journal. The manifest is what decides:
// until it is renamed everything is as before.
void TraceStore::cut(const TraceReader& reader, std::int64_t after, const TraceHeader& header) {
  const std::size_t rows = rows_until(reader, after);
  const std::int64_t dropped = static_cast<std::int64_t>(reader.rows() - rows);
  std::vector<TraceGap> gaps = gaps_until(reader.gaps(), after);
  const std::size_t before = manifest_.segments.size();
  std::erase_if(manifest_.segments, [&](const TraceSegment& segment) { return segment.last > after; });
  sealed_ = 0;
  for (const TraceSegment& segment : manifest_.segments) sealed_ += segment.rows;
  if (rows == 0) manifest_.header = header;

  held_ = TraceJournal(layout_.row_bytes(), manifest_.next_journal(), manifest_.last_digest());
  const bool recut =
      manifest_.segments.size() != before || manifest_.gaps != gaps_until(manifest_.gaps, after) || rows == 0;
  // Gaps that the manifest has are not in the journal too.
  manifest_.gaps = gaps_until(manifest_.gaps, after);
  std::erase_if(gaps, [&](const TraceGap& gap) { return std::ranges::count(manifest_.gaps, gap) > 0; });
  std::size_t next = 0;
  reader.each_row(static_cast<std::size_t>(sealed_), rows - static_cast<std::size_t>(sealed_),
                  [&](std::int64_t step, std::span<const std::byte> row) {
                    while (next < gaps.size() && gaps[next].first < step) held_.gap(gaps[next++]);
                    held_.row(step, row);
                  });
  while (next < gaps.size()) held_.gap(gaps[next++]);
  if (recut) {
    manifest_.resumes = reader.resumes();
  } else {
    for (std::size_t i = manifest_.resumes.size(); i < reader.resumes().size(); ++i) {
      held_.resume(reader.resumes()[i]);
    }
  }
  held_.resume({after, dropped});
  new_journal(held_);
  if (recut) write_atomically(manifest_path(folder_), manifest_text(manifest_), Replace::files);
}

// While the folder has no name yet: failures are the caller's.
void TraceStore::put_rows(const TraceReader& reader, std::size_t row, std::size_t rows) {
  reader.each_row(row, rows, [&](std::int64_t step, std::span<const std::byte> packed) {
    if (held_.rows() > 0 && held_.bytes().size() + packed.size() > segment_bytes_) seal_or_throw();
    held_.row(step, packed);
  });
}

// Whole, synced and under its name; then open for more.
void TraceStore::new_journal(const TraceJournal& journal) {
  close_file();
  const fs::path file = journal_path(folder_, journal.number());
  write_atomically(file, journal.bytes(), Replace::files);
  descriptor_ = ::open(file.c_str(), O_WRONLY | O_CLOEXEC);
  if (descriptor_ < 0) refuse("opening", file, errno);
  written_ = journal.bytes().size();
}

// What a killed writer left between two steps of its own.
void TraceStore::remove_strangers() const {
  std::set<std::string> ours{"lock", "trace.json", journal_path("", held_.number()).string()};
  for (const TraceSegment& segment : manifest_.segments) ours.insert(segment.file);
  std::error_code error;
  for (fs::directory_iterator entry(folder_, error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    std::error_code kept;
    if (!ours.contains(name) && (name.starts_with("journal-") || name.starts_with("segment-"))) {
      fs::remove(entry->path(), kept);
    }
  }
}

template <class Operation>
bool TraceStore::attempt(Operation operation) {
  std::string said;
  try {
    operation();
    failing_ = false;
    return true;
  } catch (const Error& error) {
    said = error.message();
  } catch (const std::exception& error) {
    said = error.what();
  }
  failing_ = true;
  if (error_.empty()) {
    error_ = fmt::format(
        "{}. The training goes on; rows wait in memory and then are dropped as recorded gaps. Make the disk "
        "of "
        "'{}' writable again (free space on it): the trace then goes on by itself.",
        said, printable(path_.string()));
  }
  return false;
}

bool TraceStore::put(std::int64_t step, std::span<const std::byte> row) {
  if (held_.rows() > 0 && held_.bytes().size() + row.size() > segment_bytes_ && !seal()) return false;
  held_.row(step, row);
  return true;
}

void TraceStore::write() {
  if (descriptor_ < 0 || written_ == held_.bytes().size()) return;
  const bool done = attempt([&] {
    write_all(descriptor_, written_, held_.bytes().subspan(written_), journal_path(folder_, held_.number()));
    written_ = held_.bytes().size();
  });
  if (!done) close_file();
}

bool TraceStore::sync() {
  const bool done = attempt([&] {
    const fs::path file = journal_path(folder_, held_.number());
    if (descriptor_ < 0) {
      new_journal(held_);
    } else {
      write_all(descriptor_, written_, held_.bytes().subspan(written_), file);
      written_ = held_.bytes().size();
      if (::fdatasync(descriptor_) != 0) refuse("syncing", file, errno);
    }
    struct stat there {};
    if (::fstat(descriptor_, &there) != 0 || there.st_nlink == 0) {
      fail(ErrorCode::state,
           fmt::format("the trace's folder '{}' was removed while it was written",
                       printable(folder_.string())),
           {.file = folder_.string()});
    }
    if (!manifest_sure_) write_atomically(manifest_path(folder_), manifest_text(manifest_), Replace::files);
    manifest_sure_ = true;
  });
  if (!done) {
    close_file();
    return false;
  }
  held_.synced(written_);
  synced_rows_ = held_.rows();
  return true;
}

bool TraceStore::seal() {
  return held_.rows() == 0 || attempt([&] { seal_or_throw(); });
}

void TraceStore::seal_or_throw() {
  TraceManifest next = manifest_;
  next.segments.push_back(write_segment(folder_, manifest_.header, layout_, held_));
  next.gaps.insert(next.gaps.end(), held_.gaps().begin(), held_.gaps().end());
  next.resumes.insert(next.resumes.end(), held_.resumes().begin(), held_.resumes().end());
  TraceJournal journal(layout_.row_bytes(), next.next_journal(), next.last_digest());
  // Before the contents name the segment, the journal behind it must be there.
  write_atomically(journal_path(folder_, journal.number()), journal.bytes(), Replace::files);
  manifest_sure_ = false;
  write_atomically(manifest_path(folder_), manifest_text(next), Replace::files);
  manifest_sure_ = true;

  const fs::path sealed = journal_path(folder_, held_.number());
  close_file();
  manifest_ = std::move(next);
  sealed_ += static_cast<std::int64_t>(held_.rows());
  synced_rows_ = 0;
  held_.restart(journal.number(), journal.before());
  ::unlink(sealed.c_str());
  const fs::path file = journal_path(folder_, held_.number());
  descriptor_ = ::open(file.c_str(), O_WRONLY | O_CLOEXEC);  // or else it is made anew
  written_ = held_.bytes().size();
}

std::int64_t TraceStore::last_on_disk() const {
  if (synced_rows_ > 0) return held_.step(synced_rows_ - 1);
  return manifest_.segments.empty() ? -1 : manifest_.segments.back().last;
}

std::int64_t TraceStore::last_step() const { return held_.last_step(manifest_.last_step(-1)); }

}  // namespace scalevec
