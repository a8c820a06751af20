#include <scalevec/edits/file_workspace.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string_view>

#include <fmt/format.h>

#include <scalevec/core/error.h>

namespace scalevec {
namespace {

StoredVector read_vector(const Checkpoint& checkpoint, std::size_t index) {
  const Site& site = checkpoint.sites()[index];
  const TensorInfo& tensor = checkpoint.tensor(site.native);
  const std::string file = checkpoint.files().at(tensor.file).string();
  if (is_quantised(tensor.dtype)) {
    fail(ErrorCode::quant,
         fmt::format("'{}' ({}) is stored as {}: an edit would re-quantise all of it. Convert the vector to "
                     "F32 or BF16 "
                     "first.",
                     site.address.str(), printable(tensor.name), tensor.dtype_text),
         {.file = file,
          .tensor = site.address.str(),
          .expected = "F64, F32, F16 or BF16",
          .found = tensor.dtype_text});
  }
  if (!is_scale_dtype(tensor.dtype)) {
    fail(ErrorCode::dtype,
         fmt::format("'{}' ({}) is stored as {}; expected F64, F32, F16 or BF16", site.address.str(),
                     printable(tensor.name), tensor.dtype_text),
         {.file = file,
          .tensor = site.address.str(),
          .expected = "F64, F32, F16 or BF16",
          .found = tensor.dtype_text});
  }
  return {tensor.dtype, site.offset, checkpoint.read(tensor)};
}

}  // namespace

Workspace file_workspace(const Checkpoint& checkpoint) {
  return Workspace(checkpoint.sites(), [&checkpoint](std::size_t i) { return read_vector(checkpoint, i); });
}

EditSource source_of(const Checkpoint& checkpoint) {
  std::filesystem::path path = checkpoint.path().lexically_normal();
  if (!path.has_filename() || path == ".") path = std::filesystem::absolute(path).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  return {.family = checkpoint.family(), .file = path.filename().string()};
}

Rebased rebase(const Edit& edit, const Checkpoint& target) {
  std::map<std::string_view, std::size_t> by_address;
  for (std::size_t i = 0; i < target.sites().size(); ++i) by_address[target.sites()[i].address.str()] = i;
  Workspace workspace = file_workspace(target);
  Rebased out;
  for (const EditedVector& vector : edit.vectors) {
    const auto site = by_address.find(vector.address);
    const std::int64_t width = site == by_address.end() ? 0 : target.sites()[site->second].width;
    if (width != vector.width) {
      fail(ErrorCode::bundle,
           fmt::format("the edit changes '{}' of width {}; {} has {}. Rebase onto the same model in another "
                       "container.",
                       vector.address, vector.width, printable(target.path().string()),
                       site == by_address.end() ? "no such vector" : fmt::format("width {}", width)),
           {.file = target.path().string(),
            .tensor = vector.address,
            .expected = std::to_string(vector.width),
            .found = std::to_string(width)});
    }
    const std::vector<double> here = workspace.entry(site->second).base.effective();
    const std::vector<double> there = StoredVector{vector.dtype, vector.offset, vector.old}.effective();
    for (std::size_t i = 0; i < there.size(); ++i) {
      const double difference = std::abs(here[static_cast<std::size_t>(vector.channels[i])] - there[i]);
      if (difference > out.largest_difference) out.largest_difference = difference;
    }
  }
  for (const Operation& operation : edit.operations) {
    Operation anew{.verb = operation.verb,
                   .selector = operation.selector,
                   .arguments = operation.arguments,
                   .allow = operation.allow};
    const auto values = anew.arguments.find("values");
    if (values != anew.arguments.end()) {
      const auto* stored = std::get_if<std::vector<std::byte>>(&values->second);
      const EditedVector* vector = edit.find(operation.selector.substr(0, operation.selector.find('@')));
      // Values that changed no bit there have no vector that would say how they are stored.
      if (vector == nullptr || stored == nullptr) continue;
      values->second = StoredVector{vector->dtype, vector->offset, *stored}.effective();
    }
    workspace.run(anew);
  }
  out.edit = workspace.edit(source_of(target), edit.note);
  return out;
}

}  // namespace scalevec
