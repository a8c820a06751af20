#pragma once

#include <span>
#include <string>
#include <string_view>

#include <scalevec/analysis/saliency.h>
#include <scalevec/core/checkpoint/checkpoint.h>
#include <scalevec/core/scale_map.h>
#include <scalevec/core/store/results_file.h>
#include <scalevec/edits/edit.h>
#include <scalevec/edits/measure.h>
#include <scalevec/edits/sweep.h>

namespace scalevec {

// What goes where in a results file: the tables of docs/results_file.md.

/// Device, dtype, threads, seed and versions of a measurement, for a new file.
ResultsFile::Header results_header(const Measurement& made, std::string command);

/// /model.
void record_model(ResultsFile& file, const Checkpoint& checkpoint, const ScaleMap& scales);
/// /sites and /scales, of the vectors of the file, whose digests /model has: /edits says what became of them.
void record_sites(ResultsFile& file, const ScaleMap& scales);
/// /edits: one row per vector; /edits/operations: one per operation.
void record_edit(ResultsFile& file, const Edit& edit);
/// A table of figures, and its `per_token` where the measurement has values per token.
void record_measurement(ResultsFile& file, const Measurement& made,
                        std::string_view group = "behaviour/measure");
/// One row per trial. methods: how its figures were made, such as "screened" or "verified". E_SHAPE unless
/// there is one change and one method for each trial.
void record_sweep(ResultsFile& file, const ScaleMap& scales, std::span<const Trial> trials,
                  std::span<const Change> changes, std::span<const std::string> methods,
                  std::string_view group = "sweep");
/// /scales/gradient and /scales/ablation, after the sites.
void record_saliency(ResultsFile& file, const Saliency& saliency);

}  // namespace scalevec
