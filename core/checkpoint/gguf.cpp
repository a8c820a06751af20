#include <scalevec/core/checkpoint/gguf.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include <scalevec/core/checkpoint/gguf_header.h>
#include <scalevec/core/error.h>

namespace scalevec {
namespace {

// N of "blk.N.", if the name begins so.
std::optional<std::uint64_t> block_of(std::string_view name) {
  constexpr std::string_view prefix = "blk.";
  if (!name.starts_with(prefix)) return std::nullopt;
  name.remove_prefix(prefix.size());
  std::uint64_t block = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), block);
  if (error != std::errc() || end == name.data() + name.size() || *end != '.') return std::nullopt;
  return block;
}

}  // namespace

GgufFile::GgufFile(const std::filesystem::path& path) : source_(path), name_(path.string()) {
  const auto read = [this](std::uint64_t begin, std::span<std::byte> out) { source_->read(begin, out); };
  header_ = parse_gguf_header(source_->size(), read, name_);
  names_ = NameIndex(header_.tensors);
}

GgufFile GgufFile::from_memory(std::span<const std::byte> bytes, std::string name) {
  GgufFile file;
  file.name_ = std::move(name);
  file.memory_.assign(bytes.begin(), bytes.end());
  const auto read = [&](std::uint64_t begin, std::span<std::byte> out) {
    std::ranges::copy(bytes.subspan(begin, out.size()), out.begin());
  };
  file.header_ = parse_gguf_header(bytes.size(), read, file.name_);
  file.names_ = NameIndex(file.header_.tensors);
  return file;
}

std::string_view GgufFile::architecture() const {
  constexpr std::string_view key = "general.architecture";
  const std::string_view name = metadata().text(key);
  if (name.empty()) {
    fail(ErrorCode::schema, "reading GGUF metadata: general.architecture is empty",
         {.file = name_,
          .key = std::string(key),
          .expected = "a name, such as llama",
          .found = "an empty string"});
  }
  return name;
}

std::string GgufFile::model_key(std::string_view key) const {
  return fmt::format("{}.{}", architecture(), key);
}

std::int64_t GgufFile::block_count() const {
  const std::string key = model_key("block_count");
  const std::int64_t count = metadata().integer(key);
  const bool split = metadata().has("split.count") && metadata().integer("split.count") > 1;
  const auto refuse = [&](std::string_view what, std::string expected, std::string found,
                          std::string tensor = {}) {
    fail(ErrorCode::config,
         fmt::format(
             "reading GGUF metadata: {} does not fit the tensors: {}{}", printable(key), what,
             split ? "; this is one part of a split model, join the parts with gguf-split --merge" : ""),
         {.file = name_,
          .tensor = std::move(tensor),
          .key = key,
          .offset = metadata().offset(key),
          .expected = std::move(expected),
          .found = std::move(found)});
  };
  if (count < 1 || static_cast<std::uint64_t>(count) > tensors().size()) {
    refuse("no such number of blocks", fmt::format("1 to {}", tensors().size()), std::to_string(count));
  }
  std::vector<bool> present(static_cast<std::size_t>(count));
  for (const TensorInfo& tensor : tensors()) {
    const auto block = block_of(tensor.name);
    if (!block) continue;
    if (*block >= present.size()) {
      refuse("a tensor belongs to a block beyond it", fmt::format("blocks 0 to {}", count - 1),
             fmt::format("block {}", *block), tensor.name);
    }
    present[*block] = true;
  }
  const auto missing = std::ranges::find(present, false);
  if (missing != present.end()) {
    refuse("a block has no tensor", fmt::format("tensors of {} blocks", count),
           fmt::format("none of block {}", missing - present.begin()));
  }
  return count;
}

void GgufFile::read(const TensorInfo& tensor, std::span<std::byte> out) const {
  if (out.size() != tensor.bytes) {
    fail(ErrorCode::size, "reading a tensor: the buffer has another size",
         {.file = name_,
          .tensor = tensor.name,
          .expected = fmt::format("{} bytes", tensor.bytes),
          .found = fmt::format("{} bytes", out.size())});
  }
  read(tensor, 0, out);
}

void GgufFile::read(const TensorInfo& tensor, std::uint64_t first, std::span<std::byte> out) const {
  if (first > tensor.bytes || out.size() > tensor.bytes - first) {
    fail(ErrorCode::size, "reading a part of a tensor: the part ends after the tensor",
         {.file = name_,
          .tensor = tensor.name,
          .expected = fmt::format("at most {} bytes", tensor.bytes),
          .found = fmt::format("{} bytes from byte {}", out.size(), first)});
  }
  if (out.empty()) return;
  if (source_) {
    source_->read(tensor.begin + first, out, tensor.name);
  } else {
    std::memcpy(out.data(), memory_.data() + tensor.begin + first, out.size());
  }
}

}  // namespace scalevec
