#include <scalevec/edits/export.h>

#include <fmt/format.h>

#include <scalevec/core/error.h>
#include <scalevec/edits/file_workspace.h>
#include <scalevec/edits/patched_copy.h>

namespace scalevec {

ExportReport export_edited(const Checkpoint& checkpoint, const Edit& edit,
                           const std::filesystem::path& destination, const Progress& progress) {
  Workspace workspace = file_workspace(checkpoint);
  workspace.replay(edit);
  std::vector<Patch> patches;
  for (const auto& [site, entry] : workspace.entries()) {
    if (entry.now.bytes == entry.base.bytes) continue;
    patches.push_back(
        {checkpoint.tensor(checkpoint.sites()[site].native), entry.base.bytes, entry.now.bytes});
  }
  return write_patched_copy(checkpoint, patches, destination, progress);
}

ExportReport revert_export(const Checkpoint& exported, const Edit& edit,
                           const std::filesystem::path& destination, const Progress& progress) {
  // The inverse edit says in every error what it finds in place of what it expects; one case needs other
  // words.
  Workspace workspace = file_workspace(exported);
  const Edit back = invert(edit);
  for (const EditedVector& vector : edit.vectors) {
    for (std::size_t i = 0; i < exported.sites().size(); ++i) {
      if (exported.sites()[i].address.str() != vector.address || workspace.digest(i) != vector.base) continue;
      fail(ErrorCode::state,
           fmt::format("'{}' is as it was before the edit ({}): there is nothing to revert", vector.address,
                       vector.base),
           {.file = exported.path().string(),
            .tensor = vector.address,
            .expected = vector.after,
            .found = vector.base});
    }
  }
  workspace.replay(back);
  std::vector<Patch> patches;
  for (const auto& [site, entry] : workspace.entries()) {
    if (entry.now.bytes == entry.base.bytes) continue;
    patches.push_back({exported.tensor(exported.sites()[site].native), entry.base.bytes, entry.now.bytes});
  }
  return write_patched_copy(exported, patches, destination, progress);
}

}  // namespace scalevec
