#include <scalevec/core/kernels/logits.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <limits>

#include <scalevec/core/kernels/clones.h>

namespace scalevec::kernels {
namespace {

// Eight partial sums, whatever the registers hold: the compiler maps them to lanes, and the tree is always
// the same.
constexpr std::int64_t lanes = 8;
constexpr double infinity = std::numeric_limits<double>::infinity();

#define SCALEVEC_INLINE [[gnu::always_inline]] inline

SCALEVEC_INLINE double total(const double (&sum)[lanes]) {
  return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

SCALEVEC_INLINE double largest(const double (&top)[lanes]) { return *std::max_element(top, top + lanes); }

// exp to 2 ulp for |x| <= 708; outside, the value at the nearer end. e^x = 2^n e^r, |r| <= ln 2 / 2.
SCALEVEC_INLINE double exponential(double x) {
  x = x < -708.0 ? -708.0 : x;
  x = x > 708.0 ? 708.0 : x;
  const double round_to_integer = 0x1.8p52;
  const double shifted = x * 1.4426950408889634 + round_to_integer;
  const double n = shifted - round_to_integer;
  const double r = (x - n * 0x1.62e42fefa38p-1) - n * 0x1.ef35793c7673p-45;
  double sum = 1.0 / 479001600.0;
  sum = sum * r + 1.0 / 39916800.0;
  sum = sum * r + 1.0 / 3628800.0;
  sum = sum * r + 1.0 / 362880.0;
  sum = sum * r + 1.0 / 40320.0;
  sum = sum * r + 1.0 / 5040.0;
  sum = sum * r + 1.0 / 720.0;
  sum = sum * r + 1.0 / 120.0;
  sum = sum * r + 1.0 / 24.0;
  sum = sum * r + 1.0 / 6.0;
  sum = sum * r + 0.5;
  sum = sum * r + 1.0;
  sum = sum * r + 1.0;
  // The low bits of `shifted` are n.
  return std::bit_cast<double>(std::bit_cast<std::uint64_t>(sum) +
                               (std::bit_cast<std::uint64_t>(shifted) << 52));
}

// weight * (e^x - 1 - x) without cancellation: its series where |x| < 1/4. grown: weight * e^x.
SCALEVEC_INLINE double curvature(double weight, double grown, double x) {
  double series = 1.0 / 39916800.0;
  series = series * x + 1.0 / 3628800.0;
  series = series * x + 1.0 / 362880.0;
  series = series * x + 1.0 / 40320.0;
  series = series * x + 1.0 / 5040.0;
  series = series * x + 1.0 / 720.0;
  series = series * x + 1.0 / 120.0;
  series = series * x + 1.0 / 24.0;
  series = series * x + 1.0 / 6.0;
  series = series * x + 0.5;
  series = series * x * x * weight;
  const double direct = grown - weight - weight * x;
  return std::fabs(x) < 0.25 ? series : direct;
}

// edited - base, and 0 where both are -inf.
SCALEVEC_INLINE double difference(double base, double edited) {
  const double plain = edited - base;
  return ((base == -infinity) & (edited == -infinity)) ? 0.0 : plain;
}

// Index of the first entry that equals `value`, which is one of them.
template <class T>
SCALEVEC_INLINE std::int64_t first_of(const T* row, std::int64_t count, double value) {
  const T wanted = static_cast<T>(value);
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    bool hit = false;
    for (std::int64_t l = 0; l < lanes; ++l) hit |= row[i + l] == wanted;
    if (hit) break;
  }
  while (i < count && row[i] != wanted) ++i;
  return i;
}

// Calls block(index of the first entry, number of entries) with constant numbers, so that loops over them
// vectorise.
template <class Body>
SCALEVEC_INLINE void for_lanes(std::int64_t count, const Body& body) {
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    for (std::int64_t l = 0; l < lanes; ++l) body(i + l, l);
  }
  for (std::int64_t l = 0; i < count; ++i, ++l) body(i, l);
}

template <class T>
SCALEVEC_INLINE double top_of(const T* row, std::int64_t count) {
  double top[lanes];
  std::fill(top, top + lanes, -infinity);
  for_lanes(
      count, [&](std::int64_t i, std::int64_t l) __attribute__((always_inline)) {
        const double v = row[i];
        top[l] = v > top[l] ? v : top[l];
      });
  return largest(top);
}

template <class T>
SCALEVEC_INLINE double exponential_sum(const T* row, std::int64_t count, double top) {
  double sum[lanes] = {};
  for_lanes(
      count, [&](std::int64_t i, std::int64_t l)
                 __attribute__((always_inline)) { sum[l] += exponential(row[i] - top); });
  return total(sum);
}

template <class T>
SCALEVEC_INLINE RowStatistics compare(const T* base, const T* edited, std::int64_t count, std::int64_t target,
                                      RowScratch& scratch) {
  RowStatistics out;
  const double top_base = top_of(base, count), top_edited = top_of(edited, count);
  double most[lanes] = {}, doubt[lanes] = {};
  for_lanes(
      count, [&](std::int64_t i, std::int64_t l) __attribute__((always_inline)) {
        const double u = difference(base[i], edited[i]), size = std::fabs(u);
        most[l] = size > most[l] ? size : most[l];
        doubt[l] += u * 0.0;  // NaN for a difference that is infinite or NaN
      });
  out.largest_difference = largest(most);
  out.finite = total(doubt) == 0.0 && top_base != -infinity;
  if (!out.finite) return out;

  const double target_base = base[target];
  if (out.largest_difference == 0.0) {
    out.loss_base = top_base + std::log(exponential_sum(base, count, top_base)) - target_base;
    return out;
  }
  out.flip = first_of(base, count, top_base) != first_of(edited, count, top_edited);

  scratch.base.resize(static_cast<std::size_t>(count));
  scratch.edited.resize(static_cast<std::size_t>(count));
  double* __restrict weight_base = scratch.base.data();
  double* __restrict weight_edited = scratch.edited.data();
  double sum_base[lanes] = {}, sum_edited[lanes] = {}, moment_base[lanes] = {}, moment_edited[lanes] = {};
  for_lanes(
      count, [&](std::int64_t i, std::int64_t l) __attribute__((always_inline)) {
        const double u = difference(base[i], edited[i]);
        const double p = exponential(base[i] - top_base), q = exponential(edited[i] - top_edited);
        sum_base[l] += p;
        sum_edited[l] += q;
        moment_base[l] += p * u;
        moment_edited[l] += q * u;
        weight_base[i] = p;
        weight_edited[i] = q;
      });
  const double total_base = total(sum_base), total_edited = total(sum_edited);
  const double mean_base = total(moment_base) / total_base;        // of u = edited - base under p
  const double mean_edited = total(moment_edited) / total_edited;  // and under q
  const double log_base = top_base + std::log(total_base), log_edited = top_edited + std::log(total_edited);

  const double inverse_base = 1.0 / total_base, inverse_edited = 1.0 / total_edited;
  // e^(u - mean) is a ratio of the weights at hand, so no exponential is computed anew.
  const double to_edited = std::exp(top_edited - top_base - mean_base);
  const double to_base = std::exp(top_base - top_edited + mean_edited);
  double spread_base[lanes] = {}, spread_edited[lanes] = {}, variation[lanes] = {};
  for_lanes(
      count, [&](std::int64_t i, std::int64_t l) __attribute__((always_inline)) {
        const double u = difference(base[i], edited[i]), p = weight_base[i], q = weight_edited[i];
        spread_base[l] += curvature(p, q * to_edited, u - mean_base);
        spread_edited[l] += curvature(q, p * to_base, mean_edited - u);
        variation[l] += std::fabs(p * inverse_base - q * inverse_edited);
      });
  // The plain difference of log-sum-exps is exact to some 1e-14: enough where KL is large, and free of the
  // centred form's exponents out of range.
  const double plain = log_edited - log_base - mean_base,
               plain_reverse = mean_edited - (log_edited - log_base);
  out.kl = plain > 0.1 ? plain : std::log1p(total(spread_base) * inverse_base);
  out.kl_reverse = plain_reverse > 0.1 ? plain_reverse : std::log1p(total(spread_edited) * inverse_edited);
  out.tv = 0.5 * total(variation);
  out.loss_base = log_base - target_base;
  out.loss_change = mean_base + out.kl - difference(target_base, edited[target]);
  return out;
}

template <class T>
SCALEVEC_INLINE double gradient(T* __restrict row, std::int64_t count, std::int64_t target, double scale) {
  const double top = top_of(row, count), sum = exponential_sum(row, count, top);
  const double loss = top + std::log(sum) - static_cast<double>(row[target]);
  const double factor = scale / sum;
  for (std::int64_t i = 0; i < count; ++i) row[i] = static_cast<T>(exponential(row[i] - top) * factor);
  row[target] -= static_cast<T>(scale);
  return loss;
}

}  // namespace

SCALEVEC_CLONES RowStatistics compare_rows(const float* base, const float* edited, std::int64_t vocabulary,
                                           std::int64_t target, RowScratch& scratch) {
  return compare(base, edited, vocabulary, target, scratch);
}

// Float64 is for tests: one version of it will do.
RowStatistics compare_rows(const double* base, const double* edited, std::int64_t vocabulary,
                           std::int64_t target, RowScratch& scratch) {
  return compare(base, edited, vocabulary, target, scratch);
}

SCALEVEC_CLONES double loss_gradient(float* row, std::int64_t vocabulary, std::int64_t target, double scale) {
  return gradient(row, vocabulary, target, scale);
}

double loss_gradient(double* row, std::int64_t vocabulary, std::int64_t target, double scale) {
  return gradient(row, vocabulary, target, scale);
}

}  // namespace scalevec::kernels
