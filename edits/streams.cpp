#include <scalevec/edits/streams.h>

#include <algorithm>
#include <optional>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/tensor.h>

#include <scalevec/edits/verb.h>
#include <scalevec/hooks/tap.h>

namespace scalevec {
namespace {

constexpr std::int64_t chunk_bytes = std::int64_t{64} << 20;

// What an edit made infinite is for Behaviour to name.
constexpr Override::Options lend_anything{.allow_nonfinite = true};

// The first depth at which a variant can differ from the base: nothing before its first other vector does.
std::size_t first_difference(const Transformer& model, const Override::Vectors& base,
                             const Override::Vectors& variant) {
  std::size_t depth = model.spec().layers.size();
  const auto differs_at = [&](const std::string& name) {
    const Address& address = model.sites()[find_site(model.sites(), name)].address;
    const auto layer = address.stack().empty() ? address.layer() : std::optional<std::int64_t>(0);
    const bool after_layers = address.str() == "final_norm" || address.parts().front() == "lm_head";
    if (layer)
      depth = std::min(depth, static_cast<std::size_t>(*layer));
    else if (!after_layers)
      depth = 0;
  };
  for (const auto& [name, vector] : variant) {
    const auto found = base.find(name);
    if (found == base.end() || !found->second.is_same(vector)) differs_at(name);
  }
  for (const auto& [name, vector] : base) {
    if (!variant.contains(name)) differs_at(name);
  }
  return depth;
}

// The head may have a norm on its output: it runs with the same vectors.
at::Tensor logits(Transformer& model, const at::Tensor& hidden, const Override::Vectors& vectors) {
  const Override lending(model, vectors, lend_anything);
  return model.head(hidden);
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
  return scales.base(index).effective();
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
    if (!in_one_tensor(vector.site().parametrisation)) continue;
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
  std::vector<std::size_t> starts;
  for (const Override::Vectors& variant : variants) starts.push_back(first_difference(model, base, variant));
  for (std::size_t w = first; w < last; ++w) {
    const Window window = windows[w];
    const std::uint64_t done = forwards * (w - first);
    report(progress, "forward", done, total);
    Transformer::Depths residuals;
    for (const std::size_t start : starts) {
      if (start > 0) residuals[start];
    }
    at::Tensor base_hidden;
    {
      const Override lending(model, base, lend_anything);
      base_hidden = model.hidden(window.ids, residuals).squeeze(0);
    }
    std::vector<at::Tensor> hidden;
    for (std::size_t v = 0; v < variants.size(); ++v) {
      report(progress, "forward", done + v + 1, total);
      const Override lending(model, variants[v], lend_anything);
      hidden.push_back(
          (starts[v] > 0 ? model.hidden_from(residuals.at(starts[v]), starts[v]) : model.hidden(window.ids))
              .squeeze(0));
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
