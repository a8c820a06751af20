#include <scalevec/edits/workspace.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <numeric>
#include <utility>

#include <fmt/format.h>

#include <scalevec/core/error.h>

namespace scalevec {
namespace {

std::vector<std::int64_t> channels_of(const Selection& selection, std::int64_t width) {
  if (!selection.whole) return selection.channels;
  std::vector<std::int64_t> all(static_cast<std::size_t>(width));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

std::string term(const Site& site, const Selection& selection) {
  return selection.whole ? site.address.str() : site.address.str() + "@" + channels_text(selection.channels);
}

void add(VerbReport& sum, const VerbReport& part) {
  sum.selected += part.selected;
  sum.changed += part.changed;
  sum.lost += part.lost;
  sum.largest_rounding = std::max(sum.largest_rounding, part.largest_rounding);
}

void join(Selection& into, const Selection& other) {
  if (into.whole || other.whole) {
    into = {.site = into.site, .whole = true, .channels = {}};
    return;
  }
  std::vector<std::int64_t> both;
  std::set_union(into.channels.begin(), into.channels.end(), other.channels.begin(), other.channels.end(),
                 std::back_inserter(both));
  into.channels = std::move(both);
}

}  // namespace

VerbReport OperationReport::total() const {
  VerbReport sum;
  for (const VectorReport& vector : vectors) add(sum, vector.channels);
  return sum;
}

Workspace::Workspace(std::span<const Site> sites, Read read, std::vector<std::vector<std::size_t>> shared)
    : sites_(sites), read_(std::move(read)), shared_(std::move(shared)) {
  shared_.resize(sites_.size());
}

const Workspace::Entry& Workspace::entry(std::size_t site) {
  if (const auto known = entries_.find(site); known != entries_.end()) return known->second;
  const Site& at = sites_[site];
  require_one_tensor(at);
  StoredVector base = read_(site);
  return entries_.emplace(site, Entry{base, base, {}}).first->second;
}

void Workspace::clear() {
  entries_.clear();
  operations_.clear();
}

std::string Workspace::digest(std::size_t site) { return entry(site).now.digest(); }

std::vector<Selection> Workspace::select(const Operation& request) const {
  std::map<std::size_t, Selection> chosen;
  for (Selection& selection : Selector::parse(request.selector).select(sites_)) {
    chosen[selection.site] = std::move(selection);
  }
  const std::map<std::size_t, Selection> named = chosen;
  for (const auto& [site, selection] : named) {
    for (const std::size_t other : shared_[site]) {
      if (!request.allow.tied) {
        fail(ErrorCode::addr,
             fmt::format("'{}' is shared with '{}': one storage, so that editing one edits both. Allow tied "
                         "vectors if both "
                         "are meant.",
                         sites_[site].address.str(), sites_[other].address.str()),
             {.tensor = sites_[site].address.str(),
              .expected = "a vector of its own",
              .found = "shared with " + sites_[other].address.str()});
      }
      Selection copy = selection;
      copy.site = other;
      const auto [place, added] = chosen.emplace(other, copy);
      if (!added) join(place->second, copy);
    }
  }
  std::vector<Selection> out;
  for (auto& [site, selection] : chosen) out.push_back(std::move(selection));
  return out;
}

OperationReport Workspace::run(const Operation& request) {
  find_verb(request.verb).check(request.arguments);
  const auto given = request.arguments.find("values");
  const bool by_channel = given != request.arguments.end();
  const std::vector<Selection> selections = select(request);

  Workspace next = *this;
  OperationReport report;
  Operation whole = request;
  for (const Selection& selection : selections) {
    // Written out where storage is shared, so that the operation means the same for a file, where nothing is.
    if (!shared_[selection.site].empty())
      whole.selector.append(";").append(term(sites_[selection.site], selection));
    if (!by_channel) continue;
    const Site& site = sites_[selection.site];
    Operation one = request;
    one.selector = term(site, selection);
    if (const auto* asked = std::get_if<std::vector<double>>(&given->second)) {
      StoredVector vector = next.entry(selection.site).now;
      const std::vector<std::int64_t> channels = channels_of(selection, site.width);
      const VerbReport written = write_effective(vector, channels, *asked, site.address.str(), request.allow);
      one.arguments["values"] = vector.at(channels);
      OperationReport part = next.run_one(one);
      part.vectors.at(0).channels.lost = next.operations_.back().lost = written.lost;
      part.vectors.at(0).channels.largest_rounding = written.largest_rounding;
      report.vectors.push_back(part.vectors.at(0));
    } else {
      report.vectors.push_back(next.run_one(one).vectors.at(0));
    }
  }
  if (!by_channel) report = next.run_one(whole);

  const VerbReport total = report.total();
  if (total.changed == 0 && !request.allow.no_effect) {
    const std::string found = total.lost == 0
                                  ? "each of them has the value already"
                                  : fmt::format(
                                        "{} changes are below half a unit in the last place of what "
                                        "the dtype can hold",
                                        total.lost);
    fail(ErrorCode::no_effect,
         fmt::format("{} '{}' changes no stored bit of {} selected channels: {}. "
                     "If that is meant: allow_no_effect, at a shell --allow-no-effect.",
                     request.verb, printable(request.selector), total.selected, found),
         {.key = request.verb, .found = found});
  }
  for (std::size_t site = 0; site < shared_.size(); ++site) {
    for (const std::size_t other : shared_[site]) {
      const auto a = next.entries_.find(site), b = next.entries_.find(other);
      if (a == next.entries_.end() || b == next.entries_.end() || a->second.now.bytes == b->second.now.bytes)
        continue;
      fail(ErrorCode::addr,
           fmt::format("'{}' and '{}' share one storage, but the edit would leave them different bytes",
                       sites_[site].address.str(), sites_[other].address.str()),
           {.tensor = sites_[site].address.str(), .found = "shared with " + sites_[other].address.str()});
    }
  }
  *this = std::move(next);
  return report;
}

OperationReport Workspace::run_one(const Operation& request) {
  const Verb& verb = find_verb(request.verb);
  verb.check(request.arguments);
  Operation made = request;
  made.selected = made.changed = made.lost = 0;
  made.gathered.clear();
  OperationReport report;
  for (const Selection& selection : Selector::parse(request.selector).select(sites_)) {
    const Site& site = sites_[selection.site];
    entry(selection.site);
    Entry& vector = entries_.at(selection.site);
    const std::string& address = site.address.str();
    const auto gathered =
        verb.gather == nullptr ? std::nullopt : verb.gather(vector.now.effective(), request.arguments);
    if (gathered) made.gathered[address] = *gathered;
    const VerbReport done = run_verb(verb, request.arguments, vector.now, channels_of(selection, site.width),
                                     gathered, address, request.allow);
    vector.selected[operations_.size()] = Selection{
        selection.site, selection.whole, selection.whole ? std::vector<std::int64_t>{} : selection.channels};
    report.vectors.push_back({address, vector.now.dtype, done});
  }
  const VerbReport total = report.total();
  made.selected = total.selected;
  made.changed = total.changed;
  made.lost = total.lost;
  operations_.push_back(std::move(made));
  return report;
}

Edit Workspace::edit(const EditSource& source, std::string note) const {
  Edit out{.source = source, .tool = tool_name(), .note = std::move(note), .operations = operations_};
  for (const auto& [site, entry] : entries_) {
    const Site& at = sites_[site];
    EditedVector vector{.address = at.address.str(),
                        .native = at.native,
                        .dtype = entry.base.dtype,
                        .offset = entry.base.offset,
                        .width = entry.base.width()};
    const std::size_t size = scale_dtype_bytes(vector.dtype);
    for (std::int64_t channel = 0; channel < vector.width; ++channel) {
      const std::size_t begin = static_cast<std::size_t>(channel) * size;
      if (std::memcmp(entry.base.bytes.data() + begin, entry.now.bytes.data() + begin, size) != 0) {
        vector.channels.push_back(channel);
      }
    }
    if (vector.channels.empty()) continue;
    vector.base = entry.base.digest();
    vector.after = entry.now.digest();
    vector.old = entry.base.at(vector.channels);
    for (const auto& [operation, selection] : entry.selected) {
      const std::vector<std::int64_t> selected = channels_of(selection, vector.width);
      Step step{operation, {}};
      std::set_intersection(selected.begin(), selected.end(), vector.channels.begin(), vector.channels.end(),
                            std::back_inserter(step.channels));
      if (!step.channels.empty()) vector.steps.push_back(std::move(step));
    }
    out.vectors.push_back(std::move(vector));
  }
  std::sort(out.vectors.begin(), out.vectors.end(), [](const EditedVector& a, const EditedVector& b) {
    return address_before(a.address, b.address);
  });
  return out;
}

}  // namespace scalevec
