#pragma once

#include <filesystem>

#include <scalevec/core/progress.h>
#include <scalevec/core/store/trace_reader.h>

namespace scalevec {

/// Makes one results file of a trace that no writer has. Where `output` is the trace's own path (empty: it
/// is), the live folder goes afterwards. E_STATE if a writer is at work on it, or for damage unless that is
/// to be skipped; E_PATH if the output is something else than an earlier state of this trace. `progress`
/// counts columns written and read back; what it throws leaves the trace as it was.
void merge_trace(const std::filesystem::path& path, const std::filesystem::path& output = {}, int deflate = 1,
                 TraceReader::Damage damage = TraceReader::Damage::refuse, const Progress& progress = {});

/// The same for the writer that has the lock.
void merge_locked(const std::filesystem::path& path, const std::filesystem::path& output, int deflate,
                  TraceReader::Damage damage, const Progress& progress = {});

}  // namespace scalevec
