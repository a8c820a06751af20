#include <scalevec/core/glob.h>

#include <algorithm>
#include <charconv>

#include <fmt/format.h>

#include <scalevec/core/error.h>

namespace scalevec {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_char(char c) {
  return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '-';
}
bool ends_with_layer_key(std::string_view text) {
  for (const std::string_view key : {"layers.", "blk."}) {
    if (text == key || (text.ends_with(key) && text[text.size() - key.size() - 1] == '.')) return true;
  }
  return false;
}

// What is being parsed, and where in it: for messages.
struct Source {
  std::string_view all;
  std::size_t begin;

  [[noreturn]] void refuse(std::size_t position, std::string_view reason) const {
    fail(ErrorCode::addr, fmt::format("selector '{}': {}", printable(all), reason),
         {.key = printable(all), .offset = begin + position});
  }
};

// The whole of `text` as an integer.
bool read_number(std::string_view text, std::int64_t& value, bool& too_large) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (end != text.data() + text.size() || text.empty()) return false;
  too_large = error == std::errc::result_out_of_range;
  return error == std::errc() || too_large;
}

// "3", "-1", "0..5": true if `item` is meant as numbers.
bool read_range(std::string_view item, NumberRange& range, const Source& source, std::size_t position) {
  const std::size_t dots = item.find("..");
  const std::string_view first = item.substr(0, dots);
  const std::string_view last = dots == std::string_view::npos ? first : item.substr(dots + 2);
  bool too_large = false;
  if (!read_number(first, range.first, too_large) || too_large || !read_number(last, range.last, too_large) ||
      too_large) {
    if (too_large) source.refuse(position, fmt::format("'{}' is larger than any layer", printable(item, 40)));
    if (dots != std::string_view::npos) {
      source.refuse(position, fmt::format("'{}' is no range; a range is like 0..5", printable(item, 40)));
    }
    return false;
  }
  if ((range.first < 0) == (range.last < 0) && range.first > range.last) {
    source.refuse(position,
                  fmt::format("the range {} runs backwards; write {}..{}", item, range.last, range.first));
  }
  return true;
}

}  // namespace

void Glob::add_text(char c) {
  if (pieces_.empty() || pieces_.back().kind != Piece::Kind::text) pieces_.emplace_back();
  pieces_.back().text += c;
}

Glob Glob::parse(std::string_view text, std::string_view whole, std::size_t begin) {
  const Source source{whole, begin};
  if (text.empty()) source.refuse(0, "a name is missing; example: layers.{0..5}.*.input_norm");
  Glob glob;
  std::size_t i = 0;
  while (i < text.size()) {
    const char c = text[i];
    const bool part_begins = i == 0 || text[i - 1] == '.';
    if (c == '*') {
      std::size_t end = i;
      while (end < text.size() && text[end] == '*') ++end;
      if (end - i > 2)
        source.refuse(i, "three stars have no meaning; * stays within a part, ** crosses dots");
      Piece piece;
      piece.kind = end - i == 1 ? Piece::Kind::star : Piece::Kind::double_star;
      if (piece.kind == Piece::Kind::double_star && part_begins) {
        if (end < text.size() && text[end] == '.') {
          piece.kind = Piece::Kind::skip_parts;
          ++end;
        } else if (end == text.size() && i > 0 && !glob.pieces_.empty() &&
                   glob.pieces_.back().kind == Piece::Kind::text) {
          glob.pieces_.back().text.pop_back();  // the dot is part of what may be absent
          if (glob.pieces_.back().text.empty()) glob.pieces_.pop_back();
          piece.kind = Piece::Kind::more_parts;
        }
      }
      glob.pieces_.push_back(std::move(piece));
      i = end;
    } else if (c == '{') {
      const std::size_t close = text.find('}', i);
      if (close == std::string_view::npos)
        source.refuse(i, "the brace is not closed; example: layers.{0..5,-1}");
      Piece piece;
      piece.kind = Piece::Kind::choice;
      std::size_t item_begin = i + 1;
      while (item_begin <= close) {
        const std::size_t item_end = std::min(text.find(',', item_begin), close);
        const std::string_view item = text.substr(item_begin, item_end - item_begin);
        if (item.empty()) source.refuse(item_begin, "an item between braces is empty");
        if (NumberRange range; read_range(item, range, source, item_begin)) {
          piece.numbers.push_back(range);
        } else if (std::all_of(item.begin(), item.end(), is_name_char)) {
          piece.words.emplace_back(item);
        } else {
          source.refuse(item_begin,
                        fmt::format("'{}' cannot stand in braces; they hold numbers, ranges like 0..5, "
                                    "and words",
                                    printable(item, 40)));
        }
        item_begin = item_end + 1;
      }
      glob.pieces_.push_back(std::move(piece));
      i = close + 1;
    } else if (c == '.') {
      if (text.substr(i).starts_with("..")) {
        source.refuse(
            i, "a range stands in braces, {0..5}; if it did, a shell has expanded them: quote the selector");
      }
      if (i == 0 || i + 1 == text.size()) source.refuse(i, "a part beside a dot is empty");
      glob.add_text(c);
      ++i;
    } else if (is_name_char(c)) {
      if (c == '-' && i + 1 < text.size() && is_digit(text[i + 1]) &&
          ends_with_layer_key(text.substr(0, i))) {
        source.refuse(i,
                      "layers are counted from the end in braces only, {-1}; if it stood there, a shell has "
                      "expanded them: quote the selector");
      }
      glob.add_text(c);
      ++i;
    } else if (c == '}') {
      source.refuse(i, "a brace closes that was not opened");
    } else if (c == '[' || c == ']') {
      source.refuse(
          i, "brackets name a branch and stand at the end, [q]; they are no character class: use {a,b}");
    } else if (c == ',') {
      source.refuse(i, "a list stands in braces, {0,3}; several selectors are joined by ;");
    } else if (c == ' ' || c == '\t' || c == '\n' || c == '\r') {
      source.refuse(i,
                    "a name holds no space; several selectors are joined by ; and if a shell has expanded "
                    "braces into several words, quote the selector");
    } else {
      source.refuse(i,
                    fmt::format("'{}' cannot stand in a name; example: layers.{{0..5}}.*.input_norm",
                                printable(text.substr(i, static_cast<unsigned char>(c) < 0x80 ? 1 : 4), 12)));
    }
  }
  return glob;
}

// from[p]: the pieces so far can match the first p characters. The same, with one piece more.
std::vector<bool> Glob::advance(const Piece& piece, const std::vector<bool>& from, std::string_view name,
                                std::int64_t layers) {
  std::vector<bool> to(from.size());
  const auto word = [&](std::size_t p, std::string_view text) {
    if (name.substr(p).starts_with(text)) to[p + text.size()] = true;
  };
  bool before = false;  // some earlier position could be reached
  for (std::size_t p = 0; p < from.size(); ++p) {
    switch (piece.kind) {
      case Piece::Kind::text:
        if (from[p]) word(p, piece.text);
        break;
      case Piece::Kind::star:
        to[p] = from[p] || (p > 0 && to[p - 1] && name[p - 1] != '.');
        break;
      case Piece::Kind::double_star:
        to[p] = from[p] || (p > 0 && to[p - 1]);
        break;
      case Piece::Kind::skip_parts:
        to[p] = from[p] || (before && name[p - 1] == '.');
        break;
      case Piece::Kind::more_parts:
        to[p] = from[p] || before;
        before = before || (from[p] && p < name.size() && name[p] == '.');
        continue;
      case Piece::Kind::choice: {
        if (!from[p]) break;
        for (const std::string& text : piece.words) word(p, text);
        std::size_t end = p;
        while (end < name.size() && is_digit(name[end])) ++end;
        std::int64_t value = 0;
        bool too_large = false;
        if (!read_number(name.substr(p, end - p), value, too_large) || too_large) break;
        for (const NumberRange& range : piece.numbers) {
          const std::int64_t first = range.first < 0 ? range.first + layers : range.first;
          const std::int64_t last = range.last < 0 ? range.last + layers : range.last;
          if (first <= value && value <= last) to[end] = true;
        }
        break;
      }
    }
    before = before || from[p];
  }
  return to;
}

bool Glob::matches(std::string_view name, std::int64_t layers) const {
  std::vector<bool> reached(name.size() + 1);
  reached[0] = true;
  for (const Piece& piece : pieces_) reached = advance(piece, reached, name, layers);
  return reached[name.size()];
}

std::vector<NumberRange> Glob::layer_ranges() const {
  std::vector<NumberRange> ranges;
  for (std::size_t i = 1; i < pieces_.size(); ++i) {
    if (pieces_[i - 1].kind != Piece::Kind::text || !ends_with_layer_key(pieces_[i - 1].text)) continue;
    const bool part_ends = i + 1 == pieces_.size() || pieces_[i + 1].kind == Piece::Kind::more_parts ||
                           (pieces_[i + 1].kind == Piece::Kind::text && pieces_[i + 1].text[0] == '.');
    if (part_ends) ranges.insert(ranges.end(), pieces_[i].numbers.begin(), pieces_[i].numbers.end());
  }
  return ranges;
}

}  // namespace scalevec
