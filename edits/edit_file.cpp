#include <scalevec/edits/edit_file.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <scalevec/core/checkpoint/checkpoint.h>
#include <scalevec/core/checkpoint/json.h>
#include <scalevec/core/checkpoint/tensor_file.h>
#include <scalevec/core/error.h>
#include <scalevec/core/selector.h>
#include <scalevec/edits/edit_fields.h>

namespace scalevec {
namespace {

using nlohmann::json;

constexpr JsonLimits limits{.bytes = std::uint64_t{64} << 20, .depth = 8};
constexpr std::size_t most_tokens = 1'000'000;  // what is parsed takes some 60 bytes for each
constexpr std::int64_t widest = std::int64_t{1} << 24;

Operation read_operation(const EditFields& fields) {
  Operation operation;
  operation.verb = fields.text("verb");
  operation.selector = fields.text("select");
  operation.selected = fields.integer("selected", 0, INT64_MAX);
  operation.changed = fields.integer("changed", 0, operation.selected);
  operation.lost = fields.integer("lost", 0, operation.selected - operation.changed);
  if (fields.has("allow")) {
    const json& list = fields.get("allow");
    if (!list.is_array()) fields.refuse("allow", "a list", list.type_name());
    for (const json& allowed : list) {
      if (allowed == "no_effect")
        operation.allow.no_effect = true;
      else if (allowed == "non_finite")
        operation.allow.non_finite = true;
      else if (allowed == "tied")
        operation.allow.tied = true;
      else
        fields.refuse("allow", "no_effect, non_finite or tied", allowed.dump());
    }
  }
  if (fields.has("gathered")) {
    const json& gathered = fields.get("gathered");
    if (!gathered.is_object()) fields.refuse("gathered", "an object", gathered.type_name());
    for (const auto& [address, value] : gathered.items()) {
      operation.gathered[address] = fields.number("gathered", value);
    }
  }
  static constexpr std::string_view own[] = {"verb",    "select", "allow",   "selected",
                                             "changed", "lost",   "gathered"};
  for (const auto& [name, value] : fields.object().items()) {
    if (std::find(std::begin(own), std::end(own), name) != std::end(own)) continue;
    const bool word = value.is_string() && value != "nan" && value != "inf" && value != "-inf";
    if (name == "values")
      operation.arguments[name] = fields.bytes("values", value);
    else if (word)
      operation.arguments[name] = value.get<std::string>();
    else
      operation.arguments[name] = fields.number(name, value);
  }
  try {
    find_verb(operation.verb).check(operation.arguments);
    Selector::parse(operation.selector);
  } catch (const Error& error) {
    fields.refuse("", "an operation that this version knows", error.message());
  }
  return operation;
}

std::vector<Step> read_steps(const EditFields& fields, const std::string& text, const EditedVector& vector,
                             std::size_t operations) {
  std::vector<Step> steps;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(' ', begin), text.size());
    const std::string item = text.substr(begin, end - begin);
    const std::size_t at = std::min(item.find('@'), item.size());
    std::size_t number = 0;
    for (const char c : item.substr(0, at)) {
      if (c < '0' || c > '9' || number > operations)
        number = operations + 1;
      else
        number = number * 10 + static_cast<std::size_t>(c - '0');
    }
    if (number < 1 || number > operations || (!steps.empty() && number - 1 <= steps.back().operation)) {
      fields.refuse("by", fmt::format("numbers of operations, 1 to {}, ascending", operations), text);
    }
    Step step{number - 1, vector.channels};
    if (at < item.size()) step.channels = fields.channels("by", item.substr(at + 1), vector.width);
    if (!std::includes(vector.channels.begin(), vector.channels.end(), step.channels.begin(),
                       step.channels.end())) {
      fields.refuse("by", "channels that the vector lists", item);
    }
    steps.push_back(std::move(step));
    begin = end + 1;
  }
  return steps;
}

EditedVector read_vector(const EditFields& fields, std::size_t operations) {
  EditedVector vector;
  vector.address = fields.text("address");
  try {
    vector.address = Address::parse(vector.address).str();
  } catch (const Error& error) {
    fields.refuse("address", "an address", error.message());
  }
  vector.native = fields.text("native");
  if (vector.native.size() > 1024) fields.refuse("native", "at most 1024 bytes", vector.native);
  const std::string dtype = fields.text("dtype");
  bool known = false;
  for (const DType each : {DType::f64, DType::f32, DType::f16, DType::bf16}) {
    if (dtype != dtype_name(each)) continue;
    vector.dtype = each;
    known = true;
  }
  if (!known) fields.refuse("dtype", "F64, F32, F16 or BF16", dtype);
  vector.offset = fields.number("offset", fields.get("offset"));
  if (!std::isfinite(vector.offset))
    fields.refuse("offset", "a finite number", fmt::format("{}", vector.offset));
  vector.width = fields.integer("width", 1, widest);
  vector.base = fields.digest("base");
  vector.after = fields.digest("after");
  vector.channels = fields.channels("channels", fields.text("channels"), vector.width);
  vector.old = fields.bytes("old", fields.get("old"));
  const std::size_t size = scale_dtype_bytes(vector.dtype);
  if (vector.old.size() != vector.channels.size() * size) {
    fields.refuse("old",
                  fmt::format("{} bytes ({} channels of {})", vector.channels.size() * size,
                              vector.channels.size(), size),
                  fmt::format("{} bytes", vector.old.size()));
  }
  vector.steps = read_steps(fields, fields.text("by"), vector, operations);
  fields.only({"address", "native", "dtype", "offset", "width", "base", "after", "channels", "by", "old"});
  return vector;
}

// What can be known without the model: old bytes and operations must lead to the digests and touch what is
// listed.
void check_vector(const Edit& edit, const EditedVector& vector, const EditFields& fields) {
  std::vector<std::byte> after;
  try {
    after = new_bytes(edit, vector);
  } catch (const Error& error) {
    fields.refuse("by", "operations that can be run", error.message());
  }
  const std::size_t size = scale_dtype_bytes(vector.dtype);
  for (std::size_t i = 0; i < vector.channels.size(); ++i) {
    if (std::memcmp(after.data() + i * size, vector.old.data() + i * size, size) == 0) {
      fields.refuse("channels", "channels that the operations change",
                    fmt::format("channel {}", vector.channels[i]));
    }
  }
  if (static_cast<std::int64_t>(vector.channels.size()) != vector.width) return;
  const auto digest = [&](std::span<const std::byte> bytes) {
    return vector_digest(vector.dtype, vector.width, vector.offset, bytes);
  };
  if (digest(vector.old) != vector.base) fields.refuse("base", digest(vector.old), vector.base);
  if (digest(after) != vector.after) fields.refuse("after", digest(after), vector.after);
}

}  // namespace

Edit parse_edit(std::string_view text, std::string_view source) {
  JsonReader reader(text, source, limits);
  for (std::size_t tokens = 0; reader.next() != JsonToken::end; ++tokens) {
    if (tokens > most_tokens) {
      fail(ErrorCode::limit,
           fmt::format("an edit file with more than {} JSON tokens is not read", most_tokens),
           {.file = std::string(source), .key = "operations", .offset = reader.offset()});
    }
  }
  const json root = parse_json(text, source, limits);
  EditFields fields(root, source, "");
  if (const std::string found = fields.text("schema"); found != edit_format::schema) {
    fields.refuse("schema", fmt::format("\"{}\" (a newer scalevec may have written it)", edit_format::schema),
                  found);
  }
  Edit edit;
  edit.tool = fields.text("tool");
  edit.source = {.family = fields.text("family"), .file = fields.text("source")};
  if (fields.has("note")) edit.note = fields.text("note");
  const json& operations = fields.get("operations");
  const json& vectors = fields.get("vectors");
  const std::string digest = fields.digest("digest");
  fields.only({"schema", "tool", "family", "source", "note", "operations", "vectors", "digest"});
  if (!operations.is_array()) fields.refuse("operations", "a list", operations.type_name());
  if (!vectors.is_array()) fields.refuse("vectors", "a list", vectors.type_name());
  if (operations.size() > edit_format::most_operations) {
    fail(ErrorCode::limit,
         fmt::format("{} operations; at most {} are read", operations.size(), edit_format::most_operations),
         {.file = std::string(source),
          .key = "operations",
          .expected = std::to_string(edit_format::most_operations),
          .found = std::to_string(operations.size())});
  }
  const auto entry = [&](const json& item, std::string_view list, std::size_t i) {
    return EditFields(item, source, fmt::format("{}[{}]", list, i), static_cast<std::int64_t>(i));
  };
  for (std::size_t i = 0; i < operations.size(); ++i) {
    edit.operations.push_back(read_operation(entry(operations[i], "operations", i)));
  }
  for (std::size_t i = 0; i < vectors.size(); ++i) {
    edit.vectors.push_back(read_vector(entry(vectors[i], "vectors", i), edit.operations.size()));
    if (i > 0 && !address_before(edit.vectors[i - 1].address, edit.vectors[i].address)) {
      entry(vectors[i], "vectors", i)
          .refuse("address", "after " + edit.vectors[i - 1].address, edit.vectors[i].address);
    }
  }
  // Before the vectors are looked into: that a list was changed, shortened or reordered is said as such.
  const std::string canonical = edit_text(edit);
  const std::size_t line = canonical.rfind(edit_format::digest_line) + edit_format::digest_line.size();
  if (canonical.compare(line, digest.size(), digest) != 0) {
    fields.refuse("digest", canonical.substr(line, digest.size()),
                  digest + ": the file was changed after it was saved");
  }
  for (std::size_t i = 0; i < vectors.size(); ++i)
    check_vector(edit, edit.vectors[i], entry(vectors[i], "vectors", i));
  if (canonical != text) {
    const auto differs = std::mismatch(canonical.begin(), canonical.end(), text.begin(), text.end()).first;
    fields.refuse(
        "layout", "as it was saved",
        fmt::format("changed from byte {} on (spaces, line ends or order)", differs - canonical.begin()));
  }
  return edit;
}

void write_edit(const Edit& edit, const std::filesystem::path& path, Replace replace) {
  write_atomically(path, std::string_view(edit_text(edit)), replace);
}

Edit read_edit(const std::filesystem::path& path) {
  const SourceFile file(path);
  if (file.size() > limits.bytes) {
    fail(ErrorCode::limit,
         fmt::format("an edit file of {} bytes; at most {} are read", file.size(), limits.bytes),
         {.file = path.string(),
          .key = "operations",
          .expected = std::to_string(limits.bytes),
          .found = std::to_string(file.size())});
  }
  std::string text(file.size(), '\0');
  file.read(0, std::as_writable_bytes(std::span(text.data(), text.size())));
  return parse_edit(text, path.string());
}

}  // namespace scalevec
