// edits/streams.cpp
#include <scalevec/edits/streams.h>

#include <algorithm>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/tensor.h>

#include <scalevec/edits/verb.h>
#include <scalevec/hooks/tap.h>

namespace scalevec {
namespace {

constexpr std::int64_t chunk_bytes = std::int64_t{64} << 20;

// What an edit made infinite is for Behaviour to name.
constexpr Override::Options lend_anything{.allow_nonfinite = true};

at::Tensor hidden_states(Transformer& model, const Window& window, const Override::Vectors& vectors) {
  const Override lending(model, vectors, lend_anything);
  return model.hidden(window.ids).squeeze(0);
}

// The head may have a norm on its output: it runs with the same vectors.
at::Tensor logits(Transformer& model, const at::Tensor& hidden, const Override::Vectors& vectors) {
  const Override lending(model, vectors, lend_anything);
  return model.head(hidden);
}

bool one_tensor(const Site& site) {
  return site.parametrisation == Parametrisation::plain || site.parametrisation == Parametrisation::offset;
}

}  // namespace

std::vector<std::size_t> touched_vectors(Transformer& model) {
  const ScaleMap& scales = model.scales();
  std::vector<std::size_t> touched;
  for (std::size_t i = 0; i < scales.size(); ++i) {
    const std::size_t site = find_site(model.sites(), scales[i].address());
    if (model.observers().lent(site).defined() || scales[i].bytes() != scales.base_bytes(i))
      touched.push_back(i);
  }
  return touched;
}

at::Tensor base_effective(const ScaleMap& scales, std::size_t index) {
  return ScaleVector(scales[index].site(), scales.base_tensor(index)).effective();
}

Override::Vectors base_stream(Transformer& model) {
  Override::Vectors vectors;
  for (const std::size_t i : touched_vectors(model)) {
    vectors[model.scales()[i].address()] = base_effective(model.scales(), i);
  }
  return vectors;
}

Override::Vectors no_op_stream(Transformer& model) {
  const ScaleMap& scales = model.scales();
  Override::Vectors vectors;
  for (std::size_t i = 0; i < scales.size(); ++i) {
    const ScaleVector& vector = scales[i];
    if (!one_tensor(vector.site())) continue;
    StoredVector stored{vector.dtype(), vector.offset(), scales.base_bytes(i)};
    const std::vector<double> asked = stored.effective();
    std::vector<std::int64_t> channels(asked.size());
    for (std::size_t j = 0; j < channels.size(); ++j) channels[j] = static_cast<std::int64_t>(j);
    write_effective(stored, channels, asked, vector.address(), {.no_effect = true, .non_finite = true});
    vectors[vector.address()] = at::tensor(stored.effective(), at::TensorOptions().dtype(at::kDouble));
  }
  return vectors;
}

void compare_streams(Transformer& model, const Windows& windows, std::size_t first, std::size_t last,
                     const Override::Vectors& base, std::span<const Override::Vectors> variants,
                     std::span<Behaviour> behaviours, const Progress& progress) {
  const at::NoGradGuard no_gradients;
  const std::int64_t step = std::max<std::int64_t>(1, chunk_bytes / (4 * model.spec().vocabulary));
  const std::size_t forwards = variants.size() + 1;
  const std::uint64_t total = forwards * (last - first);
  for (std::size_t w = first; w < last; ++w) {
    const Window window = windows[w];
    const std::uint64_t done = forwards * (w - first);
    report(progress, "forward", done, total);
    const at::Tensor base_hidden = hidden_states(model, window, base);
    std::vector<at::Tensor> hidden;
    for (std::size_t v = 0; v < variants.size(); ++v) {
      report(progress, "forward", done + v + 1, total);
      hidden.push_back(hidden_states(model, window, variants[v]));
    }
    for (std::int64_t begin = 0; begin < base_hidden.size(0); begin += step) {
      const std::int64_t count = std::min(step, base_hidden.size(0) - begin);
      const at::Tensor base_logits = logits(model, base_hidden.narrow(0, begin, count), base);
      for (std::size_t v = 0; v < variants.size(); ++v) {
        const at::Tensor edited_logits = logits(model, hidden[v].narrow(0, begin, count), variants[v]);
        behaviours[v].add(base_logits, edited_logits, window.targets.narrow(0, begin, count),
                          window.document);
      }
    }
  }
  report(progress, "forward", total, total);
}

}  // namespace scalevec
