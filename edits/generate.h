#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

#include <scalevec/core/model/transformer.h>

namespace scalevec {

struct GenerateOptions {
  std::int64_t max_tokens = 80;
  double temperature = 0.0;  // 0: the most probable token each time; of equals the lower id
  double top_p = 1.0;        // the fewest most probable tokens of this total; (0, 1]
  std::int64_t top_k = 0;    // that many most probable tokens; 0: all
  std::uint64_t seed = 0;
  std::vector<std::int64_t> stop = {};  // ids that end the text; not part of the result
};

enum class Finish {
  stop,     // an id of `stop`
  length,   // max_tokens
  context,  // the model's context is full
};

struct Generated {
  std::vector<std::int64_t> ids;  // without the prompt
  Finish finish = Finish::length;
};

/// Called with each id as it comes. Throw from it to stop.
using OnToken = std::function<void(std::int64_t id)>;

/// Continues `prompt` with the model as it stands, each position computed once. E_VALUE for an empty prompt
/// or one that fills the model's context, for ids outside the vocabulary, options out of range, and logits
/// that are not finite.
Generated generate(Transformer& model, std::span<const std::int64_t> prompt,
                   const GenerateOptions& options = {}, const OnToken& on_token = {});

struct BeforeAfter {
  Generated before;  // with the base, lent
  Generated after;   // as the model stands
};
/// The same prompt, options and seed twice.
BeforeAfter generate_both(Transformer& model, std::span<const std::int64_t> prompt,
                          const GenerateOptions& options = {}, const OnToken& on_token = {});

/// One id drawn from a row of logits, (vocabulary,), float32 or float64. Probabilities in float64; draw
/// `step` of the seed: the same logits give the same id on every machine.
std::int64_t sample(const at::Tensor& logits, const GenerateOptions& options, std::uint64_t step);

}  // namespace scalevec
