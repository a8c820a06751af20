// list_sites MODEL: what the readers say of a model, as JSON. list_sites --families: the table of families.

#include <cstdio>
#include <iostream>

#include <nlohmann/json.hpp>

#include <scalevec/core/checkpoint/checkpoint.h>
#include <scalevec/core/checkpoint/family.h>
#include <scalevec/core/error.h>

using nlohmann::json;
using namespace scalevec;

namespace {

json links(const std::vector<Link>& from) {
  json made = json::array();
  for (const Link& link : from) made.push_back({{"branch", link.branch}, {"native", link.native}});
  return made;
}

json describe(const Checkpoint& model) {
  json sites = json::array(), layers = json::array(), slots = json::object();
  for (const Site& site : model.sites()) {
    sites.push_back({{"address", site.address.str()},
                     {"native", site.native},
                     {"role", role_name(site.role)},
                     {"kind", statistics_name(site.kind)},
                     {"parametrisation", parametrisation_name(site.parametrisation)},
                     {"offset", site.offset},
                     {"eps", site.eps},
                     {"width", site.width},
                     {"group", site.group},
                     {"consumers", links(site.consumers)},
                     {"producers", links(site.producers)},
                     {"digest", model.digest(site)},
                     {"effective", model.effective(site)}});
  }
  const ModelSpec& spec = model.spec();
  for (const LayerSpec& layer : spec.layers) {
    const RopeSpec& rope = layer.attn.rope;
    layers.push_back({{"window", layer.attn.window},
                      {"scale", layer.attn.scale},
                      {"heads", layer.attn.heads},
                      {"kv_heads", layer.attn.kv_heads},
                      {"head_dim", layer.attn.head_dim},
                      {"rope_base", rope.base},
                      {"inverse_frequencies", rope.inverse_frequencies()},
                      {"amplitude", rope.amplitude()},
                      {"interleaved", rope.pairing == RopeSpec::Pairing::interleaved},
                      {"gelu", layer.mlp.activation == Activation::gelu_tanh}});
  }
  for (const auto& [slot, shape] : spec.tensor_slots()) slots[slot] = {model.slot(slot).name, shape};
  return {{"family", model.family()},
          {"sites", sites},
          {"layers", layers},
          {"slots", slots},
          {"files", model.files().size()},
          {"vocabulary", spec.vocabulary},
          {"width", spec.width},
          {"context", spec.context},
          {"tied_head", spec.tied_head},
          {"embedding_scale", spec.embedding_scale},
          {"config", json::parse(model.config_json())},
          {"tokenizer_keys", json::parse(model.tokenizer_json()).size()},
          {"warnings", model.warnings()}};
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    std::cerr << "usage: list_sites MODEL | --families\n";
    return 2;
  }
  try {
    if (std::string_view(arguments[1]) == "--families") {
      json table = json::object();
      for (const Family& family : families())
        table[std::string(family.model_type)] = json::parse(family.defaults);
      std::cout << table << "\n";
    } else {
      std::cout << describe(Checkpoint::open(arguments[1])) << "\n";
    }
  } catch (const Error& error) {
    std::cerr << error.message() << "\n";
    return 1;
  }
  return 0;
}
