#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace scalevec {

/// Inclusive; negative numbers count from the last layer, -1.
struct NumberRange {
  std::int64_t first = 0;
  std::int64_t last = 0;
};

/// A pattern over dotted names, as in selectors: `*` within one part, `**` across dots, `{a,b}` words,
/// `{0..5,-1}` numbers. `**` as a whole part also stands for no part at all: `**.q_norm` finds "q_norm".
class Glob {
 public:
  /// Sees to the characters too: anything but letters, digits, `_ . * - { }` is refused with E_ADDR. `source`
  /// is the whole selector and `begin` where `text` starts in it: for messages.
  static Glob parse(std::string_view text, std::string_view source, std::size_t begin);

  /// layers: how many the stack of `name` has, for negative numbers. Time is linear in both lengths.
  bool matches(std::string_view name, std::int64_t layers) const;

  /// The ranges that stand where a layer's number does: after "layers." or "blk.".
  std::vector<NumberRange> layer_ranges() const;

 private:
  struct Piece {
    enum class Kind {
      text,
      star,         // [^.]*
      double_star,  // .*
      skip_parts,   // (.*[.])?  from `**.`
      more_parts,   // ([.].*)?  from a last `.**`
      choice,
    };
    Kind kind = Kind::text;
    std::string text;
    std::vector<std::string> words;
    std::vector<NumberRange> numbers;
  };
  std::vector<Piece> pieces_;

  void add_text(char c);
  static std::vector<bool> advance(const Piece& piece, const std::vector<bool>& from, std::string_view name,
                                   std::int64_t layers);
};

}  // namespace scalevec
