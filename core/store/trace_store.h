#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include <scalevec/core/store/trace.h>
#include <scalevec/core/store/trace_folder.h>
#include <scalevec/core/store/trace_journal.h>
#include <scalevec/core/store/trace_manifest.h>

namespace scalevec {

class TraceReader;

/// The live folder of a trace, for the one thread that writes it.
///
/// Rows are held in memory until they are sealed, as the journal that the disk has too. So whatever the disk
/// has refused or lost is written anew from memory, to another file that then takes the name: a file that
/// failed once is never trusted again. No member but the constructor throws for a disk.
class TraceStore {
 public:
  /// See TraceWriter.
  TraceStore(const std::filesystem::path& path, const TraceHeader& header, std::optional<std::int64_t> after,
             std::size_t segment_bytes);
  ~TraceStore();
  TraceStore(const TraceStore&) = delete;
  TraceStore& operator=(const TraceStore&) = delete;

  /// Takes a row; false where memory is full and cannot be sealed now.
  bool put(std::int64_t step, std::span<const std::byte> row);
  void put(const TraceGap& gap) { held_.gap(gap); }
  /// Hands what is held to the system, so that it survives this process.
  void write();
  /// And to the disk, so that it survives the machine; after a failure everything anew. False: not now.
  bool sync();
  /// Makes a segment of what is held.
  bool seal();
  /// Gives the journal's file back; then the trace can be merged.
  void close_file();

  std::int64_t rows_on_disk() const { return sealed_ + static_cast<std::int64_t>(synced_rows_); }
  std::int64_t last_on_disk() const;
  std::int64_t last_step() const;  // -1: nothing yet
  const std::string& error() const { return error_; }
  bool failing() const { return failing_; }

 private:
  void begin(const TraceHeader& header, std::optional<std::int64_t> after);
  void resume(const TraceHeader& header, std::optional<std::int64_t> after);
  void cut(const TraceReader& reader, std::int64_t after, const TraceHeader& header);
  void put_rows(const TraceReader& reader, std::size_t row, std::size_t rows);
  void new_journal(const TraceJournal& journal);
  void seal_or_throw();
  void remove_strangers() const;
  template <class Operation>
  bool attempt(Operation operation);

  std::filesystem::path path_, folder_;
  std::size_t segment_bytes_;
  TraceManifest manifest_;
  TraceLayout layout_;
  TraceJournal held_;
  std::optional<TraceLock> lock_;
  int descriptor_ = -1;  // of the journal; -1: to be written anew
  std::size_t written_ = 0, synced_rows_ = 0;
  bool manifest_sure_ = true;  // the disk has manifest_
  std::int64_t sealed_ = 0;    // rows in segments
  std::string error_;
  bool failing_ = false;
};

}  // namespace scalevec
