#include <scalevec/core/checkpoint/hf_folder.h>

#include <iterator>
#include <system_error>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <scalevec/core/checkpoint/json.h>
#include <scalevec/core/checkpoint/shard_index.h>
#include <scalevec/core/error.h>

namespace scalevec {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view single_name = "model.safetensors";
constexpr std::string_view index_name = "model.safetensors.index.json";
constexpr std::string_view config_name = "config.json";
constexpr std::uint64_t most_index = std::uint64_t{64} << 20;
constexpr std::uint64_t most_config = std::uint64_t{4} << 20;

// A name stands in the folder, as whatever it is; a link counts without being followed.
bool stands(const fs::path& path) {
  std::error_code error;
  return fs::exists(fs::symlink_status(path, error));
}

// What stands in a folder where no safetensors model does.
std::string other_model(const fs::path& folder) {
  constexpr std::string_view refused = "(pickle refused: loading one runs code)";
  if (stands(folder / ".metadata")) return fmt::format("a distributed checkpoint with a pickle {}", refused);
  for (const std::string_view name :
       {"pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth"}) {
    if (stands(folder / name)) return fmt::format("{}, which is a pickle {}", name, refused);
  }
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    if (entry->path().extension() == ".gguf") return "a GGUF file; give that file instead of its folder";
  }
  return error ? fmt::format("nothing that can be read ({})", error.message()) : "no model";
}

std::string read_text(const SourceFile& file, std::uint64_t most) {
  if (file.size() > most) {
    fail(ErrorCode::limit, "reading a text file: it is larger than is read",
         {.file = file.path().string(),
          .offset = most,
          .expected = fmt::format("at most {} bytes", most),
          .found = fmt::format("{} bytes", file.size())});
  }
  std::string text(file.size(), '\0');
  file.read(0, std::as_writable_bytes(std::span(text)));
  return text;
}

// Opens every shard of the index, or says which entry names one that is not there.
std::vector<SourceFile> open_all(const fs::path& folder, const ShardIndex& index,
                                 const std::string& index_file, bool allow_links) {
  std::vector<std::string> first_tensor(index.shards.size());
  for (auto entry = index.entries.rbegin(); entry != index.entries.rend(); ++entry)
    first_tensor[entry->shard] = entry->tensor;
  std::vector<SourceFile> files;
  for (std::size_t i = 0; i < index.shards.size(); ++i) {
    std::error_code error;
    const auto status = fs::symlink_status(folder / index.shards[i], error);
    if (!fs::exists(status) || fs::is_directory(status)) {
      const std::string_view found = fs::exists(status) ? "a directory" : "no such file";
      fail(ErrorCode::index,
           fmt::format("opening shards: '{}' is {}; fetch the model again", index.shards[i], found),
           {.file = index_file,
            .key = first_tensor[i],
            .expected = fmt::format("a file {}", index.shards[i]),
            .found = std::string(found)});
    }
    files.push_back(SourceFile::inside(folder, index.shards[i], allow_links, first_tensor[i]));
  }
  return files;
}

struct Disagreement {
  const std::string& index_file;
  const ShardIndex& index;

  [[noreturn]] void refuse(std::string_view what, const std::string& tensor, std::string expected,
                           std::string found) const {
    fail(ErrorCode::index, fmt::format("opening shards: {}", what),
         {.file = index_file, .tensor = tensor, .expected = std::move(expected), .found = std::move(found)});
  }

  void check(const std::vector<TensorInfo>& tensors, const NameIndex& names) const {
    std::uint64_t total = 0;
    for (const TensorInfo& tensor : tensors) {
      const TensorInfo* first = names.find(tensors, tensor.name);
      if (first != &tensor) {
        refuse("a tensor is stored in two shards", tensor.name, "each tensor once",
               fmt::format("{} and {}", index.shards[first->file], index.shards[tensor.file]));
      }
      total += tensor.bytes;
    }
    for (const ShardIndex::Entry& entry : index.entries) {
      const TensorInfo* tensor = names.find(tensors, entry.tensor);
      const std::string& shard = index.shards[entry.shard];
      if (tensor == nullptr)
        refuse("the index lists a tensor that no shard holds", entry.tensor, shard, "in no shard");
      if (tensor->file != entry.shard) {
        refuse("the index names one shard, another holds the tensor", entry.tensor, shard,
               index.shards[tensor->file]);
      }
    }
    for (const TensorInfo& tensor : tensors) {
      if (index.find(tensor.name) == nullptr)
        refuse("a shard holds a tensor that the index does not list", tensor.name,
               "every tensor in the index", fmt::format("only in {}", index.shards[tensor.file]));
    }
    if (index.total_size && *index.total_size != total) {
      fail(ErrorCode::index, "opening shards: the index gives another size than the tensors have",
           {.file = index_file,
            .key = "total_size",
            .expected = fmt::format("{}", total),
            .found = fmt::format("{}", *index.total_size)});
    }
  }
};

// Python writes NaN and Infinity, which are no JSON: if that is what stopped the parser, the field is named.
void refuse_no_number(const std::string& text, std::uint64_t stopped, const std::string& file) {
  const std::size_t at = text.find_last_of(":,[{", stopped);
  if (at == std::string::npos || text[at] != ':') return;
  const std::size_t begin = std::min(text.find_first_not_of(" \t\r\n", at + 1), text.size());
  const std::string word = text.substr(begin, text.find_first_of(" \t\r\n,}", begin) - begin);
  if (word != "NaN" && word != "Infinity" && word != "-Infinity") return;
  const std::size_t close = text.rfind('"', at);
  const std::size_t open = close == std::string::npos || close == 0 ? close : text.rfind('"', close - 1);
  const std::string key = open == std::string::npos ? "" : text.substr(open + 1, close - open - 1);
  fail(ErrorCode::config, fmt::format("model configuration: {}: it is no finite number", printable(key)),
       {.file = file, .key = key, .offset = begin, .expected = "a finite number", .found = word});
}

}  // namespace

HfFolder::HfFolder(const fs::path& path, Options options) : path_(path), options_(options) {
  std::error_code error;
  if (!fs::is_directory(path, error)) {
    folder_ = path.parent_path().empty() ? fs::path(".") : path.parent_path();
    SourceFile file(path);  // named by the user, so a link is followed
    SafetensorsHeader header = read_safetensors_header(file);
    add(std::move(file), std::move(header));
    names_ = NameIndex(tensors_);
    return;
  }
  folder_ = path;
  if (stands(folder_ / index_name)) {
    open_shards();
  } else if (stands(folder_ / single_name)) {
    SourceFile file = SourceFile::inside(folder_, single_name, options_.allow_links);
    SafetensorsHeader header = read_safetensors_header(file);
    add(std::move(file), std::move(header));
    names_ = NameIndex(tensors_);
  } else {
    const std::string found = other_model(folder_);
    fail(ErrorCode::format, fmt::format("opening a model folder: it holds {}", found),
         {.file = folder_.string(),
          .expected = fmt::format("{} or {}", single_name, index_name),
          .found = found});
  }
}

void HfFolder::open_shards() {
  const SourceFile index_file = SourceFile::inside(folder_, index_name, options_.allow_links);
  const std::string index_path = index_file.path().string();
  const ShardIndex index = parse_shard_index(read_text(index_file, most_index), index_path);
  const bool only_single = index.shards.size() == 1 && index.shards[0] == single_name;
  if (stands(folder_ / single_name) && !only_single) {
    fail(ErrorCode::index,
         "opening a model folder: it holds model.safetensors and an index of other files; remove the one "
         "that is not meant",
         {.file = index_path,
          .expected = "one of the two",
          .found = fmt::format("{} and {}", (folder_ / single_name).string(), index.shards[0])});
  }
  for (SourceFile& file : open_all(folder_, index, index_path, options_.allow_links)) {
    SafetensorsHeader header = read_safetensors_header(file);
    add(std::move(file), std::move(header));
  }
  names_ = NameIndex(tensors_);
  Disagreement{index_path, index}.check(tensors_, names_);
}

void HfFolder::add(SourceFile file, SafetensorsHeader header) {
  for (TensorInfo& tensor : header.tensors) tensor.file = files_.size();
  files_.push_back(std::move(file));
  if (tensors_.empty()) {
    tensors_ = std::move(header.tensors);
  } else {
    tensors_.insert(tensors_.end(), std::make_move_iterator(header.tensors.begin()),
                    std::make_move_iterator(header.tensors.end()));
  }
}

void HfFolder::read(const TensorInfo& tensor, std::span<std::byte> out) const {
  SafetensorsFile::read_tensor(files_.at(tensor.file), tensor, out);
}

void HfFolder::read(const TensorInfo& tensor, std::uint64_t first_byte, std::span<std::byte> out) const {
  if (first_byte > tensor.bytes || out.size() > tensor.bytes - first_byte) {
    fail(ErrorCode::size, "reading a part of a tensor: the part ends after it",
         {.file = files_.at(tensor.file).path().string(),
          .tensor = tensor.name,
          .expected = fmt::format("at most {} bytes", tensor.bytes),
          .found = fmt::format("{} bytes from byte {}", out.size(), first_byte)});
  }
  files_.at(tensor.file).read(tensor.begin + first_byte, out, tensor.name);
}

std::string HfFolder::config_text() const {
  std::optional<std::string> text = read_beside(folder_, config_name, most_config, options_.allow_links);
  if (!text || text->find_first_not_of(" \t\r\n") == std::string::npos) {
    fail(ErrorCode::config,
         "reading a model's configuration: config.json must stand beside the weights and say what they are",
         {.file = (folder_ / config_name).string(),
          .offset = 0,
          .expected = "a JSON object",
          .found = text ? "an empty file" : "no such file"});
  }
  return *std::move(text);
}

nlohmann::json HfFolder::config() const {
  const std::string file = (folder_ / config_name).string();
  const std::string text = config_text();
  nlohmann::json value;
  try {
    value = parse_json(text, file, {.bytes = most_config});
  } catch (const Error& error) {
    if (error.code() == ErrorCode::json && error.fields().offset)
      refuse_no_number(text, *error.fields().offset, file);
    throw;
  }
  if (!value.is_object()) {
    fail(ErrorCode::config, "reading a model's configuration: config.json is no object",
         {.file = file,
          .offset = text.find_first_not_of(" \t\r\n"),
          .expected = "a JSON object",
          .found = value.type_name()});
  }
  return value;
}

std::optional<std::string> read_beside(const fs::path& folder, std::string_view name, std::uint64_t most,
                                       bool allow_links) {
  if (!stands(folder / name)) return std::nullopt;
  return read_text(SourceFile::inside(folder, name, allow_links), most);
}

std::vector<std::string> config_warnings(const nlohmann::json& config) {
  std::vector<std::string> warnings;
  for (const std::string_view key : {"auto_map", "custom_pipelines"}) {
    if (config.contains(key))
      warnings.push_back(
          fmt::format("config.json has '{}', which asks for code of the repository to be run: ignored", key));
  }
  return warnings;
}

}  // namespace scalevec
