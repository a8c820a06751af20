#include <scalevec/core/selector.h>

#include <random>
#include <regex>
#include <set>

#include <fmt/format.h>

#include "readers/errors.h"

using scalevec::Address;
using scalevec::Role;
using scalevec::Selection;
using scalevec::Selector;
using scalevec::Site;

namespace {

Site site(const std::string& address, const std::string& native, Role role, std::int64_t width,
          std::vector<scalevec::Link> consumers = {}) {
  Site made;
  made.address = Address::parse(address);
  made.native = native;
  made.role = role;
  made.width = width;
  made.consumers = std::move(consumers);
  return made;
}

// A Llama of 12 layers with QK-norm, and a vision stack of 3.
std::vector<Site> llama() {
  std::vector<Site> sites;
  for (int i = 0; i < 12; ++i) {
    const std::string layer = fmt::format("layers.{}.", i), native = fmt::format("model.layers.{}.", i);
    const auto link = [&](const char* branch, const char* name) {
      return scalevec::Link{branch, native + name + ".weight"};
    };
    sites.push_back(
        site(layer + "attn.input_norm", native + "input_layernorm.weight", Role::input, 64,
             {link("q", "self_attn.q_proj"), link("k", "self_attn.k_proj"), link("v", "self_attn.v_proj")}));
    sites.push_back(site(layer + "attn.q_norm", native + "self_attn.q_norm.weight", Role::output, 16));
    sites.push_back(site(layer + "attn.k_norm", native + "self_attn.k_norm.weight", Role::output, 16));
    sites.push_back(site(layer + "mlp.input_norm", native + "post_attention_layernorm.weight", Role::input,
                         64, {link("gate", "mlp.gate_proj"), link("up", "mlp.up_proj")}));
  }
  sites.push_back(site("final_norm", "model.norm.weight", Role::final, 64, {{"head", "lm_head.weight"}}));
  for (int i = 0; i < 3; ++i) {
    sites.push_back(site(fmt::format("vision.layers.{}.attn.input_norm", i),
                         fmt::format("v.blk.{}.ln1.weight", i), Role::input, 32));
  }
  return sites;
}

// Layers whose attention norm has a vector for each branch.
std::vector<Site> branched() {
  std::vector<Site> sites;
  for (int i = 0; i < 2; ++i) {
    for (const char* branch : {"q", "k", "v"}) {
      sites.push_back(
          site(fmt::format("layers.{}.attn.input_norm[{}]", i, branch), "", Role::input, 8, {{branch, ""}}));
    }
    sites.push_back(
        site(fmt::format("layers.{}.mlp.input_norm", i), "", Role::input, 8, {{"gate", ""}, {"up", ""}}));
  }
  return sites;
}

std::vector<std::string> chosen(const std::string& text, const std::vector<Site>& sites) {
  std::vector<std::string> names;
  for (const Selection& selection : Selector::parse(text).select(sites)) {
    names.push_back(sites[selection.site].address.str());
  }
  return names;
}

using Names = std::vector<std::string>;

std::string refused(const std::string& text, const std::vector<Site>& sites = llama()) {
  return address_refusal([&] { Selector::parse(text).select(sites); });
}

}  // namespace

TEST_CASE("Selector: the examples of the guide") {
  const auto sites = llama();
  CHECK(chosen("layers.7.attn.input_norm", sites) == Names{"layers.7.attn.input_norm"});
  CHECK(chosen("layers.{0..5}.*.input_norm", sites).size() == 12);
  CHECK(chosen("layers.{0..5,-1}.mlp.*", sites).back() == "layers.11.mlp.input_norm");
  CHECK(chosen("layers.{-2..-1}.attn.{q,k}_norm", sites) ==
        Names{"layers.10.attn.q_norm", "layers.10.attn.k_norm", "layers.11.attn.q_norm",
              "layers.11.attn.k_norm"});
  CHECK(chosen("layers.{9..-1}.mlp.input_norm", sites).size() == 3);
  CHECK(chosen("role:output", sites).size() == 24);
  CHECK(chosen("role:final; layers.0.mlp.input_norm", sites) ==
        Names{"layers.0.mlp.input_norm", "final_norm"});
  CHECK(chosen("**", sites).size() == sites.size());
  CHECK(chosen("**.input_norm", sites).size() == 27);
  CHECK(chosen("**.final_norm", sites) == Names{"final_norm"});
  CHECK(chosen("layers.0.**", sites).size() == 4);
}

TEST_CASE("Selector: layers from the end count in the stack of the site") {
  CHECK(chosen("vision.layers.{-1}.**", llama()) == Names{"vision.layers.2.attn.input_norm"});
  CHECK(chosen("**.layers.{-1}.attn.input_norm", llama()) ==
        Names{"layers.11.attn.input_norm", "vision.layers.2.attn.input_norm"});
}

TEST_CASE("Selector: native names, exact, as globs, with and without .weight") {
  const auto sites = llama();
  const Names first{"layers.0.attn.input_norm"};
  CHECK(chosen("model.layers.0.input_layernorm.weight", sites) == first);
  CHECK(chosen("model.layers.0.input_layernorm", sites) == first);
  CHECK(chosen("model.layers.{0..3,-1}.input_layernorm", sites).size() == 5);
  CHECK(chosen("model.layers.*.self_attn.*_norm", sites).size() == 24);
  CHECK(chosen("model.**", sites).size() == 49);
}

TEST_CASE("Selector: branches") {
  const auto sites = branched();
  CHECK(chosen("layers.0.attn.input_norm[q]", sites) == Names{"layers.0.attn.input_norm[q]"});
  CHECK(chosen("layers.0.attn.input_norm", sites).size() == 3);
  CHECK(chosen("**[{q,k}]", sites).size() == 4);
  CHECK(chosen("layers.1.**[*]", sites).size() == 3);

  std::string message = refused("layers.0.attn.input_norm[qk]", sites);
  CHECK(contains(message, "no branch 'qk'"));
  CHECK(contains(message, "k, q, v"));
  CHECK(contains(message, "no character class"));
  message = refused("layers.7.mlp.input_norm[gate]");
  CHECK(contains(message, "the vector of layers.7.mlp.input_norm is shared by gate and up"));
  CHECK(contains(refused("final_norm[head]"), "leave the brackets out"));
  CHECK(contains(refused("layers.[01].norm"), "no character class"));
}

TEST_CASE("Selector: channels are half-open, bind to their term, and are joined") {
  const auto sites = llama();
  const auto channels = [&](const std::string& text) {
    const auto selections = Selector::parse(text).select(sites);
    REQUIRE(selections.size() == 1);
    return selections[0];
  };
  using Channels = std::vector<std::int64_t>;
  CHECK(channels("final_norm@17,40:43").channels == Channels{17, 40, 41, 42});
  CHECK(channels("final_norm @ 40:43, 17").channels == Channels{17, 40, 41, 42});
  CHECK(channels("final_norm@:2,62:").channels == Channels{0, 1, 62, 63});
  CHECK(channels("final_norm@5;model.norm@3:6").channels == Channels{3, 4, 5});
  CHECK_FALSE(channels("final_norm@5").whole);
  CHECK(channels("final_norm").whole);
  CHECK(channels("final_norm").channels.size() == 64);
  CHECK(channels("final_norm@5;role:final").whole);
  CHECK_FALSE(channels("final_norm@:").whole);
  CHECK(channels("final_norm@:").channels.size() == 64);

  const auto selections = Selector::parse("final_norm; layers.0.attn.q_norm@3").select(sites);
  CHECK(selections[0].channels == Channels{3});
  CHECK(selections[1].whole);

  const auto fields =
      refusal([&] { Selector::parse("final_norm@64").select(sites); }, scalevec::ErrorCode::addr);
  CHECK(fields.tensor == "final_norm");
  CHECK(fields.index == 64);
  CHECK(contains(refused("layers.0.**@0:17"), "layers.0.attn.q_norm"));
  CHECK(contains(refused("layers.0.**@0:17"), "16 channels"));
  for (const char* bad : {"@-1", "@5,5", "@3:6,4", "@6:3", "@3:3", "@", "@x", "@1:2:3", "@1,,2", "@0x1",
                          "@99999999999999999999", "@1.5", "@64:", "@1@2"}) {
    CAPTURE(bad);
    refused(std::string("final_norm") + bad);
  }
}

TEST_CASE("Selector: channel text is its own inverse") {
  std::mt19937 random(3);
  for (int round = 0; round < 500; ++round) {
    const std::int64_t width = 1 + static_cast<std::int64_t>(random() % 40);
    std::vector<std::int64_t> channels;
    for (std::int64_t c = 0; c < width; ++c) {
      if (random() % 3 != 0) channels.push_back(c);
    }
    if (channels.empty()) continue;
    CAPTURE(scalevec::channels_text(channels));
    CHECK(scalevec::parse_channels(scalevec::channels_text(channels), width) == channels);
  }
  CHECK(scalevec::channels_text(std::vector<std::int64_t>{17, 40, 41, 42, 43, 44, 45, 46, 47}) == "17,40:48");
}

TEST_CASE("Selector: an empty match names the nearest and says why") {
  std::string message = refused("layers.7.attn.input_nrm");
  CHECK(contains(message, "nearest: layers.7.attn.input_norm,"));
  CHECK(contains(refused("model.layers.3.input_layernom"), "model.layers.3.input_layernorm"));
  // A star that would have to cross a dot, and none at all.
  message = refused("layers.3.*");
  CHECK(
      contains(message, "'layers.3.**' matches 4; nearest: layers.3.attn.input_norm, layers.3.attn.q_norm"));
  CHECK(contains(refused("layers.3"),
                 "the beginning of names; 'layers.3.**' matches 4; nearest: layers.3.attn.input_norm"));
  CHECK(contains(refused("layers.*.input_norm"), "'layers.**.input_norm' matches 24; nearest: layers.0."));
  CHECK(contains(refused("model.layers.1"),
                 "'model.layers.1.**' matches 4; nearest: layers.1.attn.input_norm"));
  CHECK(contains(refused("layers.1", branched()),
                 "matches 4; nearest: layers.1.attn.input_norm[q], layers.1.attn.input_norm[k]"));
  CHECK(contains(refused("layers.1.*[q]", branched()),
                 "'layers.1.**[q]' matches 1; nearest: layers.1.attn.input_norm[q]"));
  message = refused("layers.12.attn.input_norm");
  CHECK(contains(message, "layer 12 does not exist; the last is 11"));
  CHECK(contains(message, "nearest: layers.1"));
  CHECK(contains(refused("layers.9223372036854775808.attn.input_norm"), "the last is 11"));
  CHECK(contains(refused("layers.-1.attn.input_norm"), "{-1}"));
  CHECK(contains(refused("role:latent"), "final, input, output"));
  CHECK(contains(refused("role:inputs"), "roles are input, output"));
  CHECK(contains(refused("model.layers.0.self_attn.q_proj.weight"), "linear map (q)"));
  CHECK(contains(refused("layers.0.attn.q.weight"), "linear map"));
  CHECK(contains(refused("embed.weight"), "embedding"));
  auto sites = llama();
  sites[0].bias_native = "model.layers.0.input_layernorm.bias";
  CHECK(contains(refused("model.layers.0.input_layernorm.bias", sites), "bias of layers.0.attn.input_norm"));
  CHECK(refusal([&] { Selector::parse("nothing").select(sites); }, scalevec::ErrorCode::addr).tensor ==
        "nothing");
  // The first term matches, the second does not.
  CHECK(contains(refused("final_norm; nothing"), "'nothing'"));
}

TEST_CASE("Selector: braces that no layer fits") {
  CHECK(contains(refused("layers.{0..99}.attn.input_norm"), "the layers are 0 to 11"));
  CHECK(contains(refused("layers.{3,12}.attn.input_norm"), "layer 12 does not exist"));
  CHECK(contains(refused("layers.{-13}.attn.input_norm"), "layer -13 does not exist"));
  CHECK(contains(refused("model.layers.{0..99}.input_layernorm"), "the layers are 0 to 11"));
  CHECK(contains(refused("vision.layers.{0..5}.**"), "the layers are 0 to 2"));
  CHECK(contains(refused("layers.{9..-5}.**"), "runs backwards: of 12 layers, it is 9..7"));
  CHECK(contains(refused("layers.{5..2}.**"), "runs backwards; write 2..5"));
  CHECK(contains(refused("layers.{-1..-3}.**"), "write -3..-1"));
}

TEST_CASE("Selector: what is no selector is refused, with the position") {
  const struct {
    const char* text;
    std::uint64_t position;
    const char* says;
  } rows[] = {
      {"", 0, "a name is missing"},
      {"   ", 3, "a name is missing"},
      {"final_norm;", 11, "a name is missing"},
      {";final_norm", 0, "a name is missing"},
      {"@5", 0, "a name is missing"},
      {"layers.{0..5", 7, "not closed"},
      {"layers.0..5}", 8, "a shell has expanded"},
      {"layers.0..5.attn", 8, "a shell has expanded"},
      {"layers.{}", 8, "empty"},
      {"layers.{0,,1}", 10, "empty"},
      {"layers.{0..}", 8, "no range"},
      {"layers.{0..x}", 8, "no range"},
      {"layers.{0..9223372036854775808}", 8, "larger than any layer"},
      {"layers.{0 ..5}", 8, "no range"},
      {"layers.{*}", 8, "cannot stand in braces"},
      {"layers.0 layers.1", 8, "quote the selector"},
      {"layers.0,layers.1", 8, "braces"},
      {"layers.7.attn.input_norm[q", 24, "not closed"},
      {"a[]", 1, "branch"},
      {"a[q]b", 1, "at the end"},
      {"a***b", 1, "three stars"},
      {"a}", 1, "not opened"},
      {".a", 0, "empty"},
      {"a.", 1, "empty"},
      {"a\xce\xb3", 1, "cannot stand"},
      {"a\x01", 1, "cannot stand"},
      {"a?", 1, "cannot stand"},
  };
  for (const auto& row : rows) {
    CAPTURE(row.text);
    std::string message;
    const auto fields = refusal([&] { Selector::parse(row.text); }, scalevec::ErrorCode::addr, &message);
    CHECK(fields.offset == row.position);
    CHECK_MESSAGE(contains(message, row.says), message);
  }
}

TEST_CASE("Selector: printing is canonical") {
  for (const char* text : {"layers.{0..5,-1}.*.input_norm", "a;b@17,40:48;role:final", "x[q]@0:5,9:", "**"}) {
    CHECK(Selector::parse(text).str() == text);
  }
  CHECK(Selector::parse("  a ; b @ 1 , 3 : 5\n").str() == "a;b@1,3:5");
}

TEST_CASE("Selector: random patterns match as the same regular expression does") {
  std::mt19937 random(11);
  const auto sites = llama();
  const std::vector<std::string> words = {"layers", "attn",       "mlp",   "input_norm",
                                          "q_norm", "vision",     "model", "input_layernorm",
                                          "weight", "final_norm", "3",     "11"};
  const auto any = [&](std::size_t n) { return static_cast<std::size_t>(random()) % n; };
  int found = 0;
  for (int round = 0; round < 1500; ++round) {
    // Start from a real name, so that matches are common, and replace parts by patterns.
    const Site& start = sites[any(sites.size())];
    std::string name = any(2) == 0 ? start.address.str() : start.native;
    std::vector<std::string> parts(1);
    for (const char c : name) {
      if (c == '.') {
        parts.emplace_back();
      } else {
        parts.back() += c;
      }
    }
    std::string pattern, regex;
    bool dot = false;  // whether a dot is due before the next part
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const bool last = i + 1 == parts.size();
      const bool number = parts[i].find_first_not_of("0123456789") == std::string::npos;
      std::string glob = parts[i], expression = parts[i];
      const std::size_t kind = any(8);
      if (kind == 0) {
        glob = "*", expression = "[^.]*";
      } else if (kind == 1 && !last) {
        pattern += (dot ? "." : "") + std::string("**");
        regex += (dot ? "[.]" : "") + std::string("(.*[.])?");
        i += any(2);  // it may swallow a part
        dot = false;
        pattern += ".";
        if (i + 1 >= parts.size()) {
          pattern += words[0], regex += words[0];
        }
        continue;
      } else if (kind == 1) {
        if (!dot) continue;
        pattern += ".**";
        regex += "([.].*)?";
        continue;
      } else if (kind == 2 && number) {
        const int first = static_cast<int>(any(3)), length = static_cast<int>(any(9));
        glob = fmt::format("{{{}..{}}}", first, first + length);
        expression = "(";
        for (int n = first; n <= first + length; ++n)
          expression += (n == first ? "" : "|") + std::to_string(n);
        expression += ")";
      } else if (kind == 3) {
        const std::string other = words[any(words.size())];
        glob = "{" + parts[i] + "," + other + "}";
        expression = "(" + parts[i] + "|" + other + ")";
      } else if (kind == 4) {
        const std::size_t cut = any(parts[i].size() + 1);
        glob = parts[i].substr(0, cut) + "*";
        expression = parts[i].substr(0, cut) + "[^.]*";
      } else if (kind == 5 && !number) {
        const std::size_t cut = 1 + any(parts[i].size());
        glob = parts[i].substr(0, cut) + "**";
        expression = parts[i].substr(0, cut) + ".*";
        if (glob == parts[i] + "**" && any(2) == 0) glob = parts[i], expression = parts[i];
      } else if (kind == 6) {
        glob = expression = words[any(words.size())];
      }
      pattern += (dot ? "." : "") + glob;
      regex += (dot ? "[.]" : "") + expression;
      dot = true;
    }
    if (pattern.empty() || pattern == "." || pattern.ends_with('.')) continue;
    CAPTURE(pattern);
    CAPTURE(regex);
    const std::regex reference(regex);
    std::set<std::size_t> expected;
    for (std::size_t i = 0; i < sites.size(); ++i) {
      std::string native = sites[i].native;
      bool match = std::regex_match(sites[i].address.str(), reference) || std::regex_match(native, reference);
      native.resize(native.size() - 7);
      if (match || std::regex_match(native, reference)) expected.insert(i);
    }
    std::set<std::size_t> actual;
    try {
      for (const Selection& selection : Selector::parse(pattern).select(sites)) actual.insert(selection.site);
    } catch (const std::out_of_range& error) {
      // A range beyond the last layer is refused even where part of it matches.
      if (contains(error.what(), "the layers are 0 to")) continue;
      CHECK_MESSAGE(expected.empty(), error.what());
    }
    CHECK(actual == expected);
    found += expected.empty() ? 0 : 1;
  }
  CHECK(found > 500);  // else the comparison says little
}

TEST_CASE("nearest: by edit distance, ties in order") {
  const std::vector<std::string> names = {"abcd", "abc", "xyz", "abd"};
  CHECK(scalevec::nearest("abc", names) == Names{"abc", "abcd", "abd"});
  CHECK(scalevec::nearest("", names, 1) == Names{"abc"});
  CHECK(scalevec::nearest("abc", std::vector<std::string>{}).empty());
}
