#include <scalevec/core/store/trace_writer.h>

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstring>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <scalevec/core/error.h>
#include <scalevec/core/store/trace_merge.h>
#include <scalevec/core/store/trace_store.h>

namespace scalevec {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

// How long a row may wait for the writer's thread to look; it is woken before where many come.
constexpr auto look_every = std::chrono::milliseconds(50);

constexpr std::size_t most_slots = 4096;  // narrow rows need less memory than the ring may have

// A write beyond RLIMIT_FSIZE fails with EFBIG, and besides sends this thread a signal that would end the
// process.
class LengthSignalBlocked {
 public:
  LengthSignalBlocked() {
    ::sigemptyset(&signal_);
    ::sigaddset(&signal_, SIGXFSZ);
    ::pthread_sigmask(SIG_BLOCK, &signal_, &before_);
  }
  ~LengthSignalBlocked() {
    constexpr timespec now{};
    if (::sigismember(&before_, SIGXFSZ) == 0) ::sigtimedwait(&signal_, nullptr, &now);
    ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  LengthSignalBlocked(const LengthSignalBlocked&) = delete;
  LengthSignalBlocked& operator=(const LengthSignalBlocked&) = delete;

 private:
  sigset_t signal_, before_;
};

struct Slot {
  std::int64_t step = 0;
  TraceGap before;  // rows dropped just before this one; none where rows is 0
};

}  // namespace

struct TraceWriter::State {
  const Options options;
  const fs::path path;
  const pid_t owner = ::getpid();
  const TraceLayout layout;
  std::optional<TraceStore> store;  // the thread's, while it runs
  const std::int64_t rows_before;

  // The ring: append writes at head, the thread reads at tail; neither waits for the other.
  const std::size_t slots;
  std::vector<std::byte> ring;
  std::vector<Slot> slot;
  std::atomic<std::uint64_t> head{0}, tail{0};

  // append's
  mutable std::mutex producer;
  std::int64_t last_step = -1;
  TraceGap gap;
  std::int64_t appended = 0, dropped = 0;
  bool closed = false;

  // between the two
  mutable std::mutex mutex;
  std::condition_variable wake, answered;
  std::uint64_t asked = 0, answer = 0;
  bool stop = false, stop_sealed = false, ended = false;
  Status said;  // what the store said last

  std::thread thread;

  State(const fs::path& given, const TraceHeader& header, const Options& o)
      : options(o),
        path(trace_path(given)),
        layout(header),
        store(std::in_place, path, header, o.after, o.segment_bytes),
        rows_before(store->rows_on_disk()),
        slots(std::clamp<std::size_t>(o.ring_bytes / std::max<std::size_t>(1, layout.row_bytes()), 2,
                                      most_slots)),
        ring(slots * layout.row_bytes()),
        slot(slots),
        last_step(store->last_step()) {
    said.last_kept = store->last_on_disk();
    thread = std::thread([this] { run(); });
  }

  std::uint64_t waiting() const { return head.load() - tail.load(); }

  // Empties the ring into the store; false where the store is full.
  bool drain() {
    for (std::uint64_t at = tail.load(std::memory_order_relaxed);
         at != head.load(std::memory_order_acquire);) {
      const std::size_t i = at % slots;
      // A gap is put once: a row that the store does not take comes again.
      if (slot[i].before.rows > 0) store->put(std::exchange(slot[i].before, {}));
      if (!store->put(slot[i].step, std::span(ring).subspan(i * layout.row_bytes(), layout.row_bytes())))
        return false;
      tail.store(++at, std::memory_order_release);
    }
    return true;
  }

  void run() {
    constexpr std::size_t longest_name = 15;
    ::pthread_setname_np(::pthread_self(), path.filename().string().substr(0, longest_name).c_str());
    auto next_flush = Clock::now();
    const auto interval = std::chrono::duration_cast<Clock::duration>(
        std::chrono::duration<double>(std::clamp(options.flush_seconds, 0.001, 3600.0)));
    next_flush += interval;
    bool blocked =
        false;  // the store was full, and would not be sealed: not tried again before the next flush
    for (;;) {
      std::unique_lock lock(mutex);
      wake.wait_until(lock, std::min(next_flush, Clock::now() + look_every),
                      [&] { return stop || asked > answer || (!blocked && waiting() * 4 >= slots); });
      const std::uint64_t request = asked;
      const bool stopping = stop, sealing = stop_sealed;
      lock.unlock();

      const bool due = request > answer || stopping || Clock::now() >= next_flush;
      if (!blocked || due) blocked = !drain();
      if (stopping && !blocked && gap.rows > 0) store->put(std::exchange(gap, {}));  // append is over
      bool synced = true;
      if (due) {
        synced = store->sync() || (stopping && store->sync());  // anew, to other files: there is no later try
        next_flush = Clock::now() + interval;
      } else {
        store->write();
      }
      if (sealing && synced && !blocked) store->seal();
      lock.lock();
      said.error = store->error();
      said.failing = store->failing() || blocked;
      said.kept = store->rows_on_disk() - rows_before;
      said.last_kept = store->last_on_disk();
      answer = request;
      ended = stopping;
      answered.notify_all();
      if (stopping) return;
    }
  }

  // With the producer's mutex held.
  Status status() const {
    const std::lock_guard guard(mutex);
    Status out = said;
    out.appended = appended;
    out.dropped = dropped;
    return out;
  }

  bool flush() {
    std::unique_lock lock(mutex);
    const auto rows = static_cast<std::int64_t>(head.load());
    const std::uint64_t mine = ++asked;
    wake.notify_one();
    answered.wait(lock, [&] { return answer >= mine || ended; });
    return said.kept >= rows;
  }
};

TraceWriter::TraceWriter(fs::path path, const TraceHeader& header, const Options& options) {
  const LengthSignalBlocked blocked;  // for the thread as well, which inherits it
  state_ = std::make_unique<State>(path, header, options);
}

TraceWriter::~TraceWriter() {
  if (::getpid() != state_->owner) {
    (void)state_.release();  // a forked child has neither the thread nor the right to end the parent's trace
    return;
  }
  close(false);
}

const TraceLayout& TraceWriter::layout() const { return state_->layout; }

bool TraceWriter::append(std::int64_t step, std::span<const std::byte> row) {
  State& s = *state_;
  const std::lock_guard guard(s.producer);
  if (s.closed || ::getpid() != s.owner) {
    fail(ErrorCode::state,
         s.closed ? "TraceWriter::append: the trace is closed; open it again with `after`"
                  : fmt::format("TraceWriter::append: the trace belongs to process {}, which forked this one",
                                s.owner),
         {.file = s.path.string()});
  }
  if (row.size() != s.layout.row_bytes()) {
    fail(ErrorCode::shape, fmt::format("TraceWriter::append: a row has {} bytes, not {}; pack it by layout()",
                                       s.layout.row_bytes(), row.size()));
  }
  if (step < 0 || step <= s.last_step) {
    fail(ErrorCode::value,
         fmt::format(
             "TraceWriter::append: step {} does not come after step {}. To go on with an earlier training, "
             "open the trace with `after` = the step that it resumes from; for a new one choose another path",
             step, s.last_step),
         {.file = s.path.string()});
  }
  s.last_step = step;
  ++s.appended;
  const std::uint64_t head = s.head.load(std::memory_order_relaxed);
  const std::uint64_t waiting = head - s.tail.load(std::memory_order_acquire);
  if (waiting == s.slots) {
    if (s.gap.rows++ == 0) s.gap.first = step;
    s.gap.last = step;
    ++s.dropped;
    return false;
  }
  const std::size_t i = head % s.slots;
  if (!row.empty()) std::memcpy(s.ring.data() + i * row.size(), row.data(), row.size());
  s.slot[i] = {step, std::exchange(s.gap, {})};
  s.head.store(head + 1, std::memory_order_release);
  if ((waiting + 1) * 4 >= s.slots) s.wake.notify_one();
  return true;
}

bool TraceWriter::flush() {
  {
    const std::lock_guard guard(state_->producer);
    if (state_->closed || ::getpid() != state_->owner) return false;
  }
  return state_->flush();
}

TraceWriter::Status TraceWriter::close(bool merge, const Progress& progress) {
  State& s = *state_;
  std::unique_lock guard(s.producer);
  if (s.closed) return s.status();
  s.closed = true;
  const LengthSignalBlocked blocked;
  {
    const std::lock_guard lock(s.mutex);
    s.stop = true;
    s.stop_sealed = !merge;  // merging needs no segment
  }
  s.wake.notify_one();
  s.thread.join();
  const std::int64_t lost = static_cast<std::int64_t>(s.head.load()) - s.said.kept;
  s.dropped += lost;  // what was only in memory goes with it
  s.store->close_file();
  const bool merging = merge && lost == 0 && !s.said.failing;
  // Progress may run what closes, or asks for the status, once more.
  guard.unlock();
  std::exception_ptr by_progress;
  if (merging) {
    const auto watched = [&](std::string_view what, std::uint64_t done, std::uint64_t total) {
      try {
        report(progress, what, done, total);
      } catch (...) {
        by_progress = std::current_exception();
        throw;
      }
    };
    try {
      merge_locked(s.path, s.path, s.options.deflate, TraceReader::Damage::refuse, watched);
    } catch (const std::exception& error) {
      const std::lock_guard lock(s.mutex);
      s.said.failing = !by_progress;
      if (s.said.failing && s.said.error.empty()) {
        s.said.error =
            fmt::format("{}. The rows are safe in '{}': make room, then run `scalevec trace merge`",
                        error.what(), printable(live_folder(s.path).string()));
      }
    } catch (...) {
      // progress's, which need not be a std::exception
    }
  }
  s.store.reset();  // and with it the lock
  if (by_progress) std::rethrow_exception(by_progress);
  guard.lock();
  return s.status();
}

TraceWriter::Status TraceWriter::status() const {
  const std::lock_guard guard(state_->producer);
  return state_->status();
}

}  // namespace scalevec
