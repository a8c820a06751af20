#pragma once

#include <cstdint>
#include <vector>

namespace scalevec::kernels {

/// What two rows of logits say about one prediction. Nats.
struct RowStatistics {
  double loss_base = 0;           // -log p(target)
  double loss_change = 0;         // of the edited row, less loss_base; not by subtraction
  double kl = 0;                  // sum p log(p / q), p the base
  double kl_reverse = 0;          // sum q log(q / p)
  double tv = 0;                  // sum |p - q| / 2
  double largest_difference = 0;  // of any two logits
  bool flip = false;              // the largest logit's index differs; the first of equals counts
  bool finite = true;             // false: the rest means nothing
};

/// Work space of compare_rows, one per thread.
struct RowScratch {
  std::vector<double> base, edited;
};

/// base, edited: `vocabulary` logits each; finite, or -inf in both rows at one index. Sums run in float64, in
/// eight lanes in a fixed order: the same bits on every processor. KL is the log of a mean of e^x - 1 - x, x
/// centred, so it is right to 1e-9 of itself at any size; equal rows give exact zeros.
RowStatistics compare_rows(const float* base, const float* edited, std::int64_t vocabulary,
                           std::int64_t target, RowScratch& scratch);
RowStatistics compare_rows(const double* base, const double* edited, std::int64_t vocabulary,
                           std::int64_t target, RowScratch& scratch);

/// log(sum(exp(row))) in float64, and the row turned into scale * (softmax(row) - one-hot(target)), in place:
/// the gradient of scale * loss. Returns the loss.
double loss_gradient(float* row, std::int64_t vocabulary, std::int64_t target, double scale);
double loss_gradient(double* row, std::int64_t vocabulary, std::int64_t target, double scale);

}  // namespace scalevec::kernels
