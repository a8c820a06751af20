// A model's folder, written as Hugging Face stores one: config.json, model.safetensors, and what stands
// beside.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <scalevec/core/dtype.h>
#include <scalevec/core/progress.h>

namespace scalevec {

/// A tensor to be written. `write` is called once, when its turn comes, and puts all of its bytes
/// (little-endian, C order) piece by piece, so that no more than a piece need be in memory.
struct NewTensor {
  std::string name;
  DType dtype = DType::f32;  // F64, F32, F16, BF16
  std::vector<std::uint64_t> shape;
  using Put = std::function<void(std::span<const std::byte>)>;
  std::function<void(const Put&)> write;
};

/// Makes `file`, whole or not at all. `metadata`: "format" is added. E_PATH if it exists, E_SIZE if a tensor
/// puts too much or too little.
void write_safetensors(const std::filesystem::path& file, const std::vector<NewTensor>& tensors,
                       const std::map<std::string, std::string>& metadata, const Progress& progress = {});

/// What is to stand in the folder.
struct NewModel {
  std::string config;  // text of config.json
  std::vector<NewTensor> tensors;
  std::map<std::string, std::string> metadata;  // of the safetensors file; "format" is added
  std::map<std::string, std::string> files;     // more of them, name to content: tokenizer.json
};

struct WrittenModel {
  std::uint64_t files = 0, bytes = 0;
};

/// Makes `folder`, whole or not at all. E_PATH if it exists and is not empty; E_CONFIG and others, and
/// nothing made, if what was written cannot be opened as a Checkpoint; E_SIZE if a tensor puts too much or
/// too little.
WrittenModel write_model(const std::filesystem::path& folder, const NewModel& model,
                         const Progress& progress = {});

/// Metadata of the safetensors files of a model, and the files beside them that its tokenizer reads: what a
/// changed copy keeps.
std::map<std::string, std::string> metadata_of(const std::vector<std::filesystem::path>& files);
std::map<std::string, std::string> tokenizer_files(const std::filesystem::path& folder);

}  // namespace scalevec
