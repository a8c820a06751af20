#include <algorithm>
#include <cmath>
#include <numbers>

#include <scalevec/core/model_spec.h>

namespace scalevec {
namespace {

// The formulas are those of transformers' modeling_rope_utils, in float64.

double llama3(const RopeSpec& rope, double frequency) {
  const double context = static_cast<double>(rope.original_context);
  const double wavelength = 2.0 * std::numbers::pi / frequency;
  if (wavelength < context / rope.high_freq_factor) return frequency;
  if (wavelength > context / rope.low_freq_factor) return frequency / rope.factor;
  const double smooth =
      (context / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
  return (1.0 - smooth) * frequency / rope.factor + smooth * frequency;
}

// The pair that turns `rotations` times over the original context.
double yarn_pair(const RopeSpec& rope, double rotations) {
  return static_cast<double>(rope.dimensions) *
         std::log(static_cast<double>(rope.original_context) / (rotations * 2.0 * std::numbers::pi)) /
         (2.0 * std::log(rope.base));
}

double yarn(const RopeSpec& rope, std::int64_t pair, double frequency) {
  const double low = std::max(std::floor(yarn_pair(rope, rope.beta_fast)), 0.0);
  double high =
      std::min(std::ceil(yarn_pair(rope, rope.beta_slow)), static_cast<double>(rope.dimensions - 1));
  if (low == high) high += 0.001;
  const double ramp = std::clamp((static_cast<double>(pair) - low) / (high - low), 0.0, 1.0);
  return frequency / rope.factor * ramp + frequency * (1.0 - ramp);
}

}  // namespace

std::vector<double> RopeSpec::inverse_frequencies() const {
  std::vector<double> frequencies;
  for (std::int64_t pair = 0; pair < dimensions / 2; ++pair) {
    const double exponent = static_cast<double>(2 * pair) / static_cast<double>(dimensions);
    const double frequency = 1.0 / std::pow(base, exponent);
    switch (scaling) {
      case Scaling::none:
        frequencies.push_back(frequency);
        break;
      case Scaling::linear:
        frequencies.push_back(frequency / factor);
        break;
      case Scaling::llama3:
        frequencies.push_back(llama3(*this, frequency));
        break;
      case Scaling::yarn:
        frequencies.push_back(yarn(*this, pair, frequency));
        break;
    }
  }
  return frequencies;
}

double RopeSpec::amplitude() const {
  if (scaling != Scaling::yarn) return 1.0;
  if (attention_factor != 0.0) return attention_factor;
  return factor <= 1.0 ? 1.0 : 0.1 * std::log(factor) + 1.0;
}

}  // namespace scalevec
