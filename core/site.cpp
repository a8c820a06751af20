#include <scalevec/core/site.h>

#include <array>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <scalevec/core/error.h>

namespace scalevec {
namespace {

constexpr std::array<std::string_view, 7> role_names = {"input",     "output", "residual",   "final",
                                                        "embedding", "latent", "conditional"};

}  // namespace

std::string_view role_name(Role role) { return role_names.at(static_cast<std::size_t>(role)); }

Role parse_role(std::string_view text) {
  for (std::size_t i = 0; i < role_names.size(); ++i) {
    if (role_names[i] == text) return static_cast<Role>(i);
  }
  fail(ErrorCode::addr,
       fmt::format("role: '{}' is no role; roles are {}", printable(text), fmt::join(role_names, ", ")),
       {.key = "role", .found = printable(text)});
}

std::string_view statistics_name(Statistics kind) {
  switch (kind) {
    case Statistics::rms:
      return "rms";
    case Statistics::layer:
      return "layer";
    case Statistics::none:
      return "none";
  }
  return "unknown";
}

std::string_view parametrisation_name(Parametrisation p) {
  switch (p) {
    case Parametrisation::plain:
      return "plain";
    case Parametrisation::offset:
      return "offset";
    case Parametrisation::magnitude_direction:
      return "magnitude_direction";
    case Parametrisation::exponential:
      return "exponential";
  }
  return "unknown";
}

bool in_one_tensor(Parametrisation p) { return p == Parametrisation::plain || p == Parametrisation::offset; }

void require_one_tensor(const Site& site) {
  if (in_one_tensor(site.parametrisation)) return;
  const std::string_view name = parametrisation_name(site.parametrisation);
  fail(ErrorCode::config,
       fmt::format(
           "'{}' is parametrised as {}: no single stored tensor holds its effective values. First make it a "
           "plain vector: scalevec materialise MODEL '{}' -o DEST",
           site.address.str(), name, site.address.without_branch().str()),
       {.tensor = site.address.str(), .expected = "plain or offset", .found = std::string(name)});
}

}  // namespace scalevec
