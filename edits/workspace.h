#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <scalevec/core/selector.h>
#include <scalevec/core/site.h>
#include <scalevec/edits/edit.h>
#include <scalevec/edits/verb.h>

namespace scalevec {

/// What one call did to one vector.
struct VectorReport {
  std::string address;
  DType dtype = DType::f32;
  VerbReport channels;
};

/// What one call did: nothing is dropped silently.
struct OperationReport {
  std::vector<VectorReport> vectors;  // all that were selected
  VerbReport total() const;
};

/// The vectors of one model as operations change them, on paper: whoever holds it writes the result to a
/// model or a file. Vectors are read on first use. A value; copies are independent.
class Workspace {
 public:
  /// The base's vector of a site. Called once for each site that an operation selects.
  using Read = std::function<StoredVector(std::size_t site)>;
  /// sites: must outlive the workspace and all its copies. shared: for each site the sites that share its
  /// storage, in any order; empty where none does.
  Workspace(std::span<const Site> sites, Read read, std::vector<std::vector<std::size_t>> shared = {});

  struct Entry {
    StoredVector base, now;
    std::map<std::size_t, Selection> selected;  // by operation; channels of whole vectors are left out
  };

  /// Runs what `request` asks on every vector that it selects, all or nothing. Values for channels become one
  /// operation for each vector. E_NO_EFFECT if no stored bit changes, unless allowed.
  OperationReport run(const Operation& request);
  /// Runs an edit. E_BUNDLE, naming the address, unless it begins at what the workspace holds and ends as it
  /// says; E_STATE if it was applied already, or where another edit stands in its way.
  void replay(const Edit& edit);

  /// Back to the base, with no operations.
  void clear();

  std::span<const Site> sites() const { return sites_; }
  /// The sites that an operation would act on; those that share storage are added, or refused with E_ADDR.
  std::vector<Selection> select(const Operation& request) const;
  const std::map<std::size_t, Entry>& entries() const { return entries_; }
  /// Reads the vector if it was not read yet.
  const Entry& entry(std::size_t site);
  const std::vector<Operation>& operations() const { return operations_; }
  std::string digest(std::size_t site);

  /// Everything done since the base.
  Edit edit(const EditSource& source, std::string note = {}) const;

 private:
  OperationReport run_one(const Operation& request);
  void check_begin(const Edit& edit);

  std::span<const Site> sites_;
  Read read_;
  std::vector<std::vector<std::size_t>> shared_;
  std::map<std::size_t, Entry> entries_;
  std::vector<Operation> operations_;
};

}  // namespace scalevec
