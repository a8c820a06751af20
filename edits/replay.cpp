// edits/replay.cpp: an edit's operations run again, held against what the edit says of them.
#include <algorithm>
#include <cmath>
#include <utility>

#include <fmt/format.h>

#include <scalevec/core/error.h>
#include <scalevec/edits/workspace.h>

namespace scalevec {
namespace {

// Errors that say an edit does not fit; those of the system, and of files that changed, say something else.
bool means_unfit(ErrorCode code) {
  return code == ErrorCode::addr || code == ErrorCode::value || code == ErrorCode::schema ||
         code == ErrorCode::shape || code == ErrorCode::bundle;
}

bool same_numbers(const std::map<std::string, double>& a, const std::map<std::string, double>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& x, const auto& y) {
    const bool both_nan = std::isnan(x.second) && std::isnan(y.second);
    return x.first == y.first && (x.second == y.second || both_nan);
  });
}

}  // namespace

void Workspace::check_begin(const Edit& edit) {
  std::map<std::string_view, std::size_t> by_address;
  for (std::size_t i = 0; i < sites_.size(); ++i) by_address[sites_[i].address.str()] = i;
  for (const EditedVector& vector : edit.vectors) {
    const auto found = by_address.find(vector.address);
    if (found == by_address.end()) {
      std::vector<std::string> names;
      for (const Site& site : sites_) names.push_back(site.address.str());
      std::string close;
      for (const std::string& name : nearest(vector.address, names))
        close += (close.empty() ? "" : ", ") + name;
      fail(ErrorCode::bundle,
           fmt::format("the edit changes '{}', which this model does not have; the nearest are {}",
                       vector.address, close),
           {.tensor = vector.address, .expected = vector.address});
    }
    const StoredVector& now = entry(found->second).now;
    const std::string digest = now.digest();
    if (digest == vector.base) continue;
    if (digest == vector.after) {
      fail(ErrorCode::state,
           fmt::format("'{}' is already as the edit leaves it ({}): it was applied before. Expected {}.",
                       vector.address, digest, vector.base),
           {.tensor = vector.address, .expected = vector.base, .found = digest});
    }
    if (entry(found->second).base.digest() == vector.base) {
      fail(ErrorCode::state,
           fmt::format("'{}' holds another edit already: expected {}, found {}. Revert that first, or make "
                       "this edit on "
                       "top of it.",
                       vector.address, vector.base, digest),
           {.tensor = vector.address, .expected = vector.base, .found = digest});
    }
    std::string unlike;
    if (now.dtype != vector.dtype || now.width() != vector.width) {
      unlike = fmt::format(" The edit is for {}[{}], the model has {}[{}].", dtype_name(vector.dtype),
                           vector.width, dtype_name(now.dtype), now.width());
    }
    fail(ErrorCode::bundle,
         fmt::format("the edit was made on another base: '{}' should be {}, but is {}.{} Use the model that "
                     "it was made on "
                     "({}), or rebase it.",
                     vector.address, vector.base, digest, unlike, printable(edit.source.file, 80)),
         {.tensor = vector.address, .expected = vector.base, .found = digest});
  }
}

void Workspace::replay(const Edit& edit) {
  check_begin(edit);
  Workspace next = *this;
  for (std::size_t i = 0; i < edit.operations.size(); ++i) {
    const Operation& recorded = edit.operations[i];
    const auto unfit = [&](const std::string& why) {
      fail(ErrorCode::bundle,
           fmt::format("operation {} ({} '{}') does not fit this model: {}", i + 1, printable(recorded.verb),
                       printable(recorded.selector), why),
           {.key = recorded.verb, .index = static_cast<std::int64_t>(i)});
    };
    try {
      next.run_one(recorded);
    } catch (const Error& error) {
      if (!means_unfit(error.code())) throw;
      unfit(error.message());
    }
    const Operation& made = next.operations_.back();
    if (made.selected != recorded.selected || made.changed != recorded.changed) {
      unfit(fmt::format("it says {} selected and {} changed channels, but selects {} and changes {}",
                        recorded.selected, recorded.changed, made.selected, made.changed));
    }
    if (!same_numbers(made.gathered, recorded.gathered)) unfit("it gathers other numbers than it says");
    next.operations_.back().lost = recorded.lost;  // values were rounded when they were written down
  }
  for (auto& [site, vector] : next.entries_) {
    const std::string& address = sites_[site].address.str();
    const EditedVector* listed = edit.find(address);
    const std::string digest = vector.now.digest();
    const bool untouched = vector.now.bytes == entry(site).now.bytes;
    if (listed == nullptr ? untouched : digest == listed->after) continue;
    fail(ErrorCode::bundle,
         listed == nullptr ? fmt::format("the edit's operations change '{}', which it does not list", address)
                           : fmt::format("the edit's operations leave '{}' as {}; it says {}", address,
                                         digest, listed->after),
         {.tensor = address, .expected = listed == nullptr ? "no change" : listed->after, .found = digest});
  }
  for (const EditedVector& vector : edit.vectors) {
    const bool reached = std::any_of(next.entries_.begin(), next.entries_.end(), [&](const auto& item) {
      return sites_[item.first].address.str() == vector.address && item.second.now.digest() == vector.after;
    });
    if (!reached) {
      fail(ErrorCode::bundle,
           fmt::format("no operation of the edit changes '{}', which it lists", vector.address),
           {.tensor = vector.address, .expected = vector.after});
    }
  }
  *this = std::move(next);
}

}  // namespace scalevec
