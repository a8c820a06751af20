#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include <ATen/core/Tensor.h>

#include <scalevec/core/progress.h>

namespace scalevec {

enum class Split { train, validation };
/// "train", "validation".
std::string_view split_name(Split split);

/// A source that is drawn, not read: see MarkovChain. Its windows are independent of each other.
struct SyntheticSource {
  std::int64_t vocabulary = 256;
  std::int64_t order = 1;
  double concentration = 0.1;
  std::uint64_t seed = 0;
  std::int64_t train_ids = std::int64_t{1} << 40;
  std::int64_t validation_ids = std::int64_t{1} << 20;
};

/// Token ids to train on. A value; copies share the source. Safe to read from several threads.
class Corpus {
 public:
  /// A folder that `scalevec data build` wrote. Reads corpus.json and the sizes of the other files; `verify`
  /// reads the rest. E_PATH if a file is missing, E_JSON, E_DUP or E_SCHEMA if corpus.json is damaged, E_SIZE
  /// if a file has not the size that it says, E_STATE if its fields are not those of its digest.
  static Corpus open(const std::filesystem::path& folder);
  /// E_VALUE as MarkovChain, and unless both counts are 0 to 2^60.
  static Corpus synthetic(const SyntheticSource& source);

  /// Ids are in [0, vocabulary).
  std::int64_t vocabulary() const;
  std::int64_t ids(Split split) const;
  /// "sha256:...", of all that a model learns from; the same on every machine.
  std::string digest() const;

  /// Window i has the ids [i * context, i * context + context] of its split: context predictions, and the
  /// last id of one window is the first of the next. What is left at the end is in none. E_VALUE unless
  /// 1 <= context <= 2^24.
  std::int64_t windows(Split split, std::int64_t context) const;
  /// (n, context + 1) int64 on the CPU. E_VALUE for a window that is not there; E_FORMAT with file and byte
  /// for an id that is not below the vocabulary.
  at::Tensor read(Split split, std::span<const std::int64_t> windows, std::int64_t context) const;

  /// Nats per id in the long run, NaN where nobody knows; and the least mean loss that a model can reach on
  /// windows of `context`.
  double entropy() const;
  double entropy(std::int64_t context) const;

  /// Reads every file and compares with corpus.json: E_STATE with the file, if one is not what was written;
  /// E_FORMAT as `read`.
  void verify(const Progress& progress = {}) const;

  class Source;

 private:
  explicit Corpus(std::shared_ptr<const Source> source);
  std::shared_ptr<const Source> source_;
};

}  // namespace scalevec
