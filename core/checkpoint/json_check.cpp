#include <algorithm>
#include <functional>
#include <optional>

#include <fmt/format.h>

#include <scalevec/core/checkpoint/json.h>
#include <scalevec/core/error.h>

namespace scalevec {
namespace {

// A key in eight bytes: half of its hash, then the offset of its quote in the text, so that marks sort by
// both. There may be ten million of them.
using KeyMark = std::uint64_t;

KeyMark mark_of(std::string_view key, std::uint64_t offset) {
  return static_cast<KeyMark>(std::hash<std::string_view>{}(key)) << 32 | offset;
}
std::uint64_t offset_of(KeyMark mark) { return mark & 0xFFFF'FFFF; }

std::string key_at(std::string_view text, std::uint64_t offset) {
  JsonReader reader(text.substr(offset), {}, {.bytes = text.size()});
  reader.next();  // was read before, so it reads again: as a string that is a value
  return std::string(reader.text());
}

// The pair of equal keys whose second comes first in the text, among keys of one object.
std::optional<JsonDuplicate> find_duplicate(std::string_view text, std::vector<KeyMark>::iterator first,
                                            std::vector<KeyMark>::iterator last) {
  std::sort(first, last);
  std::optional<JsonDuplicate> found;
  for (auto run = first; run != last;) {
    const auto run_end = std::find_if(run, last, [&](KeyMark mark) { return mark >> 32 != *run >> 32; });
    if (run_end - run > 1) {
      // Equal hashes are not yet equal keys. Sorting them keeps keys made to collide from costing a square.
      std::vector<std::pair<std::string, std::uint64_t>> keys;
      for (auto mark = run; mark != run_end; ++mark)
        keys.emplace_back(key_at(text, offset_of(*mark)), offset_of(*mark));
      std::sort(keys.begin(), keys.end());
      for (std::size_t i = 1; i < keys.size(); ++i) {
        if (keys[i].first != keys[i - 1].first || (found && found->second <= keys[i].second)) continue;
        found = JsonDuplicate{
            .first = keys[i - 1].second, .second = keys[i].second, .key = keys[i].first, .parent = {}};
      }
    }
    run = run_end;
  }
  return found;
}

}  // namespace

JsonSummary check_json(std::string_view text, std::string_view source, JsonLimits limits,
                       std::uint64_t first_byte) {
  struct Open {
    std::size_t first_mark;    // where this container's keys begin in `marks`
    std::uint64_t parent_key;  // offset of the key under which it stands
    bool has_parent_key;
  };
  limits.bytes = std::min<std::uint64_t>(limits.bytes, 0xFFFF'FFFF);  // what a mark can tell
  JsonReader reader(text, source, limits, first_byte);
  JsonSummary summary;
  std::vector<KeyMark> marks;
  std::vector<Open> open;
  bool after_key = false;
  for (JsonToken token = reader.next(); token != JsonToken::end; token = reader.next()) {
    if (token == JsonToken::key) {
      marks.push_back(mark_of(reader.text(), reader.offset() - first_byte));
      if (open.size() == 1) ++summary.members;
    } else if (token == JsonToken::begin_object || token == JsonToken::begin_array) {
      open.push_back({marks.size(), after_key ? offset_of(marks.back()) : 0, after_key});
    } else if (token == JsonToken::end_object || token == JsonToken::end_array) {
      const Open closed = open.back();
      const auto first = marks.begin() + static_cast<std::ptrdiff_t>(closed.first_mark);
      if (!summary.duplicate && marks.end() - first > 1) {
        summary.duplicate = find_duplicate(text, first, marks.end());
        if (summary.duplicate) {
          summary.duplicate->first += first_byte;
          summary.duplicate->second += first_byte;
          summary.duplicate->depth = open.size();
          if (closed.has_parent_key) summary.duplicate->parent = key_at(text, closed.parent_key);
        }
      }
      marks.erase(first, marks.end());
      open.pop_back();
    }
    after_key = token == JsonToken::key;
  }
  return summary;
}

void refuse_duplicate_key(const JsonDuplicate& twice, std::string_view source) {
  fail(ErrorCode::dup,
       fmt::format("reading JSON: the key '{}' stands twice in one object, at bytes {} and {}; readers "
                   "disagree which one counts",
                   printable(twice.key, 100), twice.first, twice.second),
       {.file = std::string(source),
        .key = twice.key,
        .offset = twice.second,
        .expected = "each key once",
        .found = fmt::format("the first at byte {}", twice.first)});
}

}  // namespace scalevec
