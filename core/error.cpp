#include <scalevec/core/error.h>

#include <fmt/format.h>

namespace scalevec {
namespace {

constexpr std::size_t longest_message = 1024;

// Length of the valid UTF-8 sequence at the front of `text`, or 0.
std::size_t utf8_sequence(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return 1;
  const std::size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text.size() < length) return 0;
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  if (lead == 0xE0 && byte(1) < 0xA0) return 0;
  if (lead == 0xED && byte(1) > 0x9F) return 0;
  if (lead == 0xF0 && byte(1) < 0x90) return 0;
  if (lead == 0xF4 && byte(1) > 0x8F) return 0;
  return length;
}

template <class Standard>
[[noreturn]] void raise(ErrorCode code, const std::string& message, ErrorFields&& fields) {
  throw ErrorAs<Standard>(code, message, std::move(fields));
}

}  // namespace

std::string_view code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::addr:
      return "E_ADDR";
    case ErrorCode::bundle:
      return "E_BUNDLE";
    case ErrorCode::config:
      return "E_CONFIG";
    case ErrorCode::device:
      return "E_DEVICE";
    case ErrorCode::dtype:
      return "E_DTYPE";
    case ErrorCode::dup:
      return "E_DUP";
    case ErrorCode::format:
      return "E_FORMAT";
    case ErrorCode::index:
      return "E_INDEX";
    case ErrorCode::io:
      return "E_IO";
    case ErrorCode::json:
      return "E_JSON";
    case ErrorCode::limit:
      return "E_LIMIT";
    case ErrorCode::name:
      return "E_NAME";
    case ErrorCode::no_effect:
      return "E_NO_EFFECT";
    case ErrorCode::offset:
      return "E_OFFSET";
    case ErrorCode::overflow:
      return "E_OVERFLOW";
    case ErrorCode::path:
      return "E_PATH";
    case ErrorCode::quant:
      return "E_QUANT";
    case ErrorCode::schema:
      return "E_SCHEMA";
    case ErrorCode::shape:
      return "E_SHAPE";
    case ErrorCode::size:
      return "E_SIZE";
    case ErrorCode::state:
      return "E_STATE";
    case ErrorCode::trail:
      return "E_TRAIL";
    case ErrorCode::trunc:
      return "E_TRUNC";
    case ErrorCode::utf8:
      return "E_UTF8";
    case ErrorCode::value:
      return "E_VALUE";
  }
  return "E_UNKNOWN";
}

std::string printable(std::string_view text, std::size_t most) {
  std::string out;
  while (!text.empty()) {
    const std::size_t length = utf8_sequence(text);
    const auto byte = static_cast<unsigned char>(text[0]);
    const bool plain = length > 1 || (length == 1 && byte >= 0x20 && byte != 0x7F);
    const std::string piece = plain ? std::string(text.substr(0, length)) : fmt::format("\\x{:02x}", byte);
    if (out.size() + piece.size() > most) return out + "...";
    out += piece;
    text.remove_prefix(length == 0 ? 1 : length);
  }
  return out;
}

void fail(ErrorCode code, std::string_view message, ErrorFields fields) {
  std::string text = fmt::format("{}: {}", code_name(code), message);
  std::string details;
  const auto add = [&](std::string_view label, std::string_view value) {
    if (value.empty() || message.find(value) != std::string_view::npos) return;
    details += fmt::format("{}{} {}", details.empty() ? "" : ", ", label, value);
  };
  add("file", fields.file);
  add("tensor", fields.tensor);
  add("key", fields.key);
  if (fields.offset) add("at byte", std::to_string(*fields.offset));
  if (fields.index) add("at index", std::to_string(*fields.index));
  add("expected", fields.expected);
  add("found", fields.found);
  if (!details.empty()) text += " (" + details + ")";
  text = printable(text, longest_message - 3);

  switch (code) {
    case ErrorCode::addr:
      raise<std::out_of_range>(code, text, std::move(fields));
    case ErrorCode::io:
    case ErrorCode::path:
    case ErrorCode::device:
      raise<std::runtime_error>(code, text, std::move(fields));
    default:
      raise<std::invalid_argument>(code, text, std::move(fields));
  }
}

}  // namespace scalevec
