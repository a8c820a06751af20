#include <cmath>
#include <map>
#include <vector>

#include <analysis/some_text.h>
#include <doctest/doctest.h>
#include <support/errors.h>

#include <scalevec/edits/generate.h>
#include <scalevec/edits/transaction.h>

using namespace scalevec;
using scalevec::testing::error_of;

namespace {

using Ids = std::vector<std::int64_t>;

// The whole text read anew for each id.
Ids greedy(Transformer& model, Ids text, int count) {
  const std::size_t begin = text.size();
  for (int i = 0; i < count; ++i) {
    std::vector<double> values(text.begin(), text.end());
    const at::Tensor ids = tensor(values, {static_cast<std::int64_t>(values.size())}, at::kLong);
    const at::Tensor logits = model.logits(ids).squeeze(0);
    text.push_back(logits.select(0, logits.size(0) - 1).argmax().item<std::int64_t>());
  }
  return {text.begin() + static_cast<std::ptrdiff_t>(begin), text.end()};
}

std::map<std::int64_t, int> draw(const at::Tensor& logits, const GenerateOptions& options, int times) {
  std::map<std::int64_t, int> counts;
  for (int i = 0; i < times; ++i) ++counts[sample(logits, options, static_cast<std::uint64_t>(i))];
  return counts;
}

}  // namespace

TEST_CASE("generate: greedy ids are those of reading the text anew each time") {
  const auto model = tiny_transformer(at::kDouble, at::kFloat);
  const Ids prompt{3, 1, 4, 1, 5};
  Ids seen;
  const Generated got =
      generate(*model, prompt, {.max_tokens = 20}, [&](std::int64_t id) { seen.push_back(id); });
  CHECK(got.ids == greedy(*model, prompt, 20));
  CHECK(got.finish == Finish::length);
  CHECK(seen == got.ids);

  const std::int64_t stop = got.ids[4];
  const Generated cut = generate(*model, prompt, {.max_tokens = 20, .stop = {stop}});
  CHECK(cut.finish == Finish::stop);
  CHECK(cut.ids.size() <= 4);
  CHECK(cut.ids == Ids(got.ids.begin(), got.ids.begin() + static_cast<std::ptrdiff_t>(cut.ids.size())));

  // The context holds 64 ids, prompt and all.
  const Generated full = generate(*model, prompt, {.max_tokens = 100});
  CHECK(full.finish == Finish::context);
  CHECK(full.ids.size() == 59);
}

TEST_CASE("generate: before and after an edit, and the edit still in force") {
  const auto model = tiny_transformer(at::kDouble, at::kFloat);
  const Ids prompt{2, 7, 1};
  const GenerateOptions options{.max_tokens = 25, .temperature = 0.8, .seed = 3};
  const Generated unedited = generate(*model, prompt, options);
  Journal journal(model->scales());
  Transaction edit(journal);
  edit.ablate("layers.0.mlp.input_norm", "one");
  const Generated edited = generate(*model, prompt, options);
  const BeforeAfter both = generate_both(*model, prompt, options);
  CHECK(both.before.ids == unedited.ids);
  CHECK(both.after.ids == edited.ids);
  CHECK(both.before.ids != both.after.ids);
  CHECK(model->observers().empty());
}

TEST_CASE("sample: frequencies follow the tempered probabilities") {
  const at::Tensor logits = vector_of({1.0, -0.5, 2.0, 0.0, -3.0}, at::kFloat);
  const GenerateOptions options{.temperature = 1.5, .seed = 11};
  const int times = 20'000;
  const auto counts = draw(logits, options, times);
  double total = 0.0, chi = 0.0;
  const double values[] = {1.0, -0.5, 2.0, 0.0, -3.0};
  for (const double v : values) total += std::exp(v / 1.5);
  for (int i = 0; i < 5; ++i) {
    const double expected = times * std::exp(values[i] / 1.5) / total;
    const double got = counts.contains(i) ? counts.at(i) : 0;
    chi += (got - expected) * (got - expected) / expected;
  }
  CHECK(chi <= 18.5);  // 99.9 % of a chi-square with 4 degrees of freedom; the seed is fixed
  CHECK(draw(logits, options, 50) == draw(logits, options, 50));
  GenerateOptions other = options;
  other.seed = 12;
  CHECK(draw(logits, options, 50) != draw(logits, other, 50));
}

TEST_CASE("sample: top-k and top-p keep the most probable tokens; equals go to the lower id") {
  // Probabilities 0.5, 0.25, 0.125, 0.125.
  const at::Tensor logits = vector_of({std::log(0.25), std::log(0.5), std::log(0.125), std::log(0.125)});
  const auto ids = [&](GenerateOptions options) {
    options.temperature = 1.0;
    Ids out;
    for (const auto& [id, count] : draw(logits, options, 500)) out.push_back(id);
    return out;
  };
  CHECK(ids({}) == Ids{0, 1, 2, 3});
  CHECK(ids({.top_k = 2}) == Ids{0, 1});
  CHECK(ids({.top_k = 3}) == Ids{0, 1, 2});
  CHECK(ids({.top_p = 0.4}) == Ids{1});
  CHECK(ids({.top_p = 0.6}) == Ids{0, 1});
  CHECK(ids({.top_p = 0.8}) == Ids{0, 1, 2});
  CHECK(ids({.top_p = 0.6, .top_k = 1}) == Ids{1});
  CHECK(sample(vector_of({1, 5, 5, 2}), {}, 0) == 1);
}

TEST_CASE("generate: what cannot be continued is refused") {
  const auto model = tiny_transformer(at::kFloat, at::kFloat);
  const Ids prompt{1, 2};
  const auto code = [&](const Ids& ids, const GenerateOptions& options) {
    return error_of([&] { generate(*model, ids, options); }).code;
  };
  CHECK(code({}, {}) == ErrorCode::value);
  CHECK(code({1, 23}, {}) == ErrorCode::value);
  CHECK(code(Ids(65, 1), {}) == ErrorCode::value);
  CHECK(code(prompt, {.max_tokens = -1}) == ErrorCode::value);
  CHECK(code(prompt, {.temperature = -0.1}) == ErrorCode::value);
  CHECK(code(prompt, {.temperature = std::nan("")}) == ErrorCode::value);
  CHECK(code(prompt, {.top_p = 0.0}) == ErrorCode::value);
  CHECK(code(prompt, {.top_p = 1.1}) == ErrorCode::value);
  CHECK(code(prompt, {.top_k = -1}) == ErrorCode::value);
  CHECK(generate(*model, prompt, {.max_tokens = 0}).ids.empty());
  CHECK(error_of([] { sample(vector_of({1, std::nan("")}), {}, 0); }).code == ErrorCode::value);
}
