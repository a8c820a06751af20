#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include <scalevec/core/progress.h>
#include <scalevec/core/store/trace.h>

namespace scalevec {

/// Appends rows to a trace without ever holding up, or ending, the training that makes them.
///
/// While it grows, the trace "run.h5" is the folder "run.h5.live": a journal of checked records, and sealed
/// segments (docs/results_file.md). `close` makes of it the results file "run.h5". A thread of its own does
/// all writing: `append` copies into a bounded ring. What a full disk or a failing one does not take is
/// tried again from memory for as long as memory of the given size lasts; then whole rows are dropped, and
/// an exact gap is recorded as soon as anything can be. After a kill, all rows up to the last flush are
/// there, for readers and for the writer that goes on.
class TraceWriter {
 public:
  struct Options {
    double flush_seconds = 1.0;              // rows are on the disk after so long
    std::size_t ring_bytes = 32 << 20;       // between the training and the disk; at least two rows
    std::size_t segment_bytes = 32 << 20;    // of rows that are held in memory until sealed; at least one row
    int deflate = 1;                         // of the file that close makes: 0 none, 9 smallest
    std::optional<std::int64_t> after = {};  // go on after this step: rows beyond it are dropped. -1: all
  };

  struct Status {
    std::int64_t appended = 0;    // rows given to this writer
    std::int64_t kept = 0;        // of them, on the disk: synced
    std::int64_t dropped = 0;     // of them, in no file and no longer in memory
    std::int64_t last_kept = -1;  // step of the last row on the disk, earlier writers' included; -1: none
    std::string error;            // the first failure and what to do; empty: none so far
    bool failing = false;         // nothing is being written now; rows wait in memory
  };

  /// Makes the live folder, or goes on with the one of an earlier writer after its last good row; a finished
  /// file is gone on with where `after` is given. E_PATH if the path is taken by something else, E_STATE if
  /// another writer has it (names its process), if the trace has other columns or sites, or if what was
  /// synced is damaged.
  TraceWriter(std::filesystem::path path, const TraceHeader& header, const Options& options);
  TraceWriter(std::filesystem::path path, const TraceHeader& header)
      : TraceWriter(std::move(path), header, Options{}) {}
  ~TraceWriter();  // as close(false)
  TraceWriter(const TraceWriter&) = delete;
  TraceWriter& operator=(const TraceWriter&) = delete;

  const TraceLayout& layout() const;

  /// Copies one row, packed as layout() says; never waits for a disk. False: dropped, and counted as a gap.
  /// E_VALUE unless step is after the last one; E_SHAPE for a row of another size; E_STATE after close and in
  /// a forked child.
  bool append(std::int64_t step, std::span<const std::byte> row);

  /// Returns when the rows so far are synced (true), or when the attempt has failed (false).
  bool flush();

  /// Seals what there is; with `merge` makes the results file and removes the live folder. Never throws for a
  /// disk: status().error says what became of it, and `scalevec trace merge` tries again later. Once. What
  /// `progress` throws comes back when the trace is closed, not merged.
  Status close(bool merge = true, const Progress& progress = {});

  Status status() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace scalevec
