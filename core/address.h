#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace scalevec {

/// The canonical name of a site, the same in every architecture: "layers.7.attn.input_norm", "final_norm",
/// "vision.layers.3.mlp.output_norm", "layers.7.attn.input_norm[q]".
///
/// Dotted parts of [a-z0-9_]+, then, where a branch has its own vector, the branch in brackets. A value type;
/// parsing and printing lose nothing.
class Address {
 public:
  Address() = default;
  /// E_ADDR, with the position, if `text` is no address.
  static Address parse(std::string_view text);

  const std::string& str() const { return text_; }
  const std::vector<std::string>& parts() const { return parts_; }
  const std::optional<std::string>& branch() const { return branch_; }

  /// What stands before "layers": "" for the main stack, "encoder", "vision".
  std::string stack() const;
  /// The number after "layers"; none for embed_norm, final_norm and lm_head.
  std::optional<std::int64_t> layer() const;
  Address without_branch() const;
  Address with_branch(std::string_view branch) const;

  friend bool operator==(const Address& a, const Address& b) { return a.text_ == b.text_; }
  friend auto operator<=>(const Address& a, const Address& b) { return a.text_ <=> b.text_; }

 private:
  std::string text_;
  std::vector<std::string> parts_;
  std::optional<std::string> branch_;
};

}  // namespace scalevec
