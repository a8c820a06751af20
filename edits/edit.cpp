#include <scalevec/edits/edit.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstring>
#include <iterator>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include <scalevec/core/error.h>
#include <scalevec/core/selector.h>

namespace scalevec {
namespace {

std::int64_t index_of(std::span<const std::int64_t> channels, std::int64_t channel) {
  const auto found = std::lower_bound(channels.begin(), channels.end(), channel);
  return found != channels.end() && *found == channel ? found - channels.begin() : -1;
}

std::vector<std::int64_t> positions(std::span<const std::int64_t> all, std::span<const std::int64_t> some,
                                    const std::string& address) {
  std::vector<std::int64_t> out;
  out.reserve(some.size());
  for (const std::int64_t channel : some) {
    out.push_back(index_of(all, channel));
    if (out.back() < 0) {
      fail(ErrorCode::bundle,
           fmt::format("channel {} of '{}' is not among those that its operation selects", channel, address),
           {.tensor = address, .index = channel});
    }
  }
  return out;
}

// An operation with stored values selects one vector, as "address" or "address@channels".
std::vector<std::int64_t> selected_alone(const Operation& operation, const EditedVector& vector) {
  const std::size_t at = operation.selector.find('@');
  if (operation.selector.substr(0, at) != vector.address) {
    fail(
        ErrorCode::bundle,
        fmt::format("values are set on '{}', but '{}' counts that operation among its own",
                    printable(operation.selector), vector.address),
        {.tensor = vector.address, .key = "select", .expected = vector.address, .found = operation.selector});
  }
  if (at != std::string::npos) return parse_channels(operation.selector.substr(at + 1), vector.width);
  std::vector<std::int64_t> all(static_cast<std::size_t>(vector.width));
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::int64_t>(i);
  return all;
}

// The operation's values for the step's channels only.
Arguments restricted(const Operation& operation, const EditedVector& vector, const Step& step) {
  const auto values = operation.arguments.find("values");
  if (values == operation.arguments.end()) return operation.arguments;
  const auto* stored = std::get_if<std::vector<std::byte>>(&values->second);
  const std::vector<std::int64_t> selected = selected_alone(operation, vector);
  const std::size_t size = scale_dtype_bytes(vector.dtype);
  if (stored == nullptr || stored->size() != selected.size() * size) {
    fail(ErrorCode::bundle,
         fmt::format("'{}' is set to values of {} bytes; expected {} for {} channels", vector.address,
                     stored == nullptr ? 0 : stored->size(), selected.size() * size, selected.size()),
         {.tensor = vector.address, .key = "values"});
  }
  StoredVector whole{vector.dtype, vector.offset, *stored};
  Arguments out = operation.arguments;
  out["values"] = whole.at(positions(selected, step.channels, vector.address));
  return out;
}

EditedVector merge(const Edit& first, const EditedVector& a, const Edit& second, const EditedVector& b) {
  if (a.after != b.base || a.width != b.width || a.dtype != b.dtype) {
    fail(ErrorCode::bundle,
         fmt::format("these edits do not follow each other: the first leaves '{}' as {}, the second begins "
                     "at {}. Make the "
                     "second on a model that holds the first.",
                     a.address, a.after, b.base),
         {.tensor = a.address, .expected = a.after, .found = b.base});
  }
  const std::size_t size = scale_dtype_bytes(a.dtype);
  const std::vector<std::byte> new_a = new_bytes(first, a), new_b = new_bytes(second, b);
  EditedVector out = a;
  out.after = b.after;
  out.channels.clear();
  out.old.clear();
  std::vector<std::int64_t> all;
  std::set_union(a.channels.begin(), a.channels.end(), b.channels.begin(), b.channels.end(),
                 std::back_inserter(all));
  for (const std::int64_t channel : all) {
    const std::int64_t in_a = index_of(a.channels, channel), in_b = index_of(b.channels, channel);
    const auto part = [&](const std::vector<std::byte>& bytes, std::int64_t i) {
      return bytes.data() + static_cast<std::size_t>(i) * size;
    };
    const std::byte* before = in_a >= 0 ? part(a.old, in_a) : part(b.old, in_b);
    const std::byte* after = in_b >= 0 ? part(new_b, in_b) : part(new_a, in_a);
    if (std::memcmp(before, after, size) == 0) continue;
    out.channels.push_back(channel);
    out.old.insert(out.old.end(), before, before + size);
  }
  out.steps.insert(out.steps.end(), b.steps.begin(), b.steps.end());
  for (Step& step : out.steps) {
    std::erase_if(step.channels, [&](std::int64_t channel) { return index_of(out.channels, channel) < 0; });
  }
  std::erase_if(out.steps, [](const Step& step) { return step.channels.empty(); });
  return out;
}

}  // namespace

Operation rescale(std::string selector, double factor, Allow allow) {
  return {
      .verb = "rescale", .selector = std::move(selector), .arguments = {{"factor", factor}}, .allow = allow};
}

Operation set(std::string selector, double value, Allow allow) {
  return {.verb = "set", .selector = std::move(selector), .arguments = {{"value", value}}, .allow = allow};
}

Operation set(std::string selector, std::vector<double> values, Allow allow) {
  return {.verb = "set",
          .selector = std::move(selector),
          .arguments = {{"values", std::move(values)}},
          .allow = allow};
}

Operation ablate(std::string selector, std::string to, Allow allow) {
  return {.verb = "ablate",
          .selector = std::move(selector),
          .arguments = {{"to", std::move(to)}},
          .allow = allow};
}

const EditedVector* Edit::find(std::string_view address) const {
  const auto found = std::find_if(vectors.begin(), vectors.end(),
                                  [&](const EditedVector& v) { return v.address == address; });
  return found == vectors.end() ? nullptr : &*found;
}

std::vector<std::byte> new_bytes(const Edit& edit, const EditedVector& vector) {
  StoredVector sparse{vector.dtype, vector.offset, vector.old};
  for (const Step& step : vector.steps) {
    const Operation& operation = edit.operations.at(step.operation);
    const Verb& verb = find_verb(operation.verb);
    std::optional<double> gathered;
    if (const auto known = operation.gathered.find(vector.address); known != operation.gathered.end()) {
      gathered = known->second;
    } else if (verb.gather != nullptr && verb.gather(sparse.effective(), operation.arguments)) {
      fail(ErrorCode::bundle,
           fmt::format("operation {} ({}) does not say what it gathered from '{}'", step.operation + 1,
                       operation.verb, vector.address),
           {.tensor = vector.address, .key = "gathered", .index = static_cast<std::int64_t>(step.operation)});
    }
    run_verb(verb, restricted(operation, vector, step), sparse,
             positions(vector.channels, step.channels, vector.address), gathered, vector.address,
             operation.allow);
  }
  return sparse.bytes;
}

Edit compose(const Edit& first, const Edit& second) {
  if (first.source.family != second.source.family) {
    fail(ErrorCode::bundle,
         fmt::format("one edit is of a {} model, the other of a {}; only edits of one model compose",
                     first.source.family, second.source.family),
         {.key = "family", .expected = first.source.family, .found = second.source.family});
  }
  Edit shifted = second;
  for (EditedVector& vector : shifted.vectors) {
    for (Step& step : vector.steps) step.operation += first.operations.size();
  }
  shifted.operations.insert(shifted.operations.begin(), first.operations.begin(), first.operations.end());

  Edit out = first;
  out.operations = shifted.operations;
  out.tool = tool_name();
  if (!second.note.empty()) out.note += (out.note.empty() ? "" : "; ") + second.note;
  out.vectors.clear();
  for (const EditedVector& a : first.vectors) {
    const EditedVector* b = shifted.find(a.address);
    EditedVector merged = b == nullptr ? a : merge(first, a, shifted, *b);
    if (!merged.channels.empty()) out.vectors.push_back(std::move(merged));
  }
  for (const EditedVector& b : shifted.vectors) {
    if (first.find(b.address) == nullptr) out.vectors.push_back(b);
  }
  std::sort(out.vectors.begin(), out.vectors.end(), [](const EditedVector& a, const EditedVector& b) {
    return address_before(a.address, b.address);
  });
  return out;
}

Edit invert(const Edit& edit) {
  Edit out{.source = edit.source, .tool = tool_name(), .note = edit.note};
  for (const EditedVector& vector : edit.vectors) {
    const std::vector<double> old = decode(vector.dtype, vector.old);
    const auto count = static_cast<std::int64_t>(vector.channels.size());
    Operation operation{.verb = "set",
                        .selector = vector.address + "@" + channels_text(vector.channels),
                        .arguments = {{"values", vector.old}},
                        .allow = {},
                        .selected = count,
                        .changed = count};
    operation.allow.non_finite =
        !std::all_of(old.begin(), old.end(), [](double x) { return std::isfinite(x); });
    EditedVector back = vector;
    std::swap(back.base, back.after);
    back.old = new_bytes(edit, vector);
    back.steps = {{out.operations.size(), vector.channels}};
    out.operations.push_back(std::move(operation));
    out.vectors.push_back(std::move(back));
  }
  return out;
}

bool address_before(std::string_view a, std::string_view b) {
  const auto digit = [](char c) { return std::isdigit(static_cast<unsigned char>(c)) != 0; };
  std::size_t i = 0, j = 0;
  while (i < a.size() && j < b.size()) {
    if (!digit(a[i]) || !digit(b[j])) {
      if (a[i] != b[j]) return a[i] < b[j];
      ++i, ++j;
      continue;
    }
    std::size_t end_a = i, end_b = j;
    while (end_a < a.size() && digit(a[end_a])) ++end_a;
    while (end_b < b.size() && digit(b[end_b])) ++end_b;
    const std::string_view number_a = a.substr(i, end_a - i), number_b = b.substr(j, end_b - j);
    // Addresses write numbers without leading zeros, so the longer one is larger.
    if (number_a != number_b) {
      return number_a.size() != number_b.size() ? number_a.size() < number_b.size() : number_a < number_b;
    }
    i = end_a, j = end_b;
  }
  return a.size() - i < b.size() - j;
}

std::string tool_name() { return "scalevec " SCALEVEC_VERSION; }

}  // namespace scalevec
