#include <scalevec/trainer/init.h>

#include <cmath>
#include <numbers>

#include <scalevec/core/ops.h>
#include <scalevec/core/parallel.h>
#include <scalevec/core/random.h>

namespace scalevec {
namespace {

// FNV-1a: one stream of random numbers for each slot.
std::uint64_t stream_of(const std::string& slot) {
  std::uint64_t hash = 0xcbf29ce484222325;
  for (const char c : slot) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return hash;
}

at::Tensor normal(const std::vector<std::int64_t>& shape, const Philox& random, double deviation) {
  at::Tensor out = ops::empty(shape, at::kFloat);
  float* const values = out.mutable_data_ptr<float>();
  const std::int64_t count = out.numel();
  at::parallel_for(0, (count + 1) / 2, 1 << 14, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t pair = begin; pair < end; ++pair) {  // Box and Muller, two values from two numbers
      const auto index = static_cast<std::uint64_t>(2 * pair);
      const double radius = deviation * std::sqrt(-2.0 * std::log1p(-random.uniform(index)));
      const double angle = 2.0 * std::numbers::pi * random.uniform(index + 1);
      values[2 * pair] = static_cast<float>(radius * std::cos(angle));
      if (2 * pair + 1 < count) values[2 * pair + 1] = static_cast<float>(radius * std::sin(angle));
    }
  });
  return out;
}

}  // namespace

std::map<std::string, at::Tensor> draw_tensors(const ModelSpec& spec, const InitOptions& options) {
  std::map<std::string, double> constants;  // of what is no weight
  for (const Site& site : spec.sites()) {
    const std::string slot = site.address.str();
    const double start = site.parametrisation == Parametrisation::exponential ? 0.0 : 1.0;
    constants[slot + ".weight"] = 1.0 - site.offset;
    constants[slot + ".alpha"] = constants[slot + ".beta"] = start;
  }
  const double residual =
      options.scale_residual ? 1.0 / std::sqrt(2.0 * static_cast<double>(spec.layers.size())) : 1.0;
  std::map<std::string, at::Tensor> out;
  for (const auto& [slot, shape] : spec.tensor_slots()) {
    const auto constant = constants.find(slot);
    if (constant != constants.end() || slot.ends_with(".bias")) {
      out[slot] = ops::empty(shape, at::kFloat).fill_(constant == constants.end() ? 0.0 : constant->second);
      continue;
    }
    const bool writes = slot.ends_with(".o.weight") || slot.ends_with(".down.weight");
    out[slot] = normal(shape, Philox(options.seed, stream_of(slot)), options.std * (writes ? residual : 1.0));
  }
  return out;
}

}  // namespace scalevec
