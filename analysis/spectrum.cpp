#include <scalevec/analysis/spectrum.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <span>
#include <utility>

#include <scalevec/core/ops.h>
#include <scalevec/core/random.h>

namespace scalevec {
namespace {

// n signs, +1 or -1 with equal chances.
at::Tensor random_signs(std::int64_t size, std::uint64_t seed, std::uint64_t probe) {
  const Philox random(seed, probe);
  at::Tensor out = ops::empty({size}, at::kDouble);
  double* const values = out.mutable_data_ptr<double>();
  std::array<std::uint32_t, 4> bits{};
  for (std::int64_t i = 0; i < size; ++i) {
    if (i % 128 == 0) bits = random.block(static_cast<std::uint64_t>(i / 128));
    values[i] = (bits[static_cast<std::size_t>(i % 128 / 32)] >> (i % 32)) & 1 ? 1.0 : -1.0;
  }
  return out;
}

double dot(const at::Tensor& a, const at::Tensor& b) { return a.dot(b).item<double>(); }

// Also of vectors whose squares are below what float64 holds.
double length_of(const at::Tensor& a) {
  const double most = a.abs().max().item<double>();
  return most > 0.0 && std::isfinite(most) ? most * std::sqrt(dot(a.div(most), a.div(most))) : most;
}

std::span<const double> values_of(const at::Tensor& t) {
  return {t.const_data_ptr<double>(), static_cast<std::size_t>(t.numel())};
}

// Means over probes, by Welford's recurrence, which does not cancel.
struct Samples {
  double count = 0, mean = 0, squares = 0;
  void add(double x) {
    const double off = x - mean;
    mean += off / ++count;
    squares += off * (x - mean);
  }
  double error() const { return std::sqrt(squares / (count - 1.0) / count); }  // NaN of one
};

// Lanczos's tridiagonal matrix: its largest eigenvalue, and the last entry of the vector that belongs to it.
std::pair<double, double> largest_of(const std::vector<double>& diagonal, const std::vector<double>& beside) {
  const auto m = static_cast<std::int64_t>(diagonal.size());
  const at::Tensor t = ops::empty({m, m}, at::kDouble).zero_();
  double* const entries = t.mutable_data_ptr<double>();
  for (std::int64_t i = 0; i < m; ++i) {
    entries[i * m + i] = diagonal[static_cast<std::size_t>(i)];
    if (i > 0) entries[i * m + i - 1] = beside[static_cast<std::size_t>(i) - 1];
  }
  const auto [values, vectors] = ops::symmetric_eigen(t);
  return {values.select(0, m - 1).item<double>(), vectors.select(1, m - 1).select(0, m - 1).item<double>()};
}

}  // namespace

Spectrum spectrum(const SymmetricProduct& product, std::int64_t size, const SpectrumOptions& options) {
  const auto n = static_cast<std::size_t>(size);
  Samples trace, squares;
  std::vector<Samples> diagonal(n);
  const auto probe = [&](const at::Tensor& z, const at::Tensor& hz) {
    trace.add(dot(z, hz));
    squares.add(dot(hz, hz));
    const std::span<const double> a = values_of(z), b = values_of(hz);
    for (std::size_t j = 0; j < n; ++j) diagonal[j].add(a[j] * b[j]);
  };

  const at::Tensor start = random_signs(size, options.seed, 0);
  const double length = std::sqrt(static_cast<double>(size));
  std::vector<at::Tensor> basis{start.div(length)};
  std::vector<double> along, beside;
  double scale = 0.0;
  bool finite = true;
  while (true) {
    const at::Tensor& q = basis.back();
    at::Tensor w = product(q).contiguous();
    if (basis.size() == 1) probe(start, w.mul(length));
    along.push_back(dot(q, w));
    // Twice is enough (Parlett, 1980): the second pass takes away what rounding left of the first.
    for (int pass = 0; pass < 2; ++pass) {
      for (const at::Tensor& b : basis) w = w.sub(b, dot(b, w));
    }
    const double rest = length_of(w);
    finite = std::isfinite(rest) && std::isfinite(along.back());
    if (!finite) break;
    beside.push_back(rest);
    scale = std::max({scale, std::fabs(along.back()), rest});
    const bool invariant = rest <= length * std::numeric_limits<double>::epsilon() * scale;
    if (invariant || along.size() >= static_cast<std::size_t>(options.iterations) || along.size() >= n) break;
    basis.push_back(w.div(rest));
  }
  for (int p = 1; p < options.probes; ++p) {
    const at::Tensor z = random_signs(size, options.seed, static_cast<std::uint64_t>(p));
    probe(z, product(z).contiguous());
  }

  Spectrum out;
  // LAPACK refuses what is not finite.
  const auto [largest, last] =
      finite ? largest_of(along, beside) : std::pair(std::numeric_limits<double>::quiet_NaN(), 0.0);
  out.largest = largest;
  out.bound = finite ? beside.back() * std::fabs(last) : largest;
  out.trace = trace.mean;
  out.trace_error = trace.error();
  out.frobenius = std::sqrt(squares.mean);
  for (const Samples& d : diagonal) {
    out.diagonal.push_back(d.mean);
    out.diagonal_error.push_back(d.error());
  }
  return out;
}

}  // namespace scalevec
