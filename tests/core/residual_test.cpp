#include <ATen/core/grad_mode.h>
#include <ATen/ops/equal.h>
#include <doctest/doctest.h>

#include <scalevec/core/model/transformer.h>

#include "tiny_model.h"

using scalevec::ModelSpec;
using scalevec::Transformer;

TEST_CASE("transformer: from a residual stream on, the bits are those of the whole forward") {
  const at::NoGradGuard no_grad;
  for (const ModelSpec& spec : {tiny::spec(3), tiny::rich_spec()}) {
    Transformer model(spec, tiny::slots(spec), {});
    const at::Tensor ids = tiny::ids(1, 11);
    const at::Tensor whole = model.hidden(ids);

    Transformer::Depths depths;
    for (std::size_t depth = 0; depth <= spec.layers.size(); ++depth) depths[depth];
    CHECK(at::equal(model.hidden(ids, depths), whole));
    for (const auto& [depth, residual] : depths) {
      CAPTURE(depth);
      CHECK(residual.sizes() == at::IntArrayRef({1, 11, spec.width}));
      const at::Tensor before = residual.clone();
      CHECK(at::equal(model.hidden_from(residual, depth), whole));
      CHECK(at::equal(residual, before));  // a kept stream can be used again
    }
    // Streams of different depths differ: the equality above is not that of a constant.
    CHECK_FALSE(at::equal(depths.at(0), depths.at(1)));
    CHECK_FALSE(at::equal(model.hidden_from(depths.at(0), 1), whole));
  }
}

TEST_CASE("transformer: depths and residual streams are checked") {
  const ModelSpec spec = tiny::spec();
  Transformer model(spec, tiny::slots(spec), {});
  Transformer::Depths beyond{{spec.layers.size() + 1, {}}};
  CHECK_THROWS_AS(model.hidden(tiny::ids(1, 3), beyond), std::out_of_range);
  CHECK_THROWS_AS(model.hidden_from({}, 0), std::invalid_argument);
}
