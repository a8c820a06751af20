#include <cmath>
#include <utility>

#include <fmt/format.h>

#include <scalevec/core/checkpoint/json.h>
#include <scalevec/core/error.h>
#include <scalevec/core/sha256.h>
#include <scalevec/edits/base64.h>
#include <scalevec/edits/edit_fields.h>
#include <scalevec/edits/edit_file.h>

namespace scalevec {
namespace {

// fmt writes the shortest decimal; -0 would be read as an integer and lose its sign.
std::string number_text(double value) {
  if (std::isnan(value)) return "\"nan\"";
  if (std::isinf(value)) return value > 0 ? "\"inf\"" : "\"-inf\"";
  return value == 0.0 && std::signbit(value) ? "-0.0" : fmt::format("{}", value);
}

std::string operation_line(const Operation& operation) {
  std::string out = fmt::format("{{\"verb\": {}, \"select\": {}", json_quoted(operation.verb),
                                json_quoted(operation.selector));
  for (const auto& [name, argument] : operation.arguments) {
    out += ", " + json_quoted(name) + ": ";
    if (const auto* value = std::get_if<double>(&argument)) out += number_text(*value);
    if (const auto* word = std::get_if<std::string>(&argument)) out += json_quoted(*word);
    if (const auto* bytes = std::get_if<std::vector<std::byte>>(&argument))
      out += json_quoted(base64_encode(*bytes));
  }
  std::string allowed;
  const auto allow = [&](bool is_allowed, std::string_view name) {
    if (is_allowed) allowed += fmt::format("{}\"{}\"", allowed.empty() ? "" : ", ", name);
  };
  allow(operation.allow.no_effect, "no_effect");
  allow(operation.allow.non_finite, "non_finite");
  allow(operation.allow.tied, "tied");
  if (!allowed.empty()) out += fmt::format(", \"allow\": [{}]", allowed);
  out += fmt::format(", \"selected\": {}, \"changed\": {}, \"lost\": {}", operation.selected,
                     operation.changed, operation.lost);
  if (!operation.gathered.empty()) {
    std::string gathered;
    for (const auto& [address, value] : operation.gathered) {
      gathered +=
          fmt::format("{}{}: {}", gathered.empty() ? "" : ", ", json_quoted(address), number_text(value));
    }
    out += fmt::format(", \"gathered\": {{{}}}", gathered);
  }
  return out + "}";
}

std::string vector_lines(const EditedVector& vector) {
  std::string by;
  for (const Step& step : vector.steps) {
    by += fmt::format("{}{}", by.empty() ? "" : " ", step.operation + 1);
    if (step.channels != vector.channels) by.append("@").append(channels_field(step.channels, vector.width));
  }
  return fmt::format(
      "{{\"address\": {}, \"native\": {}, \"dtype\": \"{}\", \"offset\": {}, \"width\": {},\n"
      "     \"base\": {}, \"after\": {},\n"
      "     \"channels\": {}, \"by\": {}, \"old\": \"{}\"}}",
      json_quoted(vector.address), json_quoted(vector.native), dtype_name(vector.dtype),
      number_text(vector.offset), vector.width, json_quoted(vector.base), json_quoted(vector.after),
      json_quoted(channels_field(vector.channels, vector.width)), json_quoted(by), base64_encode(vector.old));
}

}  // namespace

std::string edit_text(const Edit& edit) {
  if (edit.operations.size() > edit_format::most_operations) {
    fail(ErrorCode::limit,
         fmt::format("an edit file holds at most {} operations; this edit has {}. Save it in parts.",
                     edit_format::most_operations, edit.operations.size()),
         {.key = "operations",
          .expected = std::to_string(edit_format::most_operations),
          .found = std::to_string(edit.operations.size())});
  }
  std::string out = "{\n";
  const auto line = [&](std::string_view key, std::string_view value) {
    out += fmt::format("  \"{}\": {},\n", key, json_quoted(value));
  };
  line("schema", edit_format::schema);
  line("tool", edit.tool);
  line("family", edit.source.family);
  line("source", edit.source.file);
  if (!edit.note.empty()) line("note", edit.note);
  const auto list = [&](std::string_view key, const auto& items, const auto& text) {
    out += fmt::format("  \"{}\": [", key);
    bool first = true;
    for (const auto& item : items) {
      out += std::exchange(first, false) ? "\n    " : ",\n    ";
      out += text(item);
    }
    out += items.empty() ? "],\n" : "\n  ],\n";
  };
  list("operations", edit.operations, operation_line);
  list("vectors", edit.vectors, vector_lines);
  const std::string digest = sha256_hex(std::as_bytes(std::span(out.data(), out.size())));
  return out + std::string(edit_format::digest_line) + "sha256:" + digest + "\"\n}\n";
}

}  // namespace scalevec
