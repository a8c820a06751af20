#include <scalevec/core/checkpoint/shard_index.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <map>

#include <fmt/format.h>

#include <scalevec/core/checkpoint/json.h>
#include <scalevec/core/error.h>

namespace scalevec {
namespace {

constexpr std::string_view map_key = "weight_map";

[[noreturn]] void refuse(std::string_view file, std::string_view key, std::uint64_t offset,
                         std::string_view expected, std::string_view found) {
  fail(ErrorCode::index, fmt::format("reading a shard index: expected {}, found {}", expected, found),
       {.file = std::string(file),
        .key = std::string(key),
        .offset = offset,
        .expected = std::string(expected),
        .found = std::string(found)});
}

// A name that can only mean a file of the same folder, on any system.
bool plain_name(std::string_view name) {
  const auto unfit = [](char c) {
    return static_cast<unsigned char>(c) < 0x20 || c == 0x7F || c == '/' || c == '\\';
  };
  if (name.empty() || name == "." || name == ".." || name.size() > 255) return false;
  if (name.size() >= 2 && name[1] == ':' && std::isalpha(static_cast<unsigned char>(name[0])) != 0)
    return false;
  return std::none_of(name.begin(), name.end(), unfit);
}

// Some writers give the sum as a float; one that is not a whole number is no sum of bytes.
std::optional<std::uint64_t> whole_number(std::string_view text) {
  std::uint64_t value = 0;
  const char* const last = text.data() + text.size();
  if (const auto [end, error] = std::from_chars(text.data(), last, value);
      error == std::errc() && end == last)
    return value;
  double real = 0;
  const auto [end, error] = std::from_chars(text.data(), last, real);
  if (error != std::errc() || end != last || !(real >= 0 && real < 0x1p53) || real != std::floor(real))
    return std::nullopt;
  return static_cast<std::uint64_t>(real);
}

class IndexReader {
 public:
  IndexReader(std::string_view text, std::string_view file)
      : file_(file), reader_(text, file, {.bytes = text.size()}) {}

  ShardIndex read() {
    bool has_map = false;
    reader_.next();
    while (reader_.next() == JsonToken::key) {
      if (reader_.text() == map_key) {
        has_map = true;
        read_map();
      } else if (reader_.text() == "metadata") {
        read_metadata();
      } else {
        reader_.next();
        reader_.skip_value();
      }
    }
    if (!has_map) refuse(file_, map_key, 0, "weight_map", "no such key");
    if (index_.entries.empty()) refuse(file_, map_key, 0, "at least one tensor in weight_map", "none");
    number_shards();
    return std::move(index_);
  }

 private:
  void read_map() {
    const std::uint64_t offset = reader_.offset();
    if (reader_.next() != JsonToken::begin_object)
      refuse(file_, map_key, offset, "an object of file names", "no object");
    while (reader_.next() == JsonToken::key) {
      std::string tensor(reader_.text());
      if (reader_.next() != JsonToken::string)
        refuse(file_, tensor, reader_.offset(), "a file name", "no string");
      const std::string_view shard = reader_.text();
      if (!plain_name(shard)) {
        fail(ErrorCode::path,
             "reading a shard index: a shard must be a plain file name in the index's own folder",
             {.file = std::string(file_),
              .key = std::move(tensor),
              .offset = reader_.offset(),
              .expected = "a file name without folders",
              .found = fmt::format("\"{}\"", printable(shard))});
      }
      const auto place = numbers_.try_emplace(std::string(shard), numbers_.size()).first;
      index_.entries.push_back({std::move(tensor), place->second});
    }
  }

  void read_metadata() {
    const std::uint64_t offset = reader_.offset();
    if (reader_.next() != JsonToken::begin_object)
      refuse(file_, "metadata", offset, "an object", "no object");
    while (reader_.next() == JsonToken::key) {
      const bool total = reader_.text() == "total_size";
      const JsonToken token = reader_.next();
      if (!total) {
        reader_.skip_value();
        continue;
      }
      const auto size = token == JsonToken::number ? whole_number(reader_.text()) : std::nullopt;
      if (!size) {
        refuse(file_, "total_size", reader_.offset(), "the number of bytes of all tensors",
               token == JsonToken::number || token == JsonToken::string ? printable(reader_.text(), 40)
                                                                        : "no number");
      }
      index_.total_size = size;
    }
  }

  // From the order in which the text names shards to the order of their names.
  void number_shards() {
    std::vector<std::size_t> sorted(numbers_.size());
    for (const auto& [name, number] : numbers_) {
      sorted[number] = index_.shards.size();
      index_.shards.push_back(name);
    }
    for (ShardIndex::Entry& entry : index_.entries) entry.shard = sorted[entry.shard];
    std::sort(index_.entries.begin(), index_.entries.end(),
              [](const ShardIndex::Entry& a, const ShardIndex::Entry& b) { return a.tensor < b.tensor; });
  }

  std::string_view file_;
  JsonReader reader_;
  ShardIndex index_;
  std::map<std::string, std::size_t> numbers_;
};

}  // namespace

const ShardIndex::Entry* ShardIndex::find(std::string_view tensor) const {
  const auto at =
      std::lower_bound(entries.begin(), entries.end(), tensor,
                       [](const Entry& entry, std::string_view name) { return entry.tensor < name; });
  return at != entries.end() && at->tensor == tensor ? &*at : nullptr;
}

ShardIndex parse_shard_index(std::string_view text, std::string_view file) {
  const JsonLimits limits{.bytes = text.size()};
  const JsonSummary summary = check_json(text, file, limits);
  if (summary.duplicate) refuse_duplicate_key(*summary.duplicate, file);
  const std::size_t first = text.find_first_not_of(" \t\r\n");
  if (text[first] != '{') {
    fail(ErrorCode::json, "reading a shard index: the text is no object",
         {.file = std::string(file),
          .offset = first,
          .expected = "'{'",
          .found = printable(text.substr(first, 1))});
  }
  return IndexReader(text, file).read();
}

}  // namespace scalevec
