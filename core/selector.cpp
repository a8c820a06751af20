#include <scalevec/core/selector.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <optional>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <scalevec/core/channels.h>
#include <scalevec/core/checkpoint/family.h>
#include <scalevec/core/error.h>
#include <scalevec/core/glob.h>

namespace scalevec {
namespace {

constexpr std::size_t longest_selector = 65536;
constexpr std::string_view spaces = " \t\r\n";

std::string_view without_suffix(std::string_view name, std::string_view suffix) {
  if (name.ends_with(suffix)) name.remove_suffix(suffix.size());
  return name;
}

// Layers of each stack, counted from the sites.
std::map<std::string, std::int64_t> layers_of_stacks(std::span<const Site> sites) {
  std::map<std::string, std::int64_t> layers;
  for (const Site& site : sites) {
    std::int64_t& count = layers[site.address.stack()];
    count = std::max(count, site.address.layer().value_or(-1) + 1);
  }
  return layers;
}

// The layers that the numbers of a term count: those of the stack it names, or the longest.
std::int64_t layers_meant(std::string_view term, const std::map<std::string, std::int64_t>& layers) {
  const std::size_t at = term.starts_with("layers.") ? 0 : term.find(".layers.");
  if (at != std::string_view::npos) {
    const auto found = layers.find(std::string(term.substr(0, at)));
    if (found != layers.end()) return found->second;
  }
  std::int64_t longest = 0;
  for (const auto& [stack, count] : layers) longest = std::max(longest, count);
  return longest;
}

// What was meant by `layers.3.*` or `layers.3` if nothing has that name: `layers.3.**`.
std::string across_dots(std::string_view term) {
  std::string wide;
  for (std::size_t i = 0; i < term.size(); ++i) {
    wide += term[i];
    if (term[i] == '*' && !term.substr(0, i).ends_with('*') && !term.substr(i + 1).starts_with('*'))
      wide += '*';
  }
  return term.find('*') == std::string_view::npos ? wide + ".**" : wide;
}

}  // namespace

struct Selector::Term {
  std::string text;  // without channels
  std::optional<Role> role;
  Glob name;  // without a branch; unused for a role
  std::optional<Glob> branch;
  std::string branch_text;
  std::vector<ChannelRange> channels;  // empty: all

  bool named(const Site& site, std::int64_t layers) const {
    return name.matches(site.address.without_branch().str(), layers) ||
           (!site.native.empty() && (name.matches(site.native, layers) ||
                                     name.matches(without_suffix(site.native, ".weight"), layers)));
  }
  bool matches(const Site& site, std::int64_t layers) const {
    if (role) return site.role == *role;
    if (branch && (!site.address.branch() || !branch->matches(*site.address.branch(), 0))) return false;
    return named(site, layers);
  }
  std::vector<std::string> addresses(std::span<const Site> sites,
                                     const std::map<std::string, std::int64_t>& layers) const;
  void check_layers(const std::map<std::string, std::int64_t>& layers) const;
  [[noreturn]] void refuse_empty(std::span<const Site> sites,
                                 const std::map<std::string, std::int64_t>& layers) const;
  std::string why_empty(std::span<const Site> sites, const std::map<std::string, std::int64_t>& layers) const;
};

Selector Selector::parse(std::string_view text) {
  if (text.size() > longest_selector) {
    fail(ErrorCode::addr, fmt::format("selector: longer than {} bytes", longest_selector),
         {.offset = longest_selector, .found = fmt::format("{} bytes", text.size())});
  }
  std::vector<Term> terms;
  Selector selector;
  std::size_t begin = 0;
  while (begin <= text.size()) {
    const std::size_t end = std::min(text.find(';', begin), text.size());
    const auto refuse = [&](std::size_t position, std::string_view reason) {
      fail(ErrorCode::addr, fmt::format("selector '{}': {}", printable(text), reason),
           {.key = printable(text), .offset = position});
    };
    const auto trim = [&](std::size_t first, std::size_t last) {
      while (first < last && spaces.find(text[first]) != std::string_view::npos) ++first;
      while (last > first && spaces.find(text[last - 1]) != std::string_view::npos) --last;
      return std::pair(first, last);
    };
    const std::size_t at_sign = std::min(text.find('@', begin), end);
    const auto [first, last] = trim(begin, at_sign);
    if (first == last)
      refuse(first, "a name is missing; example: layers.{0..5}.*.input_norm; final_norm@5,40:48");
    const std::string_view name = text.substr(first, last - first);
    Term term;
    term.text = name;
    if (name.starts_with("role:")) {
      term.role = parse_role(name.substr(5));
    } else if (name.ends_with(']') && name.find('[') != std::string_view::npos) {
      const std::size_t open = name.find('[');
      term.branch_text = name.substr(open + 1, name.size() - open - 2);
      if (term.branch_text.empty()) refuse(first + open, "brackets hold the name of a branch, [q]");
      term.branch = Glob::parse(term.branch_text, text, first + open + 1);
      term.name = Glob::parse(name.substr(0, open), text, first);
    } else if (name.find('[') != std::string_view::npos && name.find(']') == std::string_view::npos) {
      refuse(first + name.find('['), "the bracket is not closed; example: layers.7.attn.input_norm[q]");
    } else {
      term.name = Glob::parse(name, text, first);
    }
    if (!selector.text_.empty()) selector.text_ += ';';
    selector.text_ += term.text;
    if (at_sign < end) {
      const auto [channel_first, channel_last] = trim(at_sign + 1, end);
      const std::string_view channels = text.substr(channel_first, channel_last - channel_first);
      if (channels.empty()) refuse(at_sign, "channels are missing after @; example: final_norm@5,40:48");
      term.channels = parse_channel_ranges(channels, text, channel_first);
      selector.text_ += '@' + channel_ranges_text(term.channels);
    }
    terms.push_back(std::move(term));
    begin = end + 1;
  }
  selector.terms_ = std::make_shared<const std::vector<Term>>(std::move(terms));
  return selector;
}

void Selector::Term::check_layers(const std::map<std::string, std::int64_t>& layers) const {
  if (role) return;
  const std::int64_t count = layers_meant(text, layers);
  if (count == 0) return;
  for (const NumberRange& range : name.layer_ranges()) {
    for (const std::int64_t number : {range.first, range.last}) {
      if (number < count && number >= -count) continue;
      fail(ErrorCode::addr,
           fmt::format("selector '{}': layer {} does not exist; the layers are 0 to {}", printable(text),
                       number, count - 1),
           {.key = printable(text),
            .index = number,
            .expected = fmt::format("0 to {}", count - 1),
            .found = std::to_string(number)});
    }
    const std::int64_t first = range.first < 0 ? range.first + count : range.first;
    const std::int64_t last = range.last < 0 ? range.last + count : range.last;
    if (first > last) {
      fail(ErrorCode::addr,
           fmt::format("selector '{}': the range {}..{} runs backwards: of {} layers, it is {}..{}",
                       printable(text), range.first, range.last, count, first, last),
           {.key = printable(text), .found = fmt::format("{}..{}", first, last)});
    }
  }
}

// The reason that can be told why nothing matches, or nothing.
std::string Selector::Term::why_empty(std::span<const Site> sites,
                                      const std::map<std::string, std::int64_t>& layers) const {
  if (role) {
    std::set<std::string_view> roles;
    for (const Site& site : sites) roles.insert(role_name(site.role));
    return fmt::format("the roles here are {}", fmt::join(roles, ", "));
  }
  if (branch) {
    std::set<std::string> branches;
    for (const Site& site : sites) {
      if (!named(site, layers.at(site.address.stack()))) continue;
      if (site.address.branch()) {
        branches.insert(*site.address.branch());
        continue;
      }
      for (const Link& link : site.consumers) {
        if (!branch->matches(link.branch, 0)) continue;
        std::vector<std::string_view> readers;
        for (const Link& reader : site.consumers) readers.push_back(reader.branch);
        return readers.size() == 1
                   ? fmt::format("{} has one reader, {}, and no branches: leave the brackets out",
                                 site.address.str(), link.branch)
                   : fmt::format("the vector of {} is shared by {}: leave the brackets out",
                                 site.address.str(), fmt::join(readers, " and "));
      }
      for (const Link& reader : site.consumers) branches.insert(reader.branch);
    }
    if (!branches.empty()) {
      return fmt::format(
          "there is no branch '{}'; the branches there are {}; brackets name a branch and are no "
          "character class: for several write [{{q,k}}]",
          branch_text, fmt::join(branches, ", "));
    }
  }
  for (const Site& site : sites) {
    if (site.bias_native == text || (!site.bias_native.empty() && site.address.str() + ".bias" == text)) {
      return fmt::format("that is the bias of {}, not its scale vector", site.address.str());
    }
    for (const std::vector<Link>* links : {&site.consumers, &site.producers}) {
      for (const Link& link : *links) {
        if (link.native.empty() || (link.native != text && without_suffix(link.native, ".weight") != text))
          continue;
        return fmt::format("that is a linear map ({}), no scale vector; {} {}", link.branch,
                           links == &site.consumers ? "it reads" : "its output goes to", site.address.str());
      }
    }
  }
  const std::string_view bare = without_suffix(without_suffix(text, ".weight"), ".bias");
  const std::string_view tail = bare.substr(bare.rfind('.') + 1);
  for (const std::string_view linear : {"q", "k", "v", "o", "gate", "up", "down", "head", "lm_head"}) {
    if (tail == linear) return fmt::format("'{}' is a linear map, no scale vector", tail);
  }
  for (const std::string_view embedding : {"embed", "embed_tokens", "token_embd", "wte"}) {
    if (tail == embedding) return fmt::format("'{}' is the embedding, no scale vector", tail);
  }
  // A layer that does not exist: the same name with another number would be a site.
  for (const std::string_view key : {"layers.", "blk."}) {
    const std::size_t at = text.find(key);
    if (at == std::string::npos) continue;
    const std::size_t begin = at + key.size();
    const std::size_t end = std::min(text.find_first_not_of("0123456789", begin), text.size());
    const std::int64_t count = layers_meant(text, layers);
    if (end == begin || count == 0) continue;
    const std::string digits = text.substr(begin, end - begin);
    if (digits.size() > 18 || std::stoll(digits) >= count) {
      return fmt::format("layer {} does not exist; the last is {}", printable(digits, 40), count - 1);
    }
  }
  return "";
}

std::vector<std::string> Selector::Term::addresses(std::span<const Site> sites,
                                                   const std::map<std::string, std::int64_t>& layers) const {
  std::vector<std::string> out;
  for (const Site& site : sites) {
    if (matches(site, layers.at(site.address.stack()))) out.push_back(site.address.str());
  }
  return out;
}

void Selector::Term::refuse_empty(std::span<const Site> sites,
                                  const std::map<std::string, std::int64_t>& layers) const {
  std::vector<std::string> names;
  for (const Site& site : sites) names.push_back(site.address.str());
  for (const Site& site : sites) {
    if (!site.native.empty()) names.push_back(site.native);
  }
  const std::string elsewhere = address_elsewhere(text, sites);
  std::string reason =
      elsewhere.empty() ? why_empty(sites, layers) : "in another container that is the name of " + elsewhere;
  std::vector<std::string> close;
  if (!elsewhere.empty()) {
    close = {elsewhere};
  } else if (!role) {
    const std::size_t bracket = branch ? text.rfind('[') : text.size();
    const std::string name_text = text.substr(0, bracket), wide = across_dots(name_text);
    Term meant = *this;
    meant.name = Glob::parse(wide, wide, 0);
    close = meant.addresses(sites, layers);
    if (close.empty()) {
      close = nearest(text, names);
    } else {
      reason = fmt::format("{}; '{}' matches {}",
                           name_text.find('*') == std::string::npos ? "that is the beginning of names"
                                                                    : "'*' stays between two dots",
                           printable(wide + text.substr(bracket)), close.size());
      close.resize(std::min<std::size_t>(close.size(), 3));
    }
  }
  std::string message = fmt::format("selector '{}' matches none of {} sites", printable(text), sites.size());
  if (!reason.empty()) message += ": " + reason;
  if (!close.empty()) message += fmt::format("; nearest: {}", fmt::join(close, ", "));
  fail(ErrorCode::addr, message,
       {.tensor = printable(text),
        .key = printable(text),
        .expected = fmt::format("{}", fmt::join(close, ", "))});
}

std::vector<Selection> Selector::select(std::span<const Site> sites) const {
  if (!terms_) fail(ErrorCode::addr, "selector: it is empty; example: layers.{0..5}.*.input_norm");
  const auto layers = layers_of_stacks(sites);
  std::vector<std::optional<Selection>> found(sites.size());
  for (const Term& term : *terms_) {
    term.check_layers(layers);
    bool any = false;
    for (std::size_t i = 0; i < sites.size(); ++i) {
      const Site& site = sites[i];
      if (!term.matches(site, layers.at(site.address.stack()))) continue;
      any = true;
      std::optional<Selection>& selection = found[i];
      if (!selection) selection = Selection{.site = i, .whole = false, .channels = {}};
      if (term.channels.empty()) {
        selection->whole = true;
        continue;
      }
      const std::vector<std::int64_t> more = resolve_channels(term.channels, site.width, site.address.str());
      std::vector<std::int64_t> both;
      std::set_union(selection->channels.begin(), selection->channels.end(), more.begin(), more.end(),
                     std::back_inserter(both));
      selection->channels = std::move(both);
    }
    if (!any) term.refuse_empty(sites, layers);
  }
  std::vector<Selection> selections;
  for (std::optional<Selection>& selection : found) {
    if (!selection) continue;
    if (selection->whole) {
      selection->channels.resize(static_cast<std::size_t>(sites[selection->site].width));
      std::iota(selection->channels.begin(), selection->channels.end(), std::int64_t{0});
    }
    selections.push_back(std::move(*selection));
  }
  return selections;
}

std::vector<std::string> nearest(std::string_view name, std::span<const std::string> names,
                                 std::size_t most) {
  constexpr std::size_t longest = 256;  // beyond it names are compared by their beginning
  name = name.substr(0, longest);
  std::vector<std::pair<std::size_t, std::size_t>> by_distance;
  std::vector<std::size_t> row(name.size() + 1);
  for (std::size_t n = 0; n < names.size(); ++n) {
    const std::string_view other = std::string_view(names[n]).substr(0, longest);
    std::iota(row.begin(), row.end(), std::size_t{0});
    for (std::size_t i = 1; i <= other.size(); ++i) {
      std::size_t diagonal = row[0];
      row[0] = i;
      for (std::size_t j = 1; j <= name.size(); ++j) {
        const std::size_t changed = diagonal + (other[i - 1] == name[j - 1] ? 0 : 1);
        diagonal = row[j];
        row[j] = std::min({changed, row[j] + 1, row[j - 1] + 1});
      }
    }
    by_distance.emplace_back(row[name.size()], n);
  }
  const std::size_t count = std::min(most, by_distance.size());
  std::partial_sort(by_distance.begin(), by_distance.begin() + static_cast<std::ptrdiff_t>(count),
                    by_distance.end());
  std::vector<std::string> result;
  for (std::size_t i = 0; i < count; ++i) result.push_back(names[by_distance[i].second]);
  return result;
}

}  // namespace scalevec
