#include <scalevec/core/checkpoint/write_model.h>

#include <algorithm>
#include <array>
#include <optional>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <scalevec/core/atomic_file.h>
#include <scalevec/core/checkpoint/checkpoint.h>
#include <scalevec/core/checkpoint/hf_folder.h>
#include <scalevec/core/checkpoint/json.h>
#include <scalevec/core/checkpoint/safetensors.h>
#include <scalevec/core/error.h>

namespace scalevec {
namespace {

namespace fs = std::filesystem;

std::uint64_t bytes_of(const NewTensor& tensor) {
  std::uint64_t bytes = block_layout(tensor.dtype).bytes;
  for (const std::uint64_t size : tensor.shape) bytes *= size;
  return bytes;
}

// The length, the JSON, and blanks up to where the data can lie aligned.
std::string header_of(const std::vector<const NewTensor*>& tensors,
                      const std::map<std::string, std::string>& metadata) {
  std::map<std::string, std::string> notes = metadata;
  notes["format"] = "pt";  // without it transformers refuses the file
  std::string text;
  for (const auto& [key, note] : notes) {
    text += fmt::format("{}{}:{}", text.empty() ? "" : ",", json_quoted(key), json_quoted(note));
  }
  text = R"({"__metadata__":{)" + text + "}";
  std::uint64_t end = 0;
  for (const NewTensor* tensor : tensors) {
    const std::uint64_t begin = end;
    end += bytes_of(*tensor);
    text +=
        fmt::format(R"(,{}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", json_quoted(tensor->name),
                    dtype_name(tensor->dtype), fmt::join(tensor->shape, ","), begin, end);
  }
  text += "}";
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string length(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) length[i] = static_cast<char>(text.size() >> (8 * i) & 0xFF);
  return length + text;
}

}  // namespace

void write_safetensors(const fs::path& file, const std::vector<NewTensor>& given,
                       const std::map<std::string, std::string>& metadata, const Progress& progress) {
  // Wide elements first, so that every tensor lies at a multiple of its element.
  std::vector<const NewTensor*> tensors;
  for (const NewTensor& tensor : given) tensors.push_back(&tensor);
  std::stable_sort(tensors.begin(), tensors.end(), [](const NewTensor* a, const NewTensor* b) {
    return block_layout(a->dtype).bytes > block_layout(b->dtype).bytes;
  });
  std::uint64_t total = 0, done = 0;
  for (const NewTensor* tensor : tensors) total += bytes_of(*tensor);

  AtomicFile out(file, Replace::no);
  const std::string header = header_of(tensors, metadata);
  out.append(std::as_bytes(std::span(header)));
  for (const NewTensor* tensor : tensors) {
    const std::uint64_t begin = done, expected = bytes_of(*tensor);
    const auto check = [&](bool fits) {
      if (fits) return;
      fail(ErrorCode::size, "writing a model: a tensor has another number of bytes than its shape says",
           {.tensor = tensor->name,
            .expected = fmt::format("{} bytes", expected),
            .found = fmt::format("{} bytes", done - begin)});
    };
    tensor->write([&](std::span<const std::byte> bytes) {
      done += bytes.size();
      check(done - begin <= expected);
      out.append(bytes);
      report(progress, "writing weights", done, total);
    });
    check(done - begin == expected);
  }
  out.commit();
}

WrittenModel write_model(const fs::path& folder, const NewModel& model, const Progress& progress) {
  AtomicFolder made(folder);
  write_safetensors(made.path() / "model.safetensors", model.tensors, model.metadata, progress);
  write_atomically(made.path() / "config.json", model.config, Replace::no);
  for (const auto& [name, content] : model.files) {
    if (name.empty() || fs::path(name).filename() != name) {
      fail(ErrorCode::path, "writing a model: the name of a file beside it is no plain name",
           {.key = printable(name), .expected = "a name without folders"});
    }
    write_atomically(made.path() / name, content, Replace::no);
  }
  Checkpoint::open(made.path());
  WrittenModel written;
  for (const fs::directory_entry& entry : fs::directory_iterator(made.path())) {
    ++written.files;
    written.bytes += entry.file_size();
  }
  made.commit();
  return written;
}

std::map<std::string, std::string> metadata_of(const std::vector<fs::path>& files) {
  std::map<std::string, std::string> all;
  for (const fs::path& file : files) all.merge(read_safetensors_header(SourceFile(file)).metadata());
  return all;
}

std::map<std::string, std::string> tokenizer_files(const fs::path& folder) {
  static constexpr std::array names{"tokenizer.json",      "tokenizer_config.json", "special_tokens_map.json",
                                    "chat_template.jinja", "tokenizer.model",       "generation_config.json"};
  constexpr std::uint64_t most = std::uint64_t{256} << 20;
  std::map<std::string, std::string> found;
  for (const char* const name : names) {
    if (std::optional<std::string> text =
            read_beside(folder.empty() ? "." : folder, name, most, /*allow_links=*/false))
      found[name] = *std::move(text);
  }
  return found;
}

}  // namespace scalevec
