#pragma once

#include <string>

#include <scalevec/edits/edit.h>
#include <scalevec/edits/workspace.h>

namespace scalevec {

/// What an edit does, for a reviewer, as plain text: where it was made, each operation with its counts, each
/// vector with both names and effective values before and after. brief: the operations only.
std::string describe(const Edit& edit, bool brief = false);

/// One line: "2 vectors, 1,152 channels selected, 1,150 changed, 2 lost to rounding (below half an ulp),
/// ...".
std::string describe(const OperationReport& report);

}  // namespace scalevec
