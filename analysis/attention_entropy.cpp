#include <scalevec/analysis/attention_entropy.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <scalevec/core/error.h>
#include <scalevec/core/model/rope.h>
#include <scalevec/core/ops.h>
#include <scalevec/core/parallel.h>

namespace scalevec {

namespace {

// Of a softmax of scores, less the largest of them, and their exponentials: H = log Z - sum p x.
double entropy_of(const float* scores, const float* exponentials, std::int64_t count) {
  double total = 0.0, weighted = 0.0;
  for (std::int64_t j = 0; j < count; ++j) {
    const double e = exponentials[j];
    total += e;
    weighted += e * scores[j];
  }
  return std::log(total) - weighted / total;
}

}  // namespace

double attention_entropy(const at::Tensor& q, const at::Tensor& k, const AttentionSpec& spec) {
  const at::NoGradGuard no_grad;
  const std::int64_t tokens = q.dim() == 3 ? q.size(0) : 0;
  const std::vector<std::int64_t> of_q{tokens, spec.heads, spec.head_dim},
      of_k{tokens, spec.kv_heads, spec.head_dim};
  if (tokens < 1 || q.sizes() != at::IntArrayRef(of_q) || k.sizes() != at::IntArrayRef(of_k)) {
    fail(ErrorCode::shape,
         fmt::format("attention entropy: queries are [{}] and keys [{}]; expected (tokens, {}, {}) "
                     "and (tokens, {}, {})",
                     fmt::join(q.sizes(), ", "), fmt::join(k.sizes(), ", "), spec.heads, spec.head_dim,
                     spec.kv_heads, spec.head_dim));
  }
  RopeTables tables;
  const auto [cos, sin] = tables.get(spec.rope, {}, at::kCPU)->rows(0, tokens);
  const auto turned = [&, &c = cos, &s = sin](const at::Tensor& t) {
    const at::Tensor wide = t.detach().to(at::kCPU, at::kFloat).unsqueeze(0).contiguous();
    return rotate(wide, c, s, spec.rope, false).squeeze(0).transpose(0, 1);  // (heads, tokens, head_dim)
  };
  const at::Tensor queries = turned(q).mul(spec.scale), keys = turned(k);
  // Some rows of one head at a time: a text's whole square of scores may be larger than its model.
  constexpr std::int64_t block = 128;
  const std::int64_t blocks = (tokens + block - 1) / block, tasks = spec.heads * blocks;
  std::vector<double> sums(static_cast<std::size_t>(tasks));
  at::parallel_for(0, tasks, 1, [&](std::int64_t begin, std::int64_t end) {
    const at::NoGradGuard quiet;  // of each thread its own
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t head = task / blocks, from = task % blocks * block,
                         to = std::min(tokens, from + block);
      const at::Tensor of_head = keys.select(0, head / (spec.heads / spec.kv_heads)).narrow(0, 0, to);
      const at::Tensor scores =
          queries.select(0, head).narrow(0, from, to - from).mm(of_head.t()).contiguous();
      float* const all = scores.mutable_data_ptr<float>();
      const auto first = [&](std::int64_t i) {
        return spec.window > 0 ? std::max<std::int64_t>(0, i - spec.window + 1) : 0;
      };
      for (std::int64_t i = from; i < to; ++i) {
        float* const row = all + (i - from) * to;
        const float most = *std::max_element(row + first(i), row + i + 1);
        for (std::int64_t j = 0; j < to; ++j) row[j] -= most;
      }
      const at::Tensor exponentials = scores.exp();  // of many at once; those that do not count may overflow
      const float* const e = exponentials.const_data_ptr<float>();
      for (std::int64_t i = from; i < to; ++i) {
        const std::int64_t at = (i - from) * to + first(i);
        sums[static_cast<std::size_t>(task)] += entropy_of(all + at, e + at, i + 1 - first(i));
      }
    }
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0) / static_cast<double>(spec.heads * tokens);
}

}  // namespace scalevec
