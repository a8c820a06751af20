#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include <scalevec/core/store/hdf5.h>
#include <scalevec/core/store/trace.h>
#include <scalevec/core/store/trace_journal.h>
#include <scalevec/core/store/trace_manifest.h>

namespace scalevec {

/// The dimensions of a column: "step", and "site" or "channel".
std::vector<std::string> trace_dimensions(const TraceColumn& column);
/// Those dimensions in the group, for these steps.
void write_trace_dimensions(const hdf5::Group& group, const TraceLayout& layout,
                            std::span<const std::int64_t> steps);
/// units, description and per.
void describe_trace_column(const hdf5::Group& group, const TraceColumn& column);

/// Seals a journal's rows: an HDF5 file that is made beside, synced, read back and compared, and renamed.
/// The same rows make the same bytes, and so the same name.
TraceSegment write_segment(const std::filesystem::path& folder, const TraceHeader& header,
                           const TraceLayout& layout, const TraceJournal& journal);

/// The whole file; E_TRUNC or E_STATE unless it is what was sealed.
void check_segment(const std::filesystem::path& folder, const TraceSegment& segment);

/// All bytes of a file; E_PATH if there is none.
std::vector<std::byte> read_whole(const std::filesystem::path& path);

}  // namespace scalevec
