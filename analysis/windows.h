#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>

namespace scalevec {

/// Token ids of a text, document by document, as the tokenizer gave them.
using Documents = std::vector<std::vector<std::int64_t>>;

/// How a text is read.
struct WindowOptions {
  std::int64_t context = 512;            // ids of a window, 2 or more
  std::optional<std::int64_t> bos = {};  // stands first in every window, and counts as one of its ids
  std::int64_t tokens = 0;               // reads the first that many ids of the text; 0: all
};

/// One forward's worth of text. Row i of the model's output for `ids` predicts targets[i].
struct Window {
  at::Tensor ids;      // (1, predictions), int64
  at::Tensor targets;  // (predictions,), int64
  std::int64_t document = 0;
  std::int64_t first = 0;  // place of targets[0] in its document
};

/// Consecutive windows that do not overlap. Every id of a window but its first is predicted; a last window of
/// fewer than two ids is left out. Ids are taken as given; where `bos` is set and a document begins with it,
/// that one serves.
class Windows {
 public:
  /// E_VALUE for a context below 2, and for a text without a single prediction. documents: must outlive this.
  Windows(const Documents& documents, const WindowOptions& options);

  /// E_VALUE, naming document and place, for an id that is read and is not in [0, vocabulary).
  void require_ids_below(std::int64_t vocabulary) const;

  std::size_t size() const { return pieces_.size(); }
  Window operator[](std::size_t index) const;
  std::int64_t predictions() const { return predictions_; }
  /// Documents that have a window.
  std::int64_t documents() const { return used_documents_; }

 private:
  struct Piece {
    std::size_t document, begin, end;  // ids of the document, without bos
  };
  const Documents& documents_;
  WindowOptions options_;
  std::vector<Piece> pieces_;
  std::int64_t predictions_ = 0, used_documents_ = 0;
};

}  // namespace scalevec
