#pragma once

#include <scalevec/core/checkpoint/checkpoint.h>
#include <scalevec/edits/edit.h>
#include <scalevec/edits/workspace.h>

namespace scalevec {

/// The vectors of a model file, to be edited without building a model: reads those that operations select,
/// and no other tensor. checkpoint: must outlive it. E_QUANT, when used, for a vector that is stored
/// quantised.
Workspace file_workspace(const Checkpoint& checkpoint);

/// Family, and the name of the file or folder.
EditSource source_of(const Checkpoint& checkpoint);

/// An edit made anew for another container or precision of the same model, and how far apart the two bases
/// were.
struct Rebased {
  Edit edit;
  /// |effective value in the new base - in the old|, largest over the channels that the old edit touches:
  /// rounding of the containers if they hold the same model, large if not.
  double largest_difference = 0.0;
};

/// Runs the operations on the effective values of `target`. Values that were set channel by channel are those
/// that the first container could store; where they changed no bit there, nothing tells them, and they are
/// left out. E_BUNDLE, naming the address, if `target` lacks a vector or has another width.
Rebased rebase(const Edit& edit, const Checkpoint& target);

}  // namespace scalevec
