#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include <analysis/some_text.h>
#include <doctest/doctest.h>
#include <support/errors.h>

#include <scalevec/edits/measure.h>
#include <scalevec/edits/streams.h>
#include <scalevec/edits/sweep.h>
#include <scalevec/edits/transaction.h>
#include <scalevec/hooks/override.h>

using namespace scalevec;
using scalevec::testing::error_of;

namespace {

// Means by the plainest loop: whole logits of each window, ATen's float64.
struct Slow {
  double loss_base = 0, loss_edited = 0, kl = 0, flips = 0;
};

std::vector<at::Tensor> all_logits(Transformer& model, const Windows& windows) {
  std::vector<at::Tensor> out;
  for (std::size_t i = 0; i < windows.size(); ++i) {
    out.push_back(model.logits(windows[i].ids).squeeze(0).to(at::kDouble).log_softmax(1).detach());
  }
  return out;
}

Slow slow(const std::vector<at::Tensor>& base, const std::vector<at::Tensor>& edited,
          const Windows& windows) {
  Slow out;
  const auto n = static_cast<double>(windows.predictions());
  for (std::size_t i = 0; i < windows.size(); ++i) {
    const at::Tensor target = windows[i].targets.unsqueeze(1);
    out.loss_base -= base[i].gather(1, target).sum().item<double>() / n;
    out.loss_edited -= edited[i].gather(1, target).sum().item<double>() / n;
    out.kl += base[i].exp().mul(base[i].sub(edited[i])).sum().item<double>() / n;
    out.flips += base[i].argmax(1).ne(edited[i].argmax(1)).to(at::kDouble).sum().item<double>() / n;
  }
  return out;
}

void check_equal(const Change& a, const Change& b) {
  CHECK(a.loss_base.value == b.loss_base.value);
  CHECK(a.loss_change.value == b.loss_change.value);
  CHECK(a.loss_change.low == b.loss_change.low);
  CHECK(a.kl.value == b.kl.value);
  CHECK(a.flips.value == b.flips.value);
  CHECK(a.largest_difference == b.largest_difference);
}

}  // namespace

TEST_CASE("measure: the plain loop's figures; the model stands as it stood") {
  for (const at::ScalarType compute : {at::kDouble, at::kFloat}) {
    const auto model = tiny_transformer(compute, at::kBFloat16);
    Journal journal(model->scales());
    const Documents text = some_text({33, 2, 1, 20});
    const MeasureOptions options{
        .windows = {.context = 10, .bos = 4}, .seed = 5, .per_token = true, .journal = &journal};
    const Windows windows(text, options.windows);
    const std::vector<at::Tensor> before = all_logits(*model, windows);

    Transaction edit(journal);
    edit.rescale("role:input", 0.7);
    edit.ablate("layers.0.attn.output_norm@2:5");
    std::vector<std::string> digests;
    for (const ScaleVector& vector : model->scales()) digests.push_back(vector.digest());
    const std::vector<at::Tensor> after = all_logits(*model, windows);
    const Slow want = slow(before, after, windows);

    const Measurement got = measure(*model, text, options);
    // Float32 logits differ in the last bits between the forwards of whole windows and of rows: none here,
    // and the base is lent. Float64 sums on both sides.
    const double most = compute == at::kDouble ? 1e-12 : 1e-6;
    CHECK(std::fabs(got.change.loss_base.value - want.loss_base) <= most);
    CHECK(std::fabs(got.change.loss_edited.value - want.loss_edited) <= most);
    CHECK(std::fabs(got.change.loss_change.value - (want.loss_edited - want.loss_base)) <= most);
    CHECK(std::fabs(got.change.kl.value - want.kl) <= most);
    CHECK(got.change.flips.value == doctest::Approx(want.flips).epsilon(1e-12));
    CHECK(got.change.kl.value > 1e-3);
    CHECK(got.change.predictions == 33 + 2 + 1 + 20);

    CHECK(got.control.largest_difference == 0.0);
    CHECK(got.control.kl == 0.0);
    CHECK(got.control.predictions == 9 + 2);  // of the first window and of the last, which is cut
    CHECK(got.reached_output);
    CHECK(got.windows == 4 + 1 + 1 + 3);
    CHECK(got.documents == 4);
    CHECK(got.dtype == (compute == at::kDouble ? "float64" : "float32"));
    CHECK(got.device == "cpu");
    CHECK(got.seed == 5);
    CHECK(got.threads >= 1);
    CHECK(got.per_token.kl.size() == 56);
    CHECK(got.position.size() == 56);
    CHECK(got.position[0] == 0);
    CHECK(got.position[32] == 32);
    CHECK(got.position[33] == 0);
    REQUIRE_FALSE(got.touched.empty());
    for (const TouchedVector& t : got.touched) {
      const std::size_t i = model->scales().index_of(t.address);
      CHECK(t.base == model->scales().base_digest(i));
      CHECK(t.edited == model->scales()[i].digest());
      CHECK(t.base != t.edited);
    }
    for (std::size_t i = 0; i < digests.size(); ++i) CHECK(model->scales()[i].digest() == digests[i]);
    CHECK(model->observers().empty());
    journal.check();
  }
}

TEST_CASE("measure: an edit that is lent measures as the same edit made, to the bit") {
  const auto model = tiny_transformer(at::kFloat, at::kFloat);
  const Documents text = some_text({700, 800});
  const std::string address = "layers.0.mlp.input_norm";
  const std::size_t index = model->scales().index_of(address);
  const Trial trial{.vector = index, .channel = 3, .value = 0.0};
  const Measurement lent =
      measure(*model, text, trial_vectors(model->scales(), trial), {.windows = {.context = 64}});
  Journal journal(model->scales());
  Transaction edit(journal);
  edit.ablate(address + "@3");
  const Measurement made = measure(*model, text, {.windows = {.context = 64}});
  REQUIRE(made.change.chunks >= 20);
  REQUIRE(made.change.loss_change.low.has_value());
  check_equal(lent.change, made.change);
  CHECK(lent.touched.size() == 1);
  CHECK(lent.touched[0].edited == "lent");
  CHECK(made.touched[0].edited != "lent");

  // What stands edited plays no part in an edit that is lent; an override in force is part of what stands.
  check_equal(
      measure(*model, text, trial_vectors(model->scales(), trial), {.windows = {.context = 64}}).change,
      made.change);
  edit.roll_back();
  const Override override(*model, trial_vectors(model->scales(), trial));
  const Measurement overridden = measure(*model, text, {.windows = {.context = 64}});
  check_equal(overridden.change, made.change);
  CHECK(overridden.touched[0].edited == "lent");
}

TEST_CASE("measure: what cannot be an answer is refused") {
  const auto model = tiny_transformer(at::kFloat, at::kFloat);
  const Documents text = some_text({40});
  const auto unedited = error_of([&] { measure(*model, text); });
  CHECK(unedited.code == ErrorCode::no_effect);
  const Measurement zero = measure(*model, text, {.allow_unedited = true});
  CHECK(zero.change.kl.value == 0.0);
  CHECK(zero.change.loss_change.value == 0.0);
  CHECK(zero.change.largest_difference == 0.0);
  CHECK_FALSE(zero.reached_output);

  Journal journal(model->scales());
  Transaction edit(journal);
  edit.rescale("layers.0.attn.q_norm", 3.0);
  // In windows of two ids attention has one key to choose from: a q-norm moves nothing.
  const MeasureOptions blind{.windows = {.context = 2}};
  const auto caught = error_of([&] { measure(*model, text, blind); });
  CHECK(caught.code == ErrorCode::no_effect);
  CHECK(caught.message.find("did not reach the output") != std::string::npos);
  CHECK(caught.fields.tensor == "layers.0.attn.q_norm");
  CHECK_FALSE(measure(*model, text, {.windows = {.context = 2}, .allow_no_effect = true}).reached_output);
  CHECK(measure(*model, text).reached_output);

  CHECK(error_of([&] { measure(*model, {{1, 2, 23}}); }).code == ErrorCode::value);
  CHECK(error_of([&] { measure(*model, {{1}}); }).code == ErrorCode::value);
  edit.set("layers.0.mlp.input_norm", 1e38);
  CHECK(error_of([&] { measure(*model, text); }).code == ErrorCode::value);
}

TEST_CASE("measure: a vector that somebody else wrote is refused before and after") {
  const auto model = tiny_transformer(at::kFloat, at::kFloat);
  Journal journal(model->scales());
  Transaction edit(journal);
  edit.rescale("final_norm", 0.5);
  const auto scribble = [&] { model->scales()[0].stored().mutable_data_ptr<float>()[0] += 1.0f; };
  const MeasureOptions options{.journal = &journal};
  CHECK(measure(*model, some_text({10}), options).change.predictions == 9);
  int calls = 0;
  const Progress late = [&](std::string_view, std::uint64_t, std::uint64_t) {
    if (++calls == 2) scribble();
  };
  CHECK(error_of([&] { measure(*model, some_text({10}), options, late); }).code == ErrorCode::state);
  CHECK(error_of([&] { measure(*model, some_text({10}), options); }).code == ErrorCode::state);
}

TEST_CASE("measure: a model that does not repeat itself fails the no-op control") {
  // Lends noise to the first norm, every other time it is asked.
  struct Noise final : NormObserver {
    at::Tensor noise;
    mutable int asked = 0;
    unsigned wants(std::size_t) const override { return 0; }
    bool lends() const override { return true; }
    at::Tensor lend(std::size_t site) const override {
      return site == 0 && ++asked % 4 == 3 ? noise : at::Tensor();
    }
  };
  const auto model = tiny_transformer(at::kFloat, at::kFloat);
  Journal journal(model->scales());
  Transaction edit(journal);
  edit.rescale("final_norm", 0.5);
  Noise noise;
  noise.noise = model->scales()[0].effective().mul(1.5);
  model->observers().add(&noise);
  std::optional<testing::Caught> caught;
  for (int i = 0; i < 4 && !caught; ++i) {
    try {
      measure(*model, some_text({10}));
    } catch (const Error& error) {
      caught = {error.code(), error.fields(), error.message()};
    }
    ++noise.asked;
  }
  model->observers().remove(&noise);
  REQUIRE(caught.has_value());
  CHECK(caught->code == ErrorCode::state);
  CHECK(caught->message.find("no-op control") != std::string::npos);
}

TEST_CASE("sweep: each row is what measure says, in any batch") {
  const auto model = tiny_transformer(at::kFloat, at::kBFloat16);
  const Documents text = some_text({50, 30});
  std::vector<Trial> trials;
  for (std::size_t vector : {std::size_t{0}, std::size_t{2}, model->scales().size() - 1}) {
    trials.push_back({.vector = vector, .channel = 1, .value = 0.0});
    trials.push_back({.vector = vector, .channel = 4, .value = 1.7});
  }
  const SweepOptions options{.windows = {.context = 20}};
  SweepOptions small = options;
  small.batch = 4;
  std::uint64_t last = 0, total = 0;
  const std::vector<Change> all =
      sweep(*model, text, trials, options, [&](std::string_view, auto done, auto of) {
        CHECK(done >= last);
        last = done;
        total = of;
      });
  CHECK(last == total);
  CHECK(total == trials.size() * 5);
  // An edit that stands in the model plays no part.
  Journal journal(model->scales());
  Transaction edit(journal);
  edit.rescale("**", 1.3);
  const std::vector<Change> some = sweep(*model, text, trials, small);
  edit.roll_back();
  REQUIRE(all.size() == trials.size());
  REQUIRE(some.size() == trials.size());
  for (std::size_t i = 0; i < trials.size(); ++i) {
    CAPTURE(i);
    const MeasureOptions same{.windows = options.windows};
    check_equal(all[i], measure(*model, text, trial_vectors(model->scales(), trials[i]), same).change);
    check_equal(all[i], some[i]);
    CHECK(all[i].kl.value > 0.0);
  }
  CHECK(error_of([&] { sweep(*model, text, std::vector<Trial>{{.vector = 0, .channel = 12}}); }).code ==
        ErrorCode::addr);
  CHECK(error_of([&] { sweep(*model, text, std::vector<Trial>{{.vector = 99}}); }).code == ErrorCode::addr);
  CHECK(sweep(*model, text, std::vector<Trial>{}).empty());
}
