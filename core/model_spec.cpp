#include <scalevec/core/model_spec.h>

#include <algorithm>
#include <functional>

#include <fmt/format.h>

namespace scalevec {
namespace {

// A linear map with its place: "layers.3.attn.q" and the branch "q".
struct PlacedLinear {
  std::string slot;
  std::string branch;
  const LinearSpec* map;

  // Routed experts read the vector of the shared one's branch: "gate" of "experts.gate".
  std::string vector() const { return branch.substr(branch.find('.') + 1); }
};

struct PlacedNorm {
  std::string address;
  const NormSpec* norm;
  Role role;
  std::vector<PlacedLinear> consumers, producers;
};

using SeeNorm = std::function<void(const PlacedNorm&)>;

// The norm before several linear maps: one vector for those that share it, then one for each branch that has
// its own.
void visit_input_norm(const std::string& address, const std::optional<NormSpec>& norm, Role role,
                      const std::vector<PlacedLinear>& readers, const SeeNorm& see) {
  if (!norm) return;
  std::vector<PlacedLinear> sharing;
  std::vector<PlacedNorm> own;
  for (const PlacedLinear& reader : readers) {
    if (!reader.map->own_vector || norm->width == 0) {
      sharing.push_back(reader);
      continue;
    }
    const std::string branch = fmt::format("{}[{}]", address, reader.vector());
    const auto same = [&](const PlacedNorm& placed) { return placed.address == branch; };
    const auto found = std::find_if(own.begin(), own.end(), same);
    if (found == own.end()) {
      own.push_back({branch, &*norm, role, {reader}, {}});
    } else {
      found->consumers.push_back(reader);
    }
  }
  if (!sharing.empty()) see({address, &*norm, role, sharing, {}});
  for (const PlacedNorm& placed : own) see(placed);
}

// q/k-norm is the norm of each head with one vector for all heads; whatever else stands on a linear map's
// output has the map's address.
std::string output_address(const PlacedLinear& linear, const NormSpec& norm, const std::string& part,
                           std::int64_t head_dim) {
  if (norm.statistics == Statistics::none) return linear.slot + ".output_scale";
  const bool per_head = norm.group == head_dim && (norm.width == head_dim || norm.width == 0);
  if ((linear.branch == "q" || linear.branch == "k") && per_head) {
    return fmt::format("{}.{}_norm", part, linear.branch);
  }
  return linear.slot + ".output_norm";
}

void visit_output(const PlacedLinear& linear, const std::string& part, std::int64_t head_dim,
                  const SeeNorm& see) {
  if (!linear.map->output) return;
  see({output_address(linear, *linear.map->output, part, head_dim),
       &*linear.map->output,
       Role::output,
       {},
       {linear}});
}

// Every norm in forward order.
void visit_norms(const ModelSpec& spec, const SeeNorm& see) {
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    const LayerSpec& layer = spec.layers[i];
    const std::string attn = fmt::format("layers.{}.attn", i), mlp = fmt::format("layers.{}.mlp", i);
    const auto in = [](const std::string& part, const char* branch, const LinearSpec& map) {
      return PlacedLinear{part + "." + branch, branch, &map};
    };
    const PlacedLinear q = in(attn, "q", layer.attn.q), k = in(attn, "k", layer.attn.k),
                       v = in(attn, "v", layer.attn.v), o = in(attn, "o", layer.attn.o);
    std::vector<PlacedLinear> readers, dense, last;  // of the MLP
    if (layer.mlp.dense_part()) {
      dense = {in(mlp, "gate", layer.mlp.gate), in(mlp, "up", layer.mlp.up), in(mlp, "down", layer.mlp.down)};
      readers = {dense[0], dense[1]};
      last = {dense[2]};
    }
    if (const auto& mixture = layer.mlp.mixture) {
      readers.push_back(in(mlp, "router", mixture->router));
      readers.push_back(in(mlp, "experts.gate", mixture->gate));
      readers.push_back(in(mlp, "experts.up", mixture->up));
      last.push_back(in(mlp, "experts.down", mixture->down));
    }
    visit_input_norm(attn + ".input_norm", layer.attn_input, Role::input, {q, k, v}, see);
    for (const PlacedLinear& linear : {q, k, v, o}) visit_output(linear, attn, layer.attn.head_dim, see);
    if (layer.attn_output) see({attn + ".output_norm", &*layer.attn_output, Role::output, {}, {o}});
    visit_input_norm(mlp + ".input_norm", layer.mlp_input, Role::input, readers, see);
    for (const PlacedLinear& linear : dense) visit_output(linear, mlp, 0, see);
    if (layer.mlp_output) see({mlp + ".output_norm", &*layer.mlp_output, Role::output, {}, last});
  }
  const PlacedLinear head{"head", "head", &spec.head};
  if (spec.final_norm) see({"final_norm", &*spec.final_norm, Role::final, {head}, {}});
  if (spec.head.output) {
    visit_output({"lm_head", "head", &spec.head}, "lm_head", 0, see);
  }
}

std::vector<Link> links(const std::vector<PlacedLinear>& linears) {
  std::vector<Link> made;
  for (const PlacedLinear& linear : linears) made.push_back({linear.branch, ""});
  return made;
}

}  // namespace

std::vector<Site> ModelSpec::sites() const {
  std::vector<Site> sites;
  visit_norms(*this, [&](const PlacedNorm& placed) {
    const NormSpec& norm = *placed.norm;
    Site site;
    site.address = Address::parse(placed.address);
    site.role = placed.role;
    site.kind = norm.statistics;
    site.parametrisation = norm.parametrisation;
    site.offset = norm.offset;
    site.eps = norm.eps;
    site.width = norm.width;
    site.group = norm.group;
    site.consumers = links(placed.consumers);
    site.producers = links(placed.producers);
    sites.push_back(std::move(site));
  });
  return sites;
}

std::map<std::string, std::vector<std::int64_t>> ModelSpec::tensor_slots() const {
  std::map<std::string, std::vector<std::int64_t>> slots;
  const auto add_linear = [&](const std::string& slot, const LinearSpec& linear) {
    slots[slot + ".weight"] = {linear.out, linear.in};
    if (linear.bias) slots[slot + ".bias"] = {linear.out};
  };
  const auto add_experts = [&](const std::string& slot, const MixtureSpec& mixture, const LinearSpec& one) {
    slots[slot + ".weight"] = {mixture.experts, one.out, one.in};
  };
  slots["embed.weight"] = {vocabulary, width};
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const AttentionSpec& attn = layers[i].attn;
    const MlpSpec& mlp = layers[i].mlp;
    const std::string prefix = fmt::format("layers.{}.", i);
    add_linear(prefix + "attn.q", attn.q);
    add_linear(prefix + "attn.k", attn.k);
    add_linear(prefix + "attn.v", attn.v);
    add_linear(prefix + "attn.o", attn.o);
    if (mlp.dense_part()) {
      add_linear(prefix + "mlp.gate", mlp.gate);
      add_linear(prefix + "mlp.up", mlp.up);
      add_linear(prefix + "mlp.down", mlp.down);
    }
    if (mlp.mixture) {
      add_linear(prefix + "mlp.router", mlp.mixture->router);
      add_experts(prefix + "mlp.experts.gate", *mlp.mixture, mlp.mixture->gate);
      add_experts(prefix + "mlp.experts.up", *mlp.mixture, mlp.mixture->up);
      add_experts(prefix + "mlp.experts.down", *mlp.mixture, mlp.mixture->down);
    }
    if (!attn.rope.factors_tensor.empty()) slots[attn.rope.factors_tensor] = {attn.rope.dimensions / 2};
  }
  if (!tied_head) add_linear("head", head);
  if (tied_head && head.bias) slots["head.bias"] = {head.out};
  visit_norms(*this, [&](const PlacedNorm& placed) {
    const NormSpec& norm = *placed.norm;
    if (norm.width == 0) return;
    switch (norm.parametrisation) {
      case Parametrisation::plain:
      case Parametrisation::offset:
        slots[placed.address + ".weight"] = {norm.width};
        break;
      case Parametrisation::magnitude_direction:
      case Parametrisation::exponential:
        slots[placed.address + ".alpha"] = {norm.width};
        slots[placed.address + ".beta"] = {1};
        break;
    }
    if (norm.bias) slots[placed.address + ".bias"] = {norm.width};
  });
  return slots;
}

}  // namespace scalevec
