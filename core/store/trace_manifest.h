#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include <scalevec/core/store/trace.h>

namespace scalevec {

/// A sealed part of a growing trace: an HDF5 file that is never changed.
struct TraceSegment {
  std::string file;  // name in the live folder, made of number and rows: other rows have another name
  std::string sha256;
  std::uint64_t bytes = 0;
  std::int64_t rows = 0, first = 0, last = 0;
};

/// The live folder's table of contents, "trace.json": what it names counts, and is followed by the journal of
/// number segments.size() + 1; nothing else in the folder counts.
struct TraceManifest {
  std::string id;       // of the trace: a results file with it may be replaced by its continuation
  std::string created;  // UTC
  TraceHeader header;
  std::vector<TraceSegment> segments;
  std::vector<TraceGap> gaps;  // of sealed parts
  std::vector<TraceResume> resumes;

  std::int64_t next_journal() const { return static_cast<std::int64_t>(segments.size()) + 1; }
  /// Digest of the last segment; empty: none.
  std::string_view last_digest() const {
    return segments.empty() ? "" : std::string_view(segments.back().sha256);
  }
  std::int64_t last_step(std::int64_t otherwise) const;
};

TraceManifest new_manifest(const TraceHeader& header);
/// JSON with a CRC-32C of itself in front. `parse` answers any other bytes with E_STATE.
std::string manifest_text(const TraceManifest& manifest);
TraceManifest parse_manifest(std::string_view text, const std::filesystem::path& file);
/// Columns and sites: what a continuation must share.
bool same_shape(const TraceHeader& a, const TraceHeader& b);

}  // namespace scalevec
