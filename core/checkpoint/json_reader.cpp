#include <scalevec/core/checkpoint/json.h>

#include <cmath>

#include <fmt/format.h>

#include <scalevec/core/error.h>

namespace scalevec {
namespace {

constexpr bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Length of the valid UTF-8 sequence of two bytes or more at the front of `text`, or 0.
std::size_t long_utf8(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  const std::size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text.size() < length) return 0;
  // The second byte's range excludes overlong forms, surrogates and what lies beyond U+10FFFF.
  const unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  if (byte(1) < low || byte(1) > high) return 0;
  for (std::size_t i = 2; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  return length;
}

void append_utf8(std::string& out, std::uint32_t code) {
  const auto put = [&](std::uint32_t byte) {
    out.push_back(static_cast<char>(static_cast<unsigned char>(byte)));
  };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xC0 | code >> 6), put(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    put(0xE0 | code >> 12), put(0x80 | (code >> 6 & 0x3F)), put(0x80 | (code & 0x3F));
  } else {
    put(0xF0 | code >> 18), put(0x80 | (code >> 12 & 0x3F)), put(0x80 | (code >> 6 & 0x3F)),
        put(0x80 | (code & 0x3F));
  }
}

}  // namespace

JsonReader::JsonReader(std::string_view text, std::string_view source, JsonLimits limits,
                       std::uint64_t first_byte)
    : text_(text), source_(source), limits_(limits), first_byte_(first_byte) {
  if (text.size() > limits.bytes) {
    fail(ErrorCode::limit, "reading JSON: the text is larger than is read",
         {.file = std::string(source),
          .offset = first_byte,
          .expected = fmt::format("at most {} bytes", limits.bytes),
          .found = fmt::format("{} bytes", text.size())});
  }
}

void JsonReader::skip_space() {
  while (at_ < text_.size()) {
    const char c = text_[at_];
    if (c != ' ' && c != '\n' && c != '\t' && c != '\r') return;
    ++at_;
  }
}

void JsonReader::refuse(std::string_view expected) const {
  std::string found = "the end of the text";
  if (at_ < text_.size()) {
    const bool high = (static_cast<unsigned char>(text_[at_]) & 0x80) != 0;
    if (high && long_utf8(text_.substr(at_)) == 0) refuse_utf8(at_, text_.substr(at_, 1));
    found = fmt::format("'{}'", printable(text_.substr(at_, high ? long_utf8(text_.substr(at_)) : 1)));
  }
  fail(ErrorCode::json, fmt::format("reading JSON: expected {}, found {}", expected, found),
       {.file = std::string(source_),
        .offset = first_byte_ + at_,
        .expected = std::string(expected),
        .found = std::move(found)});
}

void JsonReader::refuse_utf8(std::size_t at, std::string_view found) const {
  fail(ErrorCode::utf8, "reading JSON: the text is not valid UTF-8",
       {.file = std::string(source_),
        .offset = first_byte_ + at,
        .expected = "UTF-8 without lone surrogates",
        .found = printable(found)});
}

JsonToken JsonReader::next() {
  skip_space();
  begin_ = at_;
  if (expect_ == Expect::nothing) {
    if (at_ < text_.size()) refuse("the end of the text after the value");
    return token_ = JsonToken::end;
  }
  if (at_ >= text_.size()) refuse("more of the value");
  char c = text_[at_];

  if (expect_ == Expect::comma_or_end) {
    if (c == '}' || c == ']') return token_ = close(c);
    if (c != ',') refuse(open_.back() ? "',' or '}'" : "',' or ']'");
    ++at_;
    skip_space();
    expect_ = open_.back() ? Expect::key : Expect::value;
    begin_ = at_;
    if (at_ >= text_.size()) refuse(open_.back() ? "a key" : "a value");
    c = text_[at_];
  } else if ((expect_ == Expect::key_or_end && c == '}') || (expect_ == Expect::value_or_end && c == ']')) {
    return token_ = close(c);
  }

  if (expect_ == Expect::key || expect_ == Expect::key_or_end) {
    if (c != '"') refuse("a key in double quotes");
    read_string();
    skip_space();
    if (at_ >= text_.size() || text_[at_] != ':') refuse("':' after the key");
    ++at_;
    expect_ = Expect::value;
    return token_ = JsonToken::key;
  }
  return token_ = read_value(c);
}

JsonToken JsonReader::read_value(char c) {
  if (c == '{' || c == '[') return open(c);
  JsonToken token = JsonToken::string;
  if (c == '"') {
    read_string();
  } else if (c == '-' || is_digit(c)) {
    read_number();
    token = JsonToken::number;
  } else if (c == 't') {
    token = read_word("true", JsonToken::boolean);
  } else if (c == 'f') {
    token = read_word("false", JsonToken::boolean);
  } else if (c == 'n') {
    token = read_word("null", JsonToken::null);
  } else {
    refuse("a value");
  }
  expect_ = open_.empty() ? Expect::nothing : Expect::comma_or_end;
  return token;
}

JsonToken JsonReader::open(char c) {
  if (open_.size() >= limits_.depth) {
    fail(ErrorCode::limit, "reading JSON: objects and arrays are nested too deeply",
         {.file = std::string(source_),
          .offset = first_byte_ + at_,
          .expected = fmt::format("at most {} levels", limits_.depth),
          .found = fmt::format("depth {}", open_.size() + 1)});
  }
  ++at_;
  open_.push_back(c == '{');
  expect_ = c == '{' ? Expect::key_or_end : Expect::value_or_end;
  return c == '{' ? JsonToken::begin_object : JsonToken::begin_array;
}

JsonToken JsonReader::close(char c) {
  const bool object = open_.back();
  if (object != (c == '}')) refuse(object ? "',' or '}'" : "',' or ']'");
  ++at_;
  open_.pop_back();
  expect_ = open_.empty() ? Expect::nothing : Expect::comma_or_end;
  return object ? JsonToken::end_object : JsonToken::end_array;
}

void JsonReader::read_string() {
  std::size_t copied = ++at_;  // after the quote; what lies before `copied` is in decoded_
  bool escaped = false;
  decoded_.clear();
  while (true) {
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (c == '"' || c == '\\' || static_cast<unsigned char>(c) < 0x20 ||
          (static_cast<unsigned char>(c) & 0x80) != 0)
        break;
      ++at_;
    }
    if (at_ >= text_.size()) refuse("'\"' at the end of the string");
    const char c = text_[at_];
    if (c == '"') break;
    if (c == '\\') {
      escaped = true;
      decoded_.append(text_, copied, at_ - copied);
      read_escape();
      copied = at_;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      refuse("a control byte to be escaped");
    } else {
      const std::size_t length = long_utf8(text_.substr(at_));
      if (length == 0) refuse_utf8(at_, text_.substr(at_, 1));
      at_ += length;
    }
  }
  if (escaped) decoded_.append(text_, copied, at_ - copied);
  token_text_ = escaped ? std::string_view(decoded_) : text_.substr(copied, at_ - copied);
  ++at_;
}

void JsonReader::read_escape() {
  const std::size_t begin = at_++;
  const char c = at_ < text_.size() ? text_[at_] : '\0';
  static constexpr std::string_view names = "\"\\/bfnrt", values = "\"\\/\b\f\n\r\t";
  if (const std::size_t which = names.find(c); which != std::string_view::npos) {
    decoded_.push_back(values[which]);
    ++at_;
    return;
  }
  if (c != 'u') refuse("one of \"\\/bfnrtu after '\\'");
  ++at_;
  std::uint32_t code = read_hex4();
  if (code >= 0xD800 && code < 0xE000) {
    if (code >= 0xDC00 || text_.substr(at_, 2) != "\\u") refuse_utf8(begin, text_.substr(begin, 6));
    at_ += 2;
    const std::uint32_t low = read_hex4();
    if (low < 0xDC00 || low >= 0xE000) refuse_utf8(begin, text_.substr(begin, 6));
    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
  }
  append_utf8(decoded_, code);
}

std::uint32_t JsonReader::read_hex4() {
  std::uint32_t code = 0;
  for (int i = 0; i < 4; ++i, ++at_) {
    const char c = at_ < text_.size() ? text_[at_] : '\0';
    const char lower = static_cast<char>(c | 0x20);
    if (!is_digit(c) && (lower < 'a' || lower > 'f')) refuse("four hexadecimal digits after \"\\u\"");
    code = code * 16 + static_cast<std::uint32_t>(is_digit(c) ? c - '0' : lower - 'a' + 10);
  }
  return code;
}

void JsonReader::read_number() {
  const auto digits = [&] {
    if (at_ >= text_.size() || !is_digit(text_[at_])) refuse("a digit");
    while (at_ < text_.size() && is_digit(text_[at_])) ++at_;
  };
  const auto here = [&](std::string_view any) {
    return at_ < text_.size() && any.find(text_[at_]) != any.npos;
  };
  if (here("-")) ++at_;
  if (here("0")) {
    ++at_;
    if (here("0123456789")) refuse("no digit after a leading zero");
  } else {
    digits();
  }
  if (here(".")) ++at_, digits();
  if (here("eE")) {
    ++at_;
    if (here("+-")) ++at_;
    digits();
  }
  token_text_ = text_.substr(begin_, at_ - begin_);
}

JsonToken JsonReader::read_word(std::string_view word, JsonToken token) {
  for (const char c : word) {
    if (at_ >= text_.size() || text_[at_] != c) refuse(fmt::format("\"{}\"", word));
    ++at_;
  }
  token_text_ = word;
  return token;
}

void JsonReader::skip_value() {
  if (token_ != JsonToken::begin_object && token_ != JsonToken::begin_array) return;
  const std::size_t depth = open_.size();
  while (open_.size() >= depth) next();
}

std::string json_quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    } else {
      out += c;
    }
  }
  out += '"';
  JsonReader(out, "text to be written", {.bytes = out.size()}).next();
  return out;
}

std::string json_number(double value) {
  if (!std::isfinite(value)) return "null";
  const std::string text = fmt::format("{}", value);
  return text.find_first_of(".e") == std::string::npos ? text + ".0" : text;
}

}  // namespace scalevec
