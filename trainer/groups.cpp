#include <scalevec/trainer/groups.h>

#include <array>
#include <cmath>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <scalevec/core/error.h>

namespace scalevec {
namespace {

constexpr std::array<std::string_view, 4> plain_groups{"linear", "embedding", "head", "bias"};
constexpr std::array<std::string_view, 3> decay_names{"iwd", "all", "none"};

std::string_view role_of(std::string_view group) { return group.substr(0, group.find('.')); }

// Replaces the values of the groups that `named` speaks of: by role first, then by full name.
void apply_named(std::map<std::string, double>& values, const std::map<std::string, double>& named,
                 std::string_view what) {
  for (const bool by_role : {true, false}) {
    for (const auto& [name, value] : named) {
      bool found = false;
      for (auto& [group, current] : values) {
        const bool role = role_of(group) == name && group != name;
        if (group != name && !role) continue;
        found = true;
        if (role == by_role) current = value;
      }
      std::vector<std::string> known;
      for (const auto& entry : values) known.push_back(entry.first);
      if (!found) {
        fail(ErrorCode::value,
             fmt::format("{}: this model has no group '{}' but {}", what, printable(name),
                         fmt::join(known, ", ")),
             {.key = printable(name), .expected = fmt::format("{}", fmt::join(known, ", "))});
      }
      if (!std::isfinite(value) || value < 0.0) {
        fail(ErrorCode::value, fmt::format("{} of group '{}' is {}", what, name, value),
             {.key = name, .expected = "0 or more", .found = fmt::format("{}", value)});
      }
    }
  }
}

}  // namespace

std::vector<ParameterGroup> parameter_groups(const ModelSpec& spec) {
  std::map<std::string, std::string> of_slot;  // a vector's slot to its group
  std::vector<std::string> vectors;            // group names in forward order
  const auto add = [&](const std::string& slot, const std::string& group) {
    of_slot[slot] = group;
    if (std::find(vectors.begin(), vectors.end(), group) == vectors.end()) vectors.push_back(group);
  };
  for (const Site& site : spec.sites()) {
    if (site.width == 0) continue;
    const std::string role(role_name(site.role)), slot = site.address.str();
    if (in_one_tensor(site.parametrisation)) {
      add(slot + ".weight", role);
    } else {
      for (const char* component : {".alpha", ".beta"}) add(slot + component, role + component);
    }
  }
  std::map<std::string, std::vector<std::string>> slots;
  for (const auto& [slot, shape] : spec.tensor_slots()) {
    const auto vector = of_slot.find(slot);
    const std::string group = vector != of_slot.end()   ? vector->second
                              : slot == "embed.weight"  ? "embedding"
                              : slot == "head.weight"   ? "head"
                              : slot.ends_with(".bias") ? "bias"
                                                        : "linear";
    slots[group].push_back(slot);
  }
  std::vector<ParameterGroup> groups;
  for (const std::string_view name : plain_groups) {
    if (const auto found = slots.find(std::string(name)); found != slots.end()) {
      groups.push_back({found->first, std::move(found->second), false});
    }
  }
  for (const std::string& name : vectors) groups.push_back({name, std::move(slots.at(name)), true});
  return groups;
}

VectorDecay parse_vector_decay(std::string_view text) {
  for (std::size_t i = 0; i < decay_names.size(); ++i) {
    if (text == decay_names[i]) return static_cast<VectorDecay>(i);
  }
  fail(ErrorCode::value, fmt::format("decay of scale vectors: '{}' is unknown", printable(text)),
       {.expected = fmt::format("{}", fmt::join(decay_names, ", ")), .found = printable(text)});
}

std::string_view vector_decay_name(VectorDecay decay) {
  return decay_names.at(static_cast<std::size_t>(decay));
}

std::map<std::string, double> group_decay(const std::vector<ParameterGroup>& groups, double weight_decay,
                                          VectorDecay vectors, const std::map<std::string, double>& named) {
  std::map<std::string, double> values;
  for (const ParameterGroup& group : groups) {
    const bool spared = vectors == VectorDecay::none || group.name.ends_with(".alpha") ||
                        (vectors == VectorDecay::input_norms && role_of(group.name) == "output");
    const bool decays = group.is_vector ? !spared : group.name != "bias";
    values[group.name] = decays ? weight_decay : 0.0;
  }
  apply_named(values, named, "weight decay");
  return values;
}

std::map<std::string, double> group_rates(const std::vector<ParameterGroup>& groups,
                                          const std::map<std::string, double>& named) {
  std::map<std::string, double> values;
  for (const ParameterGroup& group : groups) values[group.name] = 1.0;
  apply_named(values, named, "factor of the learning rate");
  return values;
}

}  // namespace scalevec
