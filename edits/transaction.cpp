#include <scalevec/edits/transaction.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include <fmt/format.h>

#include <scalevec/core/checkpoint/checkpoint.h>
#include <scalevec/core/error.h>

namespace scalevec {
namespace {

struct Range {
  const std::byte* begin;
  std::size_t size;
  bool overlaps(const Range& other) const {
    const auto a = reinterpret_cast<std::uintptr_t>(begin), b = reinterpret_cast<std::uintptr_t>(other.begin);
    return a < b + other.size && b < a + size;
  }
};

Range storage(const ScaleVector& vector) {
  return {static_cast<const std::byte*>(vector.stored().const_data_ptr()), vector.stored().nbytes()};
}

// Calls `found` for each two vectors that share storage; same: all of it, with the same meaning.
template <class Found>
void for_each_shared(const ScaleMap& map, Found&& found) {
  for (std::size_t i = 0; i < map.size(); ++i) {
    const Range a = storage(map[i]);
    for (std::size_t j = i + 1; j < map.size(); ++j) {
      const Range b = storage(map[j]);
      if (map[i].stored().device() != map[j].stored().device() || !a.overlaps(b)) continue;
      found(i, j, a.begin == b.begin && a.size == b.size && map[i].dtype() == map[j].dtype());
    }
  }
}

std::vector<std::vector<std::size_t>> shared_storage(const ScaleMap& map) {
  std::vector<std::vector<std::size_t>> shared(map.size());
  for_each_shared(map, [&](std::size_t i, std::size_t j, bool same) {
    if (!same) return;
    shared[i].push_back(j);
    shared[j].push_back(i);
  });
  return shared;
}

}  // namespace

Journal::Journal(ScaleMap map, EditSource source)
    : map_(std::move(map)),
      source_(std::move(source)),
      workspace_(
          map_.sites(),
          [this](std::size_t i) {
            return StoredVector{map_[i].dtype(), map_[i].offset(), map_.base_bytes(i)};
          },
          shared_storage(map_)) {
  for_each_shared(map_, [&](std::size_t i, std::size_t j, bool same) {
    if (!same) overlapping_.insert({i, j});
  });
}

const std::vector<std::byte>& Journal::expected(std::size_t index) const {
  const auto entry = workspace_.entries().find(index);
  return entry == workspace_.entries().end() ? map_.base_bytes(index) : entry->second.now.bytes;
}

void Journal::check(std::size_t index) const {
  if (broken_) {
    fail(ErrorCode::state,
         "an edit could not be taken back, so that the model's vectors are not known; load it again");
  }
  if (map_[index].bytes() == expected(index)) return;
  const ScaleVector& vector = map_[index];
  const std::string should = vector_digest(vector.dtype(), vector.width(), vector.offset(), expected(index));
  fail(ErrorCode::state,
       fmt::format("somebody else wrote '{}': it should hold {}, but holds {}. Edit scale vectors through "
                   "transactions "
                   "only, or load the model again.",
                   vector.address(), should, vector.digest()),
       {.tensor = vector.address(), .expected = should, .found = vector.digest()});
}

void Journal::check() const {
  for (std::size_t i = 0; i < map_.size(); ++i) check(i);
}

void Journal::check_overlap(const Operation& operation) const {
  for (const Selection& selection : workspace_.select(operation)) {
    if (overlapping_.contains(selection.site)) {
      fail(
          ErrorCode::addr,
          fmt::format(
              "'{}' shares a part of its storage with another vector; such vectors cannot be edited. Give it "
              "storage of its own.",
              map_[selection.site].address()),
          {.tensor = map_[selection.site].address(), .found = "shared storage"});
    }
    check(selection.site);
  }
}

Edit Journal::edit(std::string note) const {
  check();
  return workspace_.edit(source_, std::move(note));
}

bool Journal::edited() const {
  const auto& entries = workspace_.entries();
  return std::any_of(entries.begin(), entries.end(),
                     [](const auto& item) { return item.second.now.bytes != item.second.base.bytes; });
}

void Journal::become(Workspace next) {
  std::vector<std::pair<std::size_t, const std::vector<std::byte>*>> writes;
  for (const auto& [index, entry] : next.entries()) {
    if (entry.now.bytes != expected(index)) writes.emplace_back(index, &entry.now.bytes);
  }
  // What was edited since, and is not in `next`, goes back to its base.
  for (const auto& [index, entry] : workspace_.entries()) {
    if (!next.entries().contains(index) && entry.now.bytes != entry.base.bytes) {
      writes.emplace_back(index, &map_.base_bytes(index));
    }
  }
  std::size_t done = 0;
  try {
    for (; done < writes.size(); ++done) map_[writes[done].first].overwrite(*writes[done].second);
  } catch (...) {
    try {
      for (std::size_t i = 0; i <= done; ++i) map_[writes[i].first].overwrite(expected(writes[i].first));
    } catch (...) {
      broken_ = true;
    }
    throw;
  }
  workspace_ = std::move(next);
}

void Journal::reset() {
  if (!open_.empty()) {
    fail(ErrorCode::state, "the base cannot be put back while a transaction is open; end it first");
  }
  for (std::size_t i = 0; i < map_.size(); ++i) map_.restore(i);
  workspace_.clear();
  broken_ = false;
}

Transaction::Transaction(Journal& journal) : journal_(journal), found_(journal.workspace_) {
  journal_.open_.push_back(this);
}

Transaction::~Transaction() {
  try {
    roll_back();
  } catch (...) {
    journal_.broken_ = true;  // the next use says so
  }
}

void Transaction::require_open() const {
  if (!open_) fail(ErrorCode::state, "this transaction has ended; begin a new one");
  if (journal_.open_.back() != this) {
    fail(ErrorCode::state, "an inner transaction is open: edit there, or end it first");
  }
}

OperationReport Transaction::run(const Operation& operation) {
  require_open();
  journal_.check_overlap(operation);
  Workspace next = journal_.workspace_;
  OperationReport report = next.run(operation);
  journal_.become(std::move(next));
  return report;
}

OperationReport Transaction::rescale(const std::string& selector, double factor, Allow allow) {
  return run(scalevec::rescale(selector, factor, allow));
}

OperationReport Transaction::set(const std::string& selector, double value, Allow allow) {
  return run(scalevec::set(selector, value, allow));
}

OperationReport Transaction::set(const std::string& selector, std::vector<double> values, Allow allow) {
  return run(scalevec::set(selector, std::move(values), allow));
}

OperationReport Transaction::ablate(const std::string& selector, const std::string& to, Allow allow) {
  return run(scalevec::ablate(selector, to, allow));
}

void Transaction::apply(const Edit& edit) {
  require_open();
  Workspace next = journal_.workspace_;
  next.replay(edit);
  for (const Operation& operation : edit.operations) journal_.check_overlap(operation);
  journal_.become(std::move(next));
}

void Transaction::undo(const Edit& edit) { apply(invert(edit)); }

Edit Transaction::edit(std::string note) const {
  if (!open_) fail(ErrorCode::state, "this transaction has ended; take its edit before");
  return journal_.edit(std::move(note));
}

void Transaction::commit() {
  require_open();
  for (const auto& [index, entry] : journal_.workspace_.entries()) journal_.check(index);
  journal_.open_.pop_back();
  open_ = false;
}

void Transaction::roll_back() {
  if (!open_) return;
  while (journal_.open_.back() != this) journal_.open_.back()->roll_back();
  journal_.open_.pop_back();
  open_ = false;
  journal_.become(found_);
}

}  // namespace scalevec
