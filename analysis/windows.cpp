#include <scalevec/analysis/windows.h>

#include <algorithm>
#include <limits>

#include <fmt/format.h>

#include <scalevec/core/error.h>
#include <scalevec/core/ops.h>

namespace scalevec {

Windows::Windows(const Documents& documents, const WindowOptions& options)
    : documents_(documents), options_(options) {
  if (options.context < 2) {
    fail(ErrorCode::value,
         fmt::format("a context of {} ids predicts nothing; give 2 or more", options.context));
  }
  if (options.tokens < 0) fail(ErrorCode::value, fmt::format("cannot read {} ids of a text", options.tokens));
  // With bos a window holds one id less of the text, and every one of them is predicted.
  const auto bos = static_cast<std::size_t>(options.bos.has_value() ? 1 : 0);
  const std::size_t step = static_cast<std::size_t>(options.context) - bos, fewest = 2 - bos;
  std::size_t left = options.tokens == 0 ? std::numeric_limits<std::size_t>::max()
                                         : static_cast<std::size_t>(options.tokens);
  for (std::size_t d = 0; d < documents.size() && left > 0; ++d) {
    const std::vector<std::int64_t>& ids = documents[d];
    const std::size_t end = std::min(ids.size(), left);
    left -= end;
    std::size_t begin = options.bos && !ids.empty() && ids.front() == *options.bos ? 1 : 0;
    const std::size_t before = pieces_.size();
    for (; begin < end && end - begin >= fewest; begin = std::min(begin + step, end)) {
      pieces_.push_back({d, begin, std::min(begin + step, end)});
      predictions_ += static_cast<std::int64_t>(pieces_.back().end - begin + bos - 1);
    }
    if (pieces_.size() > before) ++used_documents_;
  }
  if (pieces_.empty()) {
    fail(ErrorCode::value, fmt::format("the text has no two ids in one document, so nothing can be predicted "
                                       "({} documents); give more text",
                                       documents.size()));
  }
}

void Windows::require_ids_below(std::int64_t vocabulary) const {
  const auto refuse = [&](std::int64_t id, const std::string& where) {
    fail(ErrorCode::value,
         fmt::format(
             "id {} {} is outside the model's vocabulary of {}; was the text made by another tokenizer?", id,
             where, vocabulary));
  };
  const auto fits = [&](std::int64_t id) { return id >= 0 && id < vocabulary; };
  if (options_.bos && !fits(*options_.bos)) refuse(*options_.bos, "that begins each window");
  for (const Piece& piece : pieces_) {
    for (std::size_t i = piece.begin; i < piece.end; ++i) {
      const std::int64_t id = documents_[piece.document][i];
      if (!fits(id)) refuse(id, fmt::format("at place {} of document {}", i, piece.document));
    }
  }
}

Window Windows::operator[](std::size_t index) const {
  const Piece& piece = pieces_[index];
  const std::vector<std::int64_t>& ids = documents_[piece.document];
  std::vector<std::int64_t> all;
  if (options_.bos) all.push_back(*options_.bos);
  all.insert(all.end(), ids.begin() + static_cast<std::ptrdiff_t>(piece.begin),
             ids.begin() + static_cast<std::ptrdiff_t>(piece.end));
  const auto predictions = static_cast<std::int64_t>(all.size()) - 1;
  const auto tensor = [](auto begin, auto end) {
    at::Tensor out = ops::empty({end - begin}, at::TensorOptions().dtype(at::kLong));
    std::copy(begin, end, out.mutable_data_ptr<std::int64_t>());
    return out;
  };
  return {.ids = tensor(all.begin(), all.end() - 1).view({1, predictions}),
          .targets = tensor(all.begin() + 1, all.end()),
          .document = static_cast<std::int64_t>(piece.document),
          .first = static_cast<std::int64_t>(piece.begin) + (options_.bos ? 0 : 1)};
}

}  // namespace scalevec
