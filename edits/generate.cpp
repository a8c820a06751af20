#include <scalevec/edits/generate.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <scalevec/core/error.h>
#include <scalevec/core/ops.h>
#include <scalevec/core/random.h>
#include <scalevec/edits/streams.h>

namespace scalevec {
namespace {

void check(const GenerateOptions& options) {
  const auto refuse = [](std::string_view name, auto value, std::string_view expected) {
    fail(ErrorCode::value, fmt::format("generate: {} is {}; expected {}", name, value, expected),
         {.key = std::string(name)});
  };
  if (options.max_tokens < 0) refuse("max_tokens", options.max_tokens, "0 or more");
  if (!(options.temperature >= 0.0) || std::isinf(options.temperature)) {
    refuse("temperature", options.temperature, "a number from 0 up");
  }
  if (!(options.top_p > 0.0 && options.top_p <= 1.0)) refuse("top_p", options.top_p, "above 0 and at most 1");
  if (options.top_k < 0) refuse("top_k", options.top_k, "0 or more");
}

at::Tensor as_tensor(std::span<const std::int64_t> ids) {
  at::Tensor out = ops::empty({static_cast<std::int64_t>(ids.size())}, at::TensorOptions().dtype(at::kLong));
  std::copy(ids.begin(), ids.end(), out.mutable_data_ptr<std::int64_t>());
  return out;
}

}  // namespace

std::int64_t sample(const at::Tensor& logits, const GenerateOptions& options, std::uint64_t step) {
  const at::Tensor host = logits.detach().to(at::TensorOptions(at::kCPU).dtype(at::kDouble)).contiguous();
  if (host.dim() != 1 || host.numel() == 0) fail(ErrorCode::shape, "sample: logits must be (vocabulary,)");
  const double* const row = host.const_data_ptr<double>();
  const auto count = static_cast<std::size_t>(host.numel());
  std::size_t best = 0;
  for (std::size_t i = 0; i < count; ++i) {
    if (std::isnan(row[i]) || row[i] == std::numeric_limits<double>::infinity()) {
      fail(ErrorCode::value,
           fmt::format("generate: the logit of token {} is {}: the model overflows", i, row[i]),
           {.index = static_cast<std::int64_t>(i)});
    }
    if (row[i] > row[best]) best = i;
  }
  if (options.temperature == 0.0) return static_cast<std::int64_t>(best);

  struct Token {
    double probability;
    std::int64_t id;
  };
  std::vector<Token> tokens(count);
  double total = 0.0;
  for (std::size_t i = 0; i < count; ++i) {
    tokens[i] = {std::exp((row[i] - row[best]) / options.temperature), static_cast<std::int64_t>(i)};
    total += tokens[i].probability;
  }
  const auto before = [](const Token& a, const Token& b) {
    return a.probability != b.probability ? a.probability > b.probability : a.id < b.id;
  };
  std::size_t kept = options.top_k > 0 ? std::min(count, static_cast<std::size_t>(options.top_k)) : count;
  std::partial_sort(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(kept), tokens.end(), before);
  if (kept < count) {
    total = 0.0;
    for (std::size_t i = 0; i < kept; ++i) total += tokens[i].probability;
  }
  double sum = 0.0;
  for (std::size_t i = 0; i < kept && options.top_p < 1.0; ++i) {
    sum += tokens[i].probability;
    if (sum >= options.top_p * total) {
      kept = i + 1;
      total = sum;
    }
  }
  const double place = Philox(options.seed, 0).uniform(step) * total;
  sum = 0.0;
  for (std::size_t i = 0; i < kept; ++i) {
    sum += tokens[i].probability;
    if (place < sum) return tokens[i].id;
  }
  return tokens.front().id;  // the sum's last bits
}

Generated generate(Transformer& model, std::span<const std::int64_t> prompt, const GenerateOptions& options,
                   const OnToken& on_token) {
  check(options);
  const auto length = static_cast<std::int64_t>(prompt.size());
  if (prompt.empty()) fail(ErrorCode::value, "generate: the prompt is empty; give at least one id");
  const std::int64_t context =
      model.spec().context > 0 ? model.spec().context : std::numeric_limits<std::int64_t>::max();
  if (length > context) {
    fail(ErrorCode::value,
         fmt::format("generate: the prompt has {} ids, the model's context {}; shorten it", length, context));
  }
  const at::NoGradGuard no_gradients;
  KvCache cache;
  Generated out;
  at::Tensor next = as_tensor(prompt);
  for (std::int64_t i = 0; i < options.max_tokens; ++i) {
    const at::Tensor hidden = model.hidden(next, &cache);
    const at::Tensor logits = model.head(hidden.select(1, hidden.size(1) - 1)).squeeze(0);
    const std::int64_t id = sample(logits, options, static_cast<std::uint64_t>(i));
    if (std::find(options.stop.begin(), options.stop.end(), id) != options.stop.end()) {
      out.finish = Finish::stop;
      return out;
    }
    out.ids.push_back(id);
    if (on_token) on_token(id);
    if (length + i + 1 >= context) {
      out.finish = Finish::context;
      return out;
    }
    next = as_tensor({&id, 1});
  }
  return out;
}

BeforeAfter generate_both(Transformer& model, std::span<const std::int64_t> prompt,
                          const GenerateOptions& options, const OnToken& on_token) {
  BeforeAfter out;
  {
    const Override base(model, base_stream(model), {.allow_nonfinite = true});
    out.before = generate(model, prompt, options, on_token);
  }
  out.after = generate(model, prompt, options, on_token);
  return out;
}

}  // namespace scalevec
