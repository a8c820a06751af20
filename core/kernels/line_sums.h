#pragma once

#include <cstdint>

namespace scalevec::kernels {

/// What the tracer needs of a weight before (w) and after (w + d) a step with gradient g: sums of products
/// over the rows of each column, or over the columns of each row.
struct LineSums {
  static constexpr int count = 7;
  // wg_abs: of |w g|; inverse_root: of 1 / (root sqrt(v) + eps), v Adam's second moment after the step.
  enum Which { ww, wg, gg, wg_abs, dd, wd, inverse_root };
};

/// The matrices, row-major; none is null but v, whose sum is then 0.
template <class T>
struct LineSumsCall {
  const T* w;
  const T* after;  // w + d
  const T* g;
  std::int64_t columns;
  const T* v = nullptr;
  T root = 1, eps = 0;
};

/// Adds rows [begin, end) to out, [count][columns]. Sums of up to 128 rows run in T, their sum in double.
void column_sums(const LineSumsCall<float>& call, std::int64_t begin, std::int64_t end, double* out);
void column_sums(const LineSumsCall<double>& call, std::int64_t begin, std::int64_t end, double* out);

/// Writes rows [begin, end) of out, [count][rows]; v is not read.
void row_sums(const LineSumsCall<float>& call, std::int64_t begin, std::int64_t end, std::int64_t rows,
              double* out);
void row_sums(const LineSumsCall<double>& call, std::int64_t begin, std::int64_t end, std::int64_t rows,
              double* out);

/// A step of AdamW (Loshchilov and Hutter, 1711.05101, algorithm 2) on a matrix of that many columns, with
/// the corrections of torch.optim.AdamW: w <- w keep - rate m / (root sqrt(v) + eps).
struct AdamwCall {
  float* w;
  float* m;  // first and second moment
  float* v;
  const float* g;
  std::int64_t columns;
  float keep;          // 1 - learning rate x decay
  float rest1;         // 1 - beta1: m <- m + rest1 (g - m)
  float beta2, rest2;  // v <- beta2 v + rest2 g^2, rest2 = 1 - beta2
  float rate;          // learning rate / (1 - beta1^step)
  float root;          // 1 / sqrt(1 - beta2^step)
  float eps;
};

/// Moves rows [begin, end).
void adamw(const AdamwCall& call, std::int64_t begin, std::int64_t end);
/// The same move to the bit, whose column sums are added to out: what column_sums gives of the tensors before
/// and after, to the bit, in the pass that moves them.
void adamw_column_sums(const AdamwCall& call, std::int64_t begin, std::int64_t end, double* out);

}  // namespace scalevec::kernels
