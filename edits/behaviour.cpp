#include <scalevec/edits/behaviour.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include <c10/core/ScalarType.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <scalevec/core/error.h>
#include <scalevec/core/kernels/logits.h>
#include <scalevec/core/parallel.h>
#include <scalevec/core/random.h>

namespace scalevec {
namespace {

using kernels::RowStatistics;

void check(const at::Tensor& base, const at::Tensor& edited, const at::Tensor& targets) {
  const bool rows = base.defined() && edited.defined() && targets.defined() && base.dim() == 2 &&
                    base.sizes() == edited.sizes() && targets.dim() == 1 && targets.size(0) == base.size(0);
  if (!rows || base.size(1) == 0) {
    const auto text = [](const at::Tensor& t) {
      return t.defined() ? fmt::format("[{}]", fmt::join(t.sizes(), ", ")) : std::string("no tensor");
    };
    fail(ErrorCode::shape, fmt::format("Behaviour::add: base logits are {}, edited {}, targets {}; expected "
                                       "(rows, vocabulary) twice and "
                                       "(rows,): one target for each row",
                                       text(base), text(edited), text(targets)));
  }
  if (!base.is_floating_point() || base.scalar_type() != edited.scalar_type() ||
      targets.scalar_type() != at::kLong) {
    fail(
        ErrorCode::dtype,
        fmt::format(
            "Behaviour::add: base logits are {}, edited {}, targets {}; expected one floating dtype for both "
            "and int64 targets",
            c10::toString(base.scalar_type()), c10::toString(edited.scalar_type()),
            c10::toString(targets.scalar_type())));
  }
}

at::Tensor on_host(const at::Tensor& logits) {
  const auto dtype = logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return logits.detach().to(at::TensorOptions(at::kCPU).dtype(dtype)).contiguous();
}

template <class T>
std::vector<RowStatistics> compare(const at::Tensor& base, const at::Tensor& edited,
                                   const std::int64_t* targets) {
  const std::int64_t rows = base.size(0), vocabulary = base.size(1);
  const T* const p = base.const_data_ptr<T>();
  const T* const q = edited.const_data_ptr<T>();
  std::vector<RowStatistics> out(static_cast<std::size_t>(rows));
  at::parallel_for(0, rows, 1, [&](std::int64_t begin, std::int64_t end) {
    kernels::RowScratch scratch;
    for (std::int64_t i = begin; i < end; ++i) {
      out[static_cast<std::size_t>(i)] =
          kernels::compare_rows(p + i * vocabulary, q + i * vocabulary, vocabulary, targets[i], scratch);
    }
  });
  return out;
}

// Percentile of sorted values with linear interpolation, as numpy's default.
double percentile(const std::vector<double>& sorted, double fraction) {
  const double place = fraction * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(place);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (place - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

Figure exponential(const Figure& figure) {
  Figure out{.value = std::exp(figure.value)};
  if (figure.low) out.low = std::exp(*figure.low);
  if (figure.high) out.high = std::exp(*figure.high);
  return out;
}

}  // namespace

void Behaviour::add(const at::Tensor& base, const at::Tensor& edited, const at::Tensor& targets,
                    std::int64_t document) {
  check(base, edited, targets);
  const at::Tensor host_base = on_host(base), host_edited = on_host(edited);
  const at::Tensor host_targets = targets.to(at::kCPU).contiguous();
  const std::int64_t* const wanted = host_targets.const_data_ptr<std::int64_t>();
  const std::int64_t rows = host_base.size(0), vocabulary = host_base.size(1);
  for (std::int64_t i = 0; i < rows; ++i) {
    if (wanted[i] >= 0 && wanted[i] < vocabulary) continue;
    fail(ErrorCode::value,
         fmt::format("Behaviour::add: target {} of row {} is outside the vocabulary of {}", wanted[i], i,
                     vocabulary),
         {.index = i});
  }
  const std::vector<RowStatistics> found = host_base.scalar_type() == at::kDouble
                                               ? compare<double>(host_base, host_edited, wanted)
                                               : compare<float>(host_base, host_edited, wanted);
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (found[i].finite) continue;
    fail(ErrorCode::value,
         fmt::format(
             "Behaviour::add: the logits of prediction {} (document {}) are not finite: there is no loss to "
             "speak of. An edit this large overflows the model; make it smaller, or compute in a wider dtype",
             predictions_ + static_cast<std::int64_t>(i), document),
         {.index = predictions_ + static_cast<std::int64_t>(i)});
  }

  for (std::size_t i = 0; i < found.size(); ++i) {
    const RowStatistics& row = found[i];
    if (chunks_.empty() || chunks_.back().predictions == chunk_size || chunks_.back().document != document) {
      chunks_.push_back({.document = document});
    }
    Chunk& chunk = chunks_.back();
    ++chunk.predictions;
    const std::array<double, figures> values{row.loss_base,   row.loss_base + row.loss_change,
                                             row.loss_change, row.kl,
                                             row.kl_reverse,  row.flip ? 1.0 : 0.0,
                                             row.tv};
    for (std::size_t f = 0; f < figures; ++f) chunk.sums[f] += values[f];
    largest_difference_ = std::max(largest_difference_, row.largest_difference);
    if (!options_.per_token) continue;
    per_token_.document.push_back(document);
    per_token_.target.push_back(wanted[i]);
    per_token_.loss_base.push_back(row.loss_base);
    per_token_.loss_change.push_back(row.loss_change);
    per_token_.kl.push_back(row.kl);
    per_token_.tv.push_back(row.tv);
    per_token_.flip.push_back(row.flip ? 1 : 0);
  }
  predictions_ += rows;
}

Change Behaviour::result(std::uint64_t seed, std::int64_t resamples) const {
  if (chunks_.empty()) fail(ErrorCode::state, "Behaviour::result: no prediction was added");
  if (resamples < 1)
    fail(ErrorCode::value, fmt::format("Behaviour::result: {} resamples; ask for 1 or more", resamples));
  std::array<Figure, figures> out;
  for (std::size_t f = 0; f < figures; ++f) {
    double sum = 0.0;
    for (const Chunk& chunk : chunks_) sum += chunk.sums[f];
    out[f].value = sum / static_cast<double>(predictions_);
  }

  const auto count = static_cast<std::int64_t>(chunks_.size());
  if (count >= fewest_chunks) {
    std::array<std::vector<double>, figures> means;
    for (auto& values : means) values.resize(static_cast<std::size_t>(resamples));
    at::parallel_for(0, resamples, 16, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        const Philox random(seed, static_cast<std::uint64_t>(r));
        std::array<double, figures> sums{};
        std::int64_t drawn = 0;
        for (std::int64_t i = 0; i < count; ++i) {
          const double place = random.uniform(static_cast<std::uint64_t>(i)) * static_cast<double>(count);
          const Chunk& chunk = chunks_[static_cast<std::size_t>(place)];
          drawn += chunk.predictions;
          for (std::size_t f = 0; f < figures; ++f) sums[f] += chunk.sums[f];
        }
        for (std::size_t f = 0; f < figures; ++f) {
          means[f][static_cast<std::size_t>(r)] = sums[f] / static_cast<double>(drawn);
        }
      }
    });
    for (std::size_t f = 0; f < figures; ++f) {
      std::sort(means[f].begin(), means[f].end());
      out[f].low = percentile(means[f], 0.025);
      out[f].high = percentile(means[f], 0.975);
    }
  }

  return {.loss_base = out[0],
          .loss_edited = out[1],
          .loss_change = out[2],
          .perplexity_base = exponential(out[0]),
          .perplexity_edited = exponential(out[1]),
          .kl = out[3],
          .kl_reverse = out[4],
          .flips = out[5],
          .tv = out[6],
          .predictions = predictions_,
          .chunks = count,
          .largest_difference = largest_difference_};
}

}  // namespace scalevec
