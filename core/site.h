#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <scalevec/core/address.h>

namespace scalevec {

/// Where a norm's output goes; bindings/scalevec/guide.md tells them apart. The paper's Input-Norm is input +
/// final + latent.
enum class Role { input, output, residual, final, embedding, latent, conditional };
std::string_view role_name(Role role);
Role parse_role(std::string_view text);  // E_ADDR lists the roles

/// What divides the activation before the vector multiplies it.
enum class Statistics {
  rms,    // sqrt(mean(x^2) + eps)
  layer,  // sqrt(var(x) + eps), after the mean is taken off
  none,   // nothing: a bare scale
};
std::string_view statistics_name(Statistics kind);  // "rms", "layer", "none"

/// How the effective vector follows from what is stored.
enum class Parametrisation {
  plain,                // g = stored
  offset,               // g = offset + stored
  magnitude_direction,  // OR: g = beta * Norm(alpha)
  exponential,          // ER: g = exp(beta) * exp(alpha - mean(alpha))
};
std::string_view parametrisation_name(Parametrisation p);
/// Whether each entry of the vector follows from one stored number: plain and offset.
bool in_one_tensor(Parametrisation p);

/// A linear map beside a norm: `branch` is q, k, v, o, gate, up, down, router or head, and of all routed
/// experts experts.gate, experts.up or experts.down; `native` its weight's name in the file.
struct Link {
  std::string branch;
  std::string native;
};

/// One norm site of a model: where it stands and what is known of it without its values.
///
/// `width` is 0 for a norm without a vector (removal); such a site can be tapped and is in no ScaleMap.
struct Site {
  Address address;
  std::string native;       // the vector's name in the file
  std::string bias_native;  // empty: no bias
  Role role = Role::input;
  Statistics kind = Statistics::rms;
  Parametrisation parametrisation = Parametrisation::plain;
  double offset = 0.0;  // what the model adds to the stored vector
  double eps = 0.0;
  std::int64_t width = 0;       // entries of the vector
  std::int64_t group = 0;       // entries that share one rms; q/k-norm: the head dimension
  std::vector<Link> consumers;  // linear maps that read the norm's output
  std::vector<Link> producers;  // linear maps whose output it normalises
};

/// Refuses (E_CONFIG) a site whose effective values are in no single stored tensor.
void require_one_tensor(const Site& site);

}  // namespace scalevec
