#include <scalevec/edits/materialise.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <set>
#include <span>
#include <utility>

#include <fmt/format.h>

#include <scalevec/core/checkpoint/json.h>
#include <scalevec/core/checkpoint/own_model.h>
#include <scalevec/core/checkpoint/write_model.h>
#include <scalevec/core/error.h>
#include <scalevec/core/selector.h>

namespace scalevec {
namespace {

constexpr const char* metadata_key = "scalevec.materialised";

// The norm that has the vector of this address.
NormSpec& norm_of(ModelSpec& spec, const Address& address) {
  const std::vector<std::string>& parts = address.parts();
  if (!address.layer()) return parts[0] == "final_norm" ? *spec.final_norm : *spec.head.output;
  LayerSpec& layer = spec.layers.at(static_cast<std::size_t>(*address.layer()));
  const bool attn = parts[2] == "attn";
  const std::string& what = parts[3];
  if (what == "input_norm") return attn ? *layer.attn_input : *layer.mlp_input;
  if (what == "output_norm") return attn ? *layer.attn_output : *layer.mlp_output;
  const std::map<std::string_view, LinearSpec*> maps{
      {"q", &layer.attn.q},      {"k", &layer.attn.k},  {"v", &layer.attn.v},     {"o", &layer.attn.o},
      {"gate", &layer.mlp.gate}, {"up", &layer.mlp.up}, {"down", &layer.mlp.down}};
  return *maps.at(std::string_view(what).substr(0, what.find('_')))->output;  // "v", or "q" of "q_norm"
}

// The selected sites that have components.
std::vector<const Site*> chosen_sites(const Checkpoint& checkpoint, std::string_view text) {
  const std::vector<Site>& sites = checkpoint.sites();
  std::vector<const Site*> chosen;
  for (const Selection& selection : Selector::parse(text).select(sites)) {
    const Site& site = sites[selection.site];
    if (!selection.whole) {
      fail(ErrorCode::addr,
           fmt::format("materialise: channels of '{}' are selected; a vector becomes plain as a whole",
                       site.address.str()),
           {.tensor = site.address.str(), .expected = "a selector without channels"});
    }
    if (!in_one_tensor(site.parametrisation)) chosen.push_back(&site);
  }
  if (chosen.empty()) {
    fail(ErrorCode::no_effect,
         fmt::format("materialise: every vector that '{}' names is plain already, and can be edited as it is",
                     printable(text)),
         {.file = checkpoint.path().string(), .expected = "a vector with components (OR, ER)"});
  }
  return chosen;
}

// Sets the form of the chosen norms to plain; whoever shares such a norm must be chosen too.
ModelSpec plain_spec(const Checkpoint& checkpoint, const std::vector<const Site*>& chosen) {
  ModelSpec spec = checkpoint.spec();
  std::set<std::string> plain;
  for (const Site* site : chosen) {
    norm_of(spec, site->address).parametrisation = Parametrisation::plain;
    plain.insert(site->address.str());
  }
  for (const Site& site : spec.sites()) {
    if (site.width == 0 || site.parametrisation != Parametrisation::plain) continue;
    const std::string& address = site.address.str();
    const bool has_components = checkpoint.has_slot(address + ".alpha");
    if (!has_components || plain.contains(address)) continue;
    const std::string norm = site.address.without_branch().str();
    fail(ErrorCode::addr,
         fmt::format(
             "materialise: '{}' is a branch of a norm of which another one is selected, and the norm's "
             "branches have one form; select '{}', which means them all",
             address, norm),
         {.tensor = address, .expected = norm});
  }
  return spec;
}

// Effective values in the dtype of what was stored, and how far that is from them.
std::pair<std::vector<std::byte>, double> rounded(const Checkpoint& checkpoint, const Site& site,
                                                  DType dtype) {
  const std::vector<double> values = checkpoint.effective(site);
  const std::size_t size = scale_dtype_bytes(dtype);
  std::vector<std::byte> bytes(values.size() * size);
  double largest = 0.0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::span<std::byte> place = std::span(bytes).subspan(i * size, size);
    encode(dtype, values[i], place);
    const double stored = decode(dtype, place)[0];
    if (!std::isfinite(stored)) {
      fail(ErrorCode::value,
           fmt::format("materialise: the effective value {} of '{}' at channel {} cannot be stored as {}",
                       values[i], site.address.str(), i, dtype_name(dtype)),
           {.tensor = site.address.str(), .index = static_cast<std::int64_t>(i)});
    }
    largest = std::max(largest, std::abs(stored - values[i]));
  }
  return {std::move(bytes), largest};
}

// Puts a tensor of the checkpoint into another file, a piece at a time.
void copy_tensor(const Checkpoint& checkpoint, const TensorInfo& tensor, const NewTensor::Put& put) {
  constexpr std::uint64_t most = std::uint64_t{1} << 20;
  std::vector<std::byte> piece;
  for (std::uint64_t begin = 0; begin < tensor.bytes; begin += piece.size()) {
    piece.resize(std::min(most, tensor.bytes - begin));
    checkpoint.read(tensor, begin, piece);
    put(piece);
  }
}

bool is_record(const std::string& text) {
  try {
    check_json(text, "what was materialised before");
  } catch (const Error&) {
    return false;
  }
  return text.starts_with("[{") && text.ends_with("}]");
}

// A JSON list, behind what an earlier one holds.
std::string record_of(const std::vector<MaterialisedVector>& vectors, const std::string& earlier) {
  std::string list = is_record(earlier) ? earlier.substr(1, earlier.size() - 2) : "";
  for (const MaterialisedVector& vector : vectors) {
    list +=
        fmt::format(R"({}{{"address":{},"from":"{}","before":"{}","after":"{}","largest_rounding":{}}})",
                    list.empty() ? "" : ",", json_quoted(vector.address), parametrisation_name(vector.form),
                    vector.before, vector.after, vector.largest_rounding);
  }
  return "[" + list + "]";
}

}  // namespace

MaterialiseReport materialise(const Checkpoint& checkpoint, std::string_view selector,
                              const std::filesystem::path& destination, const Progress& progress) {
  const std::vector<const Site*> chosen = chosen_sites(checkpoint, selector);
  const ModelSpec spec = plain_spec(checkpoint, chosen);
  MaterialiseReport report;
  NewModel model{.config = own_config_text(spec),
                 .tensors = {},
                 .metadata = metadata_of(checkpoint.files()),
                 .files = tokenizer_files(checkpoint.files().at(0).parent_path())};
  for (const Site* site : chosen) {
    const std::string& address = site->address.str();
    const DType dtype = checkpoint.slot(address + ".alpha").dtype;
    auto [bytes, largest] = rounded(checkpoint, *site, dtype);
    report.vectors.push_back({.address = address,
                              .form = site->parametrisation,
                              .before = checkpoint.digest(*site),
                              .after = vector_digest(dtype, site->width, 0.0, bytes),
                              .largest_rounding = largest});
    model.tensors.push_back({.name = address + ".weight",
                             .dtype = dtype,
                             .shape = {static_cast<std::uint64_t>(site->width)},
                             .write = [bytes = std::move(bytes)](const NewTensor::Put& put) { put(bytes); }});
  }
  for (const auto& [slot, shape] : spec.tensor_slots()) {
    if (!checkpoint.has_slot(slot)) continue;  // made above
    const TensorInfo& tensor = checkpoint.slot(slot);
    model.tensors.push_back({.name = slot,
                             .dtype = tensor.dtype,
                             .shape = tensor.shape,
                             .write = [&checkpoint, &tensor](const NewTensor::Put& put) {
                               copy_tensor(checkpoint, tensor, put);
                             }});
  }
  model.metadata[metadata_key] = record_of(report.vectors, model.metadata[metadata_key]);
  const WrittenModel written = write_model(destination, model, progress);
  report.files = written.files, report.bytes = written.bytes;
  return report;
}

}  // namespace scalevec
