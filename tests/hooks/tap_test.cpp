#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <hooks/two_norms.h>
#include <readers/errors.h>

#include <scalevec/hooks/tap.h>

using scalevec::ErrorCode;
using scalevec::NormEvent;
using scalevec::Selector;
using scalevec::Tap;
namespace taps = scalevec::taps;

TEST_CASE("tap: sees the selected sites, those without a vector included, and only those") {
  TwoNorms model;
  std::vector<std::string> seen;
  const auto note = [&](const NormEvent& event) { seen.push_back(event.site.address.str()); };
  const at::Tensor x = normal({1, 2, 5}, 10);
  {
    const Tap tap(model, Selector::parse("layers.*.*.input_norm"), taps::rms, note);
    model(x);
  }
  model(x);
  CHECK(seen == std::vector<std::string>{"layers.0.attn.input_norm", "layers.0.mlp.input_norm"});
  seen.clear();
  Tap tap(model, Selector::parse("output_norm.weight"), taps::rms, note);
  model(x);
  CHECK(seen == std::vector<std::string>{"final_norm"});
  tap.stop();
  CHECK_FALSE(tap.watching());
  CHECK(model.observers().empty());
}

TEST_CASE("tap: what cannot be watched is refused, and nothing stays behind") {
  TwoNorms model;
  const auto nothing = [](const NormEvent&) {};
  const Selector all = Selector::parse("**");
  for (const unsigned wrong : {0U, taps::vector_gradient, taps::input | 512U}) {
    refusal([&] { Tap(model, all, wrong, nothing); }, ErrorCode::value);
  }
  std::string message;
  const auto fields = refusal([&] { Tap(model, Selector::parse("final_norm@1:3"), taps::input, nothing); },
                              ErrorCode::value, &message);
  CHECK(fields.tensor == "final_norm");
  CHECK(contains(message, "as a whole"));
  CHECK(contains(address_refusal([&] { Tap(model, Selector::parse("final_nrm"), taps::input, nothing); }),
                 "final_norm"));
  CHECK(model.observers().empty());
}

TEST_CASE("tap: names and bits") {
  const std::vector<std::string> names = {
      "input", "rms", "normalized", "scaled", "vector", "input_gradient", "vector_gradient"};
  CHECK(scalevec::parse_taps(names) == taps::all);
  for (const std::string& name : names) CHECK(scalevec::tap_name(scalevec::parse_taps({&name, 1})) == name);
  const std::vector<std::string> wrong = {"input", "output"};
  std::string message;
  CHECK(refusal([&] { scalevec::parse_taps(wrong); }, ErrorCode::value, &message).key == "output");
  CHECK(contains(message, "normalized"));
  refusal([] { scalevec::tap_name(3); }, ErrorCode::value);
}

TEST_CASE("tap: sites by address and native name") {
  const TwoNorms model;
  CHECK(scalevec::find_site(model.sites(), "layers.0.mlp.input_norm") == 1);
  CHECK(scalevec::find_site(model.sites(), "output_norm.weight") == 2);
  CHECK(contains(address_refusal([&] { scalevec::find_site(model.sites(), "layers.0.mlp.input_nrm"); }),
                 "layers.0.mlp.input_norm"));
  address_refusal([&] { scalevec::find_site(model.sites(), ""); });
}
