#include <scalevec/edits/file_workspace.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <scalevec/edits/export.h>

#include "support/errors.h"
#include "support/files.h"
#include "support/temporary_folder.h"
#include "support/tiny_model.h"

using namespace scalevec;
using namespace scalevec::testing;

TEST_CASE("a vector that is stored quantised is not edited") {
  const TemporaryFolder folder;
  std::mt19937_64 random(10);
  TinyOptions options{
      .layers = 1, .width = 32, .matrix_dtype = "F32", .vector_dtypes = {"F32"}, .gguf = true};
  std::vector<TinyTensor> tensors = tiny_llama(random, options);
  write_gguf(folder / "m.gguf", tensors, options);
  // Q4_0 (type 2) takes 18 bytes where F32 took 128; the rest of them are padding.
  std::string text = read_text(folder / "m.gguf");
  const auto tensor = std::find_if(tensors.begin(), tensors.end(),
                                   [](const TinyTensor& t) { return t.name == "output_norm.weight"; });
  const std::size_t at = text.find(tensor->name) + tensor->name.size() + 4 + 8;
  REQUIRE(text[at] == 0);
  if (tensor->name != tensors.back().name) {
    tensors.erase(tensor);
    std::vector<TinyTensor> last = {{"output_norm.weight", "F32", {32}, std::string(128, '\1')}};
    tensors.push_back(last[0]);
    write_gguf(folder / "m.gguf", tensors, options);
    text = read_text(folder / "m.gguf");
  }
  const std::size_t type = text.find("output_norm.weight") + 18 + 4 + 8;
  text[type] = 2;
  text.resize(text.size() - 128 + 32);
  write_text(folder / "m.gguf", text);
  const Checkpoint checkpoint = Checkpoint::open(folder / "m.gguf");
  Workspace workspace = file_workspace(checkpoint);
  const auto error = error_of([&] { workspace.run(rescale("final_norm", 2.0)); });
  CHECK(error.code == ErrorCode::quant);
  CHECK(error.fields.tensor == "final_norm");
  CHECK(error.message.find("re-quantise") != std::string::npos);
  CHECK(workspace.run(rescale("layers.0.*.input_norm", 2.0)).vectors.size() == 2);
}

TEST_CASE("rebase: the same effective edit on another container") {
  std::mt19937_64 random(11);
  const TemporaryFolder folder;
  TinyOptions options{.vector_dtypes = {"F32"}};
  std::vector<TinyTensor> tensors = tiny_llama(random, options);
  write_folder(folder / "f32", tensors, options, 1);
  for (TinyTensor& tensor : tensors) {
    if (tensor.shape.size() != 1) continue;
    std::string narrow;
    for (std::size_t i = 0; i < tensor.bytes.size(); i += 4) narrow += tensor.bytes.substr(i + 2, 2);
    tensor.dtype = "BF16", tensor.bytes = narrow;
  }
  write_folder(folder / "bf16", tensors, options, 3);
  const Checkpoint wide = Checkpoint::open(folder / "f32"), narrow = Checkpoint::open(folder / "bf16");
  Workspace workspace = file_workspace(narrow);
  workspace.run(set("final_norm@1,5", std::vector{0.3, 2.0}));
  workspace.run(ablate("layers.0.attn.input_norm", "mean"));
  workspace.run(rescale("layers.*.mlp.input_norm", 0.5));
  const Edit edit = workspace.edit(source_of(narrow), "note");
  CHECK(error_of([&] { export_edited(wide, edit, folder / "x"); }).code == ErrorCode::bundle);

  const Rebased rebased = rebase(edit, wide);
  // bfloat16 was cut, not rounded: up to one of its ulps, 2^-6 below 4.
  CHECK(rebased.largest_difference > 0.0);
  CHECK(rebased.largest_difference <= 0x1p-6);
  CHECK(rebased.edit.note == "note");
  CHECK(rebased.edit.source.file == "f32");
  export_edited(wide, rebased.edit, folder / "x");
  const Checkpoint made = Checkpoint::open(folder / "x");
  const auto effective = [](const Checkpoint& checkpoint, std::size_t site) {
    return checkpoint.effective(checkpoint.sites()[site]);
  };
  for (std::size_t i = 0; i < made.sites().size(); ++i) {
    const std::string address = made.sites()[i].address.str();
    const std::vector<double> before = effective(wide, i), after = effective(made, i);
    double mean = 0.0;
    for (const double value : before) mean += value / static_cast<double>(before.size());
    for (std::size_t c = 0; c < before.size(); ++c) {
      if (address.ends_with("mlp.input_norm")) CHECK(after[c] == before[c] * 0.5);
      if (address == "layers.0.attn.input_norm") CHECK(after[c] == doctest::Approx(mean).epsilon(1e-6));
      if (address == "final_norm" && c == 1) CHECK(after[c] == 0.30078125);  // 0.3 as bfloat16 holds it
      if (address == "final_norm" && c == 5) CHECK(after[c] == 2.0);
    }
  }
  Edit other = edit;
  other.vectors[0].width = 9;
  CHECK(error_of([&] { rebase(other, wide); }).code == ErrorCode::bundle);
}
