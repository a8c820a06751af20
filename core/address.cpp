#include <scalevec/core/address.h>

#include <algorithm>
#include <charconv>

#include <fmt/format.h>

#include <scalevec/core/error.h>

namespace scalevec {
namespace {

constexpr std::size_t longest_address = 255;

bool is_part_char(char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_'; }

[[noreturn]] void refuse(std::string_view text, std::size_t position, std::string_view reason) {
  fail(ErrorCode::addr,
       fmt::format("Address: '{}' is no address: {}; an address is like layers.7.attn.input_norm, or "
                   "layers.7.attn.input_norm[q] for one branch",
                   printable(text), reason),
       {.key = printable(text), .offset = position});
}

// The number after "layers", in its one spelling.
std::int64_t layer_number(std::string_view text, std::string_view part, std::size_t position) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), value);
  if (error == std::errc::result_out_of_range) {
    refuse(text, position, "the layer is beyond any model's");
  }
  if (error != std::errc() || end != part.data() + part.size()) {
    refuse(text, position, "'layers' must be followed by a layer's number");
  }
  if (part.size() > 1 && part[0] == '0') refuse(text, position, "the layer has a leading zero");
  return value;
}

}  // namespace

Address Address::parse(std::string_view text) {
  if (text.empty()) refuse(text, 0, "it is empty");
  if (text.size() > longest_address) {
    refuse(text, longest_address, fmt::format("it is longer than {} characters", longest_address));
  }
  Address address;
  std::size_t begin = 0;
  std::size_t i = 0;
  const auto close_part = [&] {
    if (i == begin) refuse(text, i, "a part between dots is empty");
    const std::string_view part = text.substr(begin, i - begin);
    if (!address.parts_.empty() && address.parts_.back() == "layers") layer_number(text, part, begin);
    address.parts_.emplace_back(part);
  };
  while (i < text.size() && text[i] != '[') {
    if (text[i] == '.') {
      close_part();
      begin = ++i;
    } else if (is_part_char(text[i])) {
      ++i;
    } else {
      refuse(text, i, "parts hold a-z, 0-9 and _ only");
    }
  }
  close_part();
  if (address.parts_.back() == "layers") refuse(text, i, "'layers' must be followed by a layer's number");
  if (i < text.size()) {
    const std::size_t close = text.find(']', i);
    if (close == std::string_view::npos) refuse(text, i, "the bracket is not closed");
    const std::string_view branch = text.substr(i + 1, close - i - 1);
    if (branch.empty() || !std::all_of(branch.begin(), branch.end(), is_part_char)) {
      refuse(text, i + 1, "brackets hold the name of one branch");
    }
    if (close + 1 != text.size()) refuse(text, close + 1, "nothing may follow the branch");
    address.branch_ = branch;
  }
  address.text_ = text;
  return address;
}

std::string Address::stack() const {
  std::string stack;
  for (const std::string& part : parts_) {
    if (part == "layers" || part == "final_norm" || part == "embed_norm" || part == "lm_head") return stack;
    stack += stack.empty() ? part : "." + part;
  }
  return "";
}

std::optional<std::int64_t> Address::layer() const {
  const auto found = std::find(parts_.begin(), parts_.end(), "layers");
  if (found == parts_.end()) return std::nullopt;
  return layer_number(text_, *std::next(found), 0);
}

Address Address::without_branch() const {
  Address address = *this;
  if (branch_) address.text_.resize(text_.size() - branch_->size() - 2);
  address.branch_.reset();
  return address;
}

Address Address::with_branch(std::string_view branch) const {
  return parse(fmt::format("{}[{}]", without_branch().str(), branch));
}

}  // namespace scalevec
