#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include <scalevec/core/dtype.h>

namespace scalevec {

/// A scale vector as it is stored: what a verb reads and writes. Needs no tensor, so that files are edited by
/// the same arithmetic as models.
struct StoredVector {
  DType dtype = DType::f32;  // F64, F32, F16 or BF16
  double offset = 0.0;       // effective = offset + stored
  std::vector<std::byte> bytes;

  std::int64_t width() const;
  std::vector<double> effective() const;
  /// As vector_digest (core/checkpoint/checkpoint.h).
  std::string digest() const;
  /// The stored bytes of some channels, one after the other, and the same written.
  std::vector<std::byte> at(std::span<const std::int64_t> channels) const;
  void put(std::span<const std::int64_t> channels, std::span<const std::byte> stored);
};

/// What a verb is told: a number, a word, numbers for the channels in turn, or such numbers already stored.
using Argument = std::variant<double, std::string, std::vector<double>, std::vector<std::byte>>;
using Arguments = std::map<std::string, Argument, std::less<>>;

/// What is refused unless the user asks for it; recorded with the operation.
struct Allow {
  bool no_effect = false;   // an operation that changes no stored bit
  bool non_finite = false;  // results that are NaN or infinite
  bool tied = false;        // a vector whose storage another site shares: both change
  friend bool operator==(const Allow&, const Allow&) = default;
};

/// One row of the table of verbs. A new elementwise verb is one row and one function.
struct Verb {
  std::string_view name;
  std::string_view usage;  // "rescale FACTOR"
  /// E_SCHEMA or E_VALUE unless the arguments are what the verb takes.
  void (*check)(const Arguments&);
  /// A number drawn from the whole effective vector, kept with the operation. Null, or none returned, where
  /// the arguments need none.
  std::optional<double> (*gather)(std::span<const double> effective, const Arguments&);
  /// The effective value asked for where `current` is.
  double (*asked)(double current, double gathered, const Arguments&);
  /// "rescale by 0.9"
  std::string (*text)(const Arguments&);
};

/// E_SCHEMA lists the verbs.
const Verb& find_verb(std::string_view name);

/// What writing did to one vector. Errors are in effective units.
struct VerbReport {
  std::int64_t selected = 0;  // channels
  std::int64_t changed = 0;   // stored bits differ
  std::int64_t lost = 0;      // another value was asked for, but the stored dtype rounds it to the same bits
  double largest_rounding = 0.0;  // |asked - what is stored now|, largest over the selected channels
};

/// Writes effective values, float64, rounded once into the stored dtype. A channel whose effective value is
/// already the one asked for keeps its bits; so do all others. E_VALUE, with `address` and channel, where a
/// value is not finite (unless allowed) or overflows the dtype.
VerbReport write_effective(StoredVector& vector, std::span<const std::int64_t> channels,
                           std::span<const double> asked, std::string_view address, Allow allow);

/// Runs a verb on the given channels (ascending). `gathered` stands in for Verb::gather where it is known; it
/// must be given where `vector` holds only some channels of the real one.
VerbReport run_verb(const Verb& verb, const Arguments& arguments, StoredVector& vector,
                    std::span<const std::int64_t> channels, std::optional<double> gathered,
                    std::string_view address, Allow allow);

}  // namespace scalevec
