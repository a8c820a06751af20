#pragma once

#include <cstddef>
#include <set>
#include <string>
#include <vector>

#include <scalevec/core/scale_map.h>
#include <scalevec/edits/edit.h>
#include <scalevec/edits/workspace.h>

namespace scalevec {

class Transaction;

/// What was done to the scale vectors of one model since they were loaded. The model's owner keeps one, for
/// as long as the model; all edits go through its transactions, so that base plus journal is what the model
/// should hold.
class Journal {
 public:
  explicit Journal(ScaleMap map, EditSource source = {});
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;

  const ScaleMap& map() const { return map_; }
  const EditSource& source() const { return source_; }
  /// Everything in force, open transactions included, composed from the base: what a file may hold. Checks
  /// first.
  Edit edit(std::string note = {}) const;
  /// E_STATE, naming the address, if a vector does not hold base plus journal: somebody else wrote it.
  void check() const;
  /// Whether any stored bit differs from the base.
  bool edited() const;
  /// Puts the base back everywhere, whoever wrote, and forgets. E_STATE while a transaction is open.
  void reset();

 private:
  friend class Transaction;
  void check(std::size_t index) const;
  const std::vector<std::byte>& expected(std::size_t index) const;
  void check_overlap(const Operation& operation) const;
  /// Writes what differs, all or nothing.
  void become(Workspace next);

  ScaleMap map_;
  EditSource source_;
  std::set<std::size_t> overlapping_;  // vectors that share a part of their storage only
  Workspace workspace_;
  std::vector<Transaction*> open_;  // innermost last
  bool broken_ = false;             // a roll-back failed
};

/// Edits that are taken back, bit for bit, at the end of its scope and after exceptions, unless committed.
/// Each call is all or nothing. Transactions nest: an inner one goes back to what it found, and its commit
/// lasts if the outer one's does.
class Transaction {
 public:
  /// journal: must outlive the transaction.
  explicit Transaction(Journal& journal);
  ~Transaction();
  Transaction(const Transaction&) = delete;
  Transaction& operator=(const Transaction&) = delete;

  /// E_ADDR: the selector matches nothing, or a vector whose storage is shared. E_VALUE: a result that is not
  /// finite or overflows. E_NO_EFFECT: no stored bit changes. E_STATE: somebody else wrote a vector, or an
  /// inner transaction is open. After an error nothing has changed.
  OperationReport run(const Operation& operation);
  OperationReport rescale(const std::string& selector, double factor, Allow allow = {});
  OperationReport set(const std::string& selector, double value, Allow allow = {});
  OperationReport set(const std::string& selector, std::vector<double> values, Allow allow = {});
  OperationReport ablate(const std::string& selector, const std::string& to = "zero", Allow allow = {});

  /// E_BUNDLE, naming the address, if the edit was made on another base; E_STATE if it was applied before.
  void apply(const Edit& edit);
  /// Takes back an edit that was applied.
  void undo(const Edit& edit);

  /// As Journal::edit: from the model's base, also when nested or after earlier committed edits.
  Edit edit(std::string note = {}) const;
  /// Keeps what was done, and ends.
  void commit();
  /// Goes back to what it found, and ends. Inner transactions end with it.
  void roll_back();
  bool is_open() const { return open_; }

 private:
  void require_open() const;

  Journal& journal_;
  Workspace found_;
  bool open_ = true;
};

}  // namespace scalevec
