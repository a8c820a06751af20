#include <cmath>
#include <stdexcept>
#include <string_view>
#include <vector>

#include <ATen/core/grad_mode.h>
#include <analysis/some_text.h>
#include <doctest/doctest.h>
#include <support/errors.h>

#include <scalevec/analysis/saliency.h>
#include <scalevec/hooks/override.h>

using namespace scalevec;

namespace {

// Mean loss by ATen, in float64, over the windows of a text.
at::Tensor mean_loss(Transformer& model, const Documents& text, const WindowOptions& options) {
  const Windows windows(text, options);
  at::Tensor sum;
  for (std::size_t i = 0; i < windows.size(); ++i) {
    const Window window = windows[i];
    const at::Tensor loss = model.logits(window.ids)
                                .squeeze(0)
                                .to(at::kDouble)
                                .log_softmax(1)
                                .gather(1, window.targets.unsqueeze(1))
                                .sum()
                                .neg();
    sum = sum.defined() ? sum.add(loss) : loss;
  }
  return sum.div(static_cast<double>(windows.predictions()));
}

}  // namespace

TEST_CASE("saliency: the gradient of float64 autograd on the stored vectors, in every kind of norm") {
  const auto model = tiny_transformer(at::kDouble, at::kDouble);
  const Documents text = some_text({30, 2, 17});
  const WindowOptions options{.context = 12, .bos = 5};
  const Saliency got = saliency(*model, text, options);

  const at::AutoGradMode gradients(true);
  for (const ScaleVector& vector : model->scales()) at::Tensor(vector.stored()).requires_grad_();
  const at::Tensor loss = mean_loss(*model, text, options);
  loss.backward();
  CHECK(std::fabs(got.loss - loss.item<double>()) <= 1e-13);
  CHECK(got.predictions == 30 + 2 + 17);
  REQUIRE(got.gradient.size() == model->scales().size());
  double largest = 0.0;
  for (std::size_t i = 0; i < got.gradient.size(); ++i) {
    const ScaleVector& vector = model->scales()[i];
    CAPTURE(vector.address());
    const at::Tensor want = vector.stored().grad(), effective = vector.effective();
    REQUIRE(want.defined());
    for (std::int64_t j = 0; j < vector.width(); ++j) {
      const double expected = want.select(0, j).item<double>();
      const double value = got.gradient[i][static_cast<std::size_t>(j)];
      // Two orders of summation in float64, of terms of order one.
      CHECK(std::fabs(value - expected) <= 1e-13);
      CHECK(got.effective[i][static_cast<std::size_t>(j)] == effective.select(0, j).item<double>());
      CHECK(got.ablation()[i][static_cast<std::size_t>(j)] ==
            -value * got.effective[i][static_cast<std::size_t>(j)]);
      largest = std::max(largest, std::fabs(expected));
    }
  }
  CHECK(largest > 1e-3);
}

TEST_CASE("saliency: central differences of the loss agree") {
  const auto model = tiny_transformer(at::kDouble, at::kBFloat16);
  const Documents text = some_text({25});
  const Saliency got = saliency(*model, text, {});
  for (std::size_t i = 0; i < model->scales().size(); ++i) {
    const ScaleVector& vector = model->scales()[i];
    CAPTURE(vector.address());
    const double h = 1e-5;
    double sides[2];
    for (int side = 0; side < 2; ++side) {
      const at::Tensor moved = vector.effective();
      moved.mutable_data_ptr<double>()[1] += side == 0 ? -h : h;
      const Override lent(*model, {{vector.address(), moved}});
      sides[side] = mean_loss(*model, text, {}).item<double>();
    }
    // Rounding 1e-15 / h and curvature h^2.
    CHECK(std::fabs((sides[1] - sides[0]) / (2 * h) - got.gradient[i][1]) <= 1e-8);
  }
}

TEST_CASE("saliency: float32 agrees with float64, also where the logits come in several pieces") {
  // 300,000 logits of 8 bytes: 27 rows at a time.
  ModelSpec spec = tiny_spec();
  spec.vocabulary = 300'000;
  spec.head.out = spec.vocabulary;
  std::map<std::string, at::Tensor> slots;
  unsigned seed = 1;
  for (const auto& [name, shape] : spec.tensor_slots()) {
    slots[name] = shape.size() == 1 ? normal(shape, ++seed, at::kFloat, 1.0, 0.1)
                                    : normal(shape, ++seed, at::kFloat, 0.0, 0.3);
  }
  Transformer narrow(spec, slots, {.compute = at::kFloat}), wide(spec, slots, {.compute = at::kDouble});
  const Documents text = some_text({60});
  const Saliency got = saliency(narrow, text, {}), want = saliency(wide, text, {});
  CHECK(std::fabs(got.loss - want.loss) <= 1e-5);
  CHECK(std::fabs(want.loss - mean_loss(wide, text, {}).item<double>()) <= 1e-11);
  double largest = 0.0, error = 0.0;
  for (std::size_t i = 0; i < got.gradient.size(); ++i) {
    for (std::size_t j = 0; j < got.gradient[i].size(); ++j) {
      largest = std::max(largest, std::fabs(want.gradient[i][j]));
      error = std::max(error, std::fabs(want.gradient[i][j] - got.gradient[i][j]));
    }
  }
  CHECK(error <= 1e-4 * largest);
}

TEST_CASE("saliency: nothing is left behind, whatever happens") {
  const auto model = tiny_transformer(at::kFloat, at::kFloat);
  const Documents text = some_text({40});
  const auto clean = [&] {
    CHECK(model->observers().empty());
    for (const ScaleVector& vector : model->scales()) {
      CHECK_FALSE(vector.stored().requires_grad());
      CHECK_FALSE(vector.stored().grad().defined());
    }
  };
  {
    const at::NoGradGuard off;  // the caller's mode does not matter, and comes back
    saliency(*model, text, {.context = 8});
    CHECK_FALSE(at::GradMode::is_enabled());
  }
  clean();
  struct Stop : std::runtime_error {
    using std::runtime_error::runtime_error;
  };
  const Progress stop = [](std::string_view, std::uint64_t done, std::uint64_t) {
    if (done == 2) throw Stop("enough");
  };
  CHECK_THROWS_AS(saliency(*model, text, {.context = 8}, stop), Stop);
  clean();
  CHECK(scalevec::testing::error_of([&] { saliency(*model, {{1, 99}}); }).code == ErrorCode::value);
  clean();
}

TEST_CASE("saliency: an override in force is what it looks at") {
  const auto model = tiny_transformer(at::kDouble, at::kFloat);
  const Documents text = some_text({20});
  const std::string address = model->scales()[0].address();
  const at::Tensor other = model->scales()[0].effective().mul(0.5);
  const double before = saliency(*model, text).loss;
  const Override lent(*model, {{address, other}});
  const Saliency got = saliency(*model, text);
  CHECK(got.effective[0][3] == other.select(0, 3).item<double>());
  CHECK(got.loss != before);
  CHECK(std::fabs(got.loss - mean_loss(*model, text, {}).item<double>()) <= 1e-13);
}

TEST_CASE("outlier_scores and top_entries") {
  Site site;
  site.address = Address::parse("final_norm");
  site.width = 4;
  Site flat = site;
  flat.address = Address::parse("embed_norm");
  const ScaleMap map({ScaleVector(site, vector_of({1, 1, 1, 5}, at::kFloat)),
                      ScaleVector(flat, vector_of({2, 2, 2, 2}, at::kFloat))});
  const PerChannel scores = outlier_scores(map);
  // Mean 2, variance (1 + 1 + 1 + 9) / 4 = 3.
  CHECK(std::fabs(scores[0][3] - 3 / std::sqrt(3.0)) <= 1e-15);
  CHECK(std::fabs(scores[0][0] - 1 / std::sqrt(3.0)) <= 1e-15);
  CHECK(scores[1] == std::vector<double>(4, 0.0));
  const std::vector<Entry> top = top_entries({{0.5, -2, 1}, {2, std::nan(""), 0}}, 4);
  CHECK(top == std::vector<Entry>{{0, 1, -2}, {1, 0, 2}, {0, 2, 1}, {0, 0, 0.5}});
  CHECK(top_entries(scores, 100).size() == 8);
}
