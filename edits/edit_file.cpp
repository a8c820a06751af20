#include <scalevec/edits/edit_file.h>

#include <algorithm>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <scalevec/core/checkpoint/checkpoint.h>
#include <scalevec/core/checkpoint/json.h>
#include <scalevec/core/checkpoint/looks_like.h>
#include <scalevec/core/checkpoint/tensor_file.h>
#include <scalevec/core/error.h>
#include <scalevec/core/selector.h>
#include <scalevec/edits/edit_fields.h>
#include <scalevec/edits/edited_vector.h>

namespace scalevec {
namespace {

using nlohmann::json;

constexpr JsonLimits limits{.bytes = std::uint64_t{64} << 20, .depth = 8};
constexpr std::size_t most_tokens = 1'000'000;  // what is parsed takes some 60 bytes for each

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
      const std::string word = allowed.is_string() ? allowed.get<std::string>() : json_text(allowed);
      if (word == "no_effect")
        operation.allow.no_effect = true;
      else if (word == "non_finite")
        operation.allow.non_finite = true;
      else if (word == "tied")
        operation.allow.tied = true;
      else
        fields.refuse("allow", "no_effect, non_finite or tied", word);
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
    const std::string word = value.is_string() ? value.get<std::string>() : "nan";
    const bool number = word == "nan" || word == "inf" || word == "-inf";
    if (name == "values")
      operation.arguments[name] = fields.bytes("values", value);
    else if (number)
      operation.arguments[name] = fields.number(name, value);
    else
      operation.arguments[name] = word;
  }
  try {
    find_verb(operation.verb).check(operation.arguments);
    Selector::parse(operation.selector);
  } catch (const Error& error) {
    fields.refuse("", "an operation that this version knows", error.message());
  }
  return operation;
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
  const OwnJsonFile file{ErrorCode::bundle, "the edit file", "Take an unchanged copy of it.",
                         std::string(source)};
  const EditFields fields(root, file, "");
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
    return EditFields(item, file, fmt::format("{}[{}]", list, i), static_cast<std::int64_t>(i));
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
  if (std::error_code unasked; !std::filesystem::exists(path, unasked)) {
    fail(ErrorCode::path, fmt::format("reading an edit: there is no edit file {}", printable(path.string())),
         {.file = path.string()});
  }
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
  const std::size_t first = text.find_first_not_of(" \t\r\n");
  if (first != std::string::npos && text[first] != '{') {
    const std::string_view other =
        looks_like(std::as_bytes(std::span(text).first(std::min<std::size_t>(text.size(), 512))));
    fail(ErrorCode::json,
         fmt::format("reading an edit: this is no edit file{}{}; `scalevec edit` writes one",
                     other.empty() ? "" : " but ", other),
         {.file = path.string(), .offset = 0, .expected = "a JSON object", .found = std::string(other)});
  }
  return parse_edit(text, path.string());
}

}  // namespace scalevec
