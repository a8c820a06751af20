#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <scalevec/core/store/trace.h>

namespace scalevec {

class TraceJournal;
struct TraceManifest;

/// A trace as it stood when it was opened: finished, growing, or left by a killed writer. It sees whole,
/// checked rows only, from the first to some step without any left out but the recorded gaps; it waits for no
/// writer and none waits for it.
class TraceReader {
 public:
  /// What to do with a part whose bytes are not those that were written.
  enum class Damage { refuse, skip };

  /// `path` is the trace ("run.h5") or its live folder. E_PATH if there is none, of any other folder with the
  /// names of its files; E_STATE or E_TRUNC for damage, which `skip` leaves out and lists. Segments are
  /// checked when first read.
  explicit TraceReader(const std::filesystem::path& path, Damage damage = Damage::refuse);
  ~TraceReader();
  TraceReader(TraceReader&&) noexcept;
  TraceReader& operator=(TraceReader&&) noexcept;

  const TraceHeader& header() const;
  const TraceLayout& layout() const;
  const std::string& created() const;  // UTC
  bool finished() const;               // one results file; else a live folder
  std::size_t rows() const;
  const std::vector<std::int64_t>& steps() const;
  const std::vector<TraceGap>& gaps() const;
  const std::vector<TraceResume>& resumes() const;
  const std::vector<std::string>& damage() const;  // what `skip` left out

  /// Rows [row, row + rows) x entries [entry, entry + entries) of a column, in its type, row by row. E_SHAPE
  /// beyond either end. E_STATE if the trace was finished or cut back since it was opened: open it again.
  std::vector<std::byte> read(std::size_t column, std::size_t row, std::size_t rows, std::size_t entry,
                              std::size_t entries) const;
  /// The rows [row, row + rows) as they were appended, in order.
  void each_row(std::size_t row, std::size_t rows,
                const std::function<void(std::int64_t step, std::span<const std::byte> packed)>& take) const;
  const TraceManifest& manifest() const;
  /// The rows that no segment holds, for the writer that goes on with them; none where the trace is finished.
  std::optional<TraceJournal> take_journal() &&;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace scalevec
