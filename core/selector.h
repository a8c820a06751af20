#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <scalevec/core/site.h>

namespace scalevec {

/// Chosen channels of one site: `site` indexes the span that was selected from; `channels` ascending, no
/// duplicates. `whole` when the selector named no channels: then `channels` holds all of them.
struct Selection {
  std::size_t site = 0;
  bool whole = true;
  std::vector<std::int64_t> channels;
};

/// A query over addresses: `layers.{0..5}.*.input_norm`, `role:output`, `**@17,40:48`, native names, `;` for
/// a union.
///
/// `*` stays within one dotted part, `**` crosses dots; braces hold inclusive ranges and lists, {0..5,-1},
/// negative from the last layer of the stack; `[q]` is a branch and never a character class; without brackets
/// all branches are meant. Channels follow `@`, half-open as in Python; they bind to the term they follow. A
/// native name may be written without its ".weight". `**` as a whole part also stands for no part.
class Selector {
 public:
  /// E_ADDR, with the position and an example, if `text` is no selector.
  static Selector parse(std::string_view text);
  /// The same selector without needless spaces; parse(str()).str() == str().
  const std::string& str() const { return text_; }

  /// In the order of `sites`. E_ADDR if a term matches nothing (naming the nearest addresses) or a channel is
  /// out of range (with address and width), or a layer in braces does not exist (with the last one).
  std::vector<Selection> select(std::span<const Site> sites) const;

 private:
  struct Term;
  std::string text_;
  std::shared_ptr<const std::vector<Term>> terms_;
};

/// The `most` names nearest to `name` by edit distance, nearest first, equals in their order: for error
/// messages.
std::vector<std::string> nearest(std::string_view name, std::span<const std::string> names,
                                 std::size_t most = 3);

/// "17,40:48" for ascending channels without duplicates; the text after `@` of a selector.
std::string channels_text(std::span<const std::int64_t> channels);
/// The inverse; E_ADDR on malformed text, a channel outside [0, width), or one that stands twice.
std::vector<std::int64_t> parse_channels(std::string_view text, std::int64_t width);

}  // namespace scalevec
