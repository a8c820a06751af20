#include <scalevec/core/checkpoint/slots.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <scalevec/core/error.h>

namespace scalevec {
namespace {

std::string shape_text(const std::vector<std::uint64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}
std::string shape_text(const std::vector<std::int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

bool same_shape(const std::vector<std::uint64_t>& found, const std::vector<std::int64_t>& expected) {
  return std::equal(found.begin(), found.end(), expected.begin(), expected.end(),
                    [](std::uint64_t a, std::int64_t b) { return a == static_cast<std::uint64_t>(b); });
}

// A vector must be one, whatever its length: the shape of the tensor speaks for itself.
void check_vector(const TensorInfo& tensor, const SlotCheck& check) {
  if (tensor.shape.size() != 1 || tensor.shape[0] == 0) {
    fail(ErrorCode::shape, fmt::format("model configuration: {} is to be a vector", printable(tensor.name)),
         {.file = check.file,
          .tensor = tensor.name,
          .expected = "one dimension",
          .found = shape_text(tensor.shape)});
  }
  if (!is_scale_dtype(tensor.dtype) && !is_quantised(tensor.dtype)) {
    fail(ErrorCode::dtype,
         fmt::format("model configuration: {} cannot hold a scale vector", printable(tensor.name)),
         {.file = check.file,
          .tensor = tensor.name,
          .expected = "F64, F32, F16 or BF16",
          .found = tensor.dtype_text});
  }
}

// Buffers that older versions of transformers saved: they follow from the configuration.
bool is_harmless(std::string_view name) {
  return name.ends_with(".rotary_emb.inv_freq") || name.ends_with(".rotary_emb.cos_cached") ||
         name.ends_with(".rotary_emb.sin_cached") || name.ends_with(".attn_rot_embd.weight") ||
         name.ends_with("embed_tokens.embed_scale");
}

bool is_weight(std::string_view name) {
  for (const std::string_view part : {"norm", ".weight", ".bias", "weight_", "_weight", "scale", "lora_"}) {
    if (name.find(part) != std::string_view::npos) return true;
  }
  return false;
}

void refuse_unclaimed(const TensorInfo& tensor, const SlotCheck& check) {
  const bool vision =
      tensor.name.find("vision") != std::string::npos || tensor.name.find("multi_modal") != std::string::npos;
  fail(ErrorCode::config,
       fmt::format("model configuration: no part of the model reads tensor {}: {}", printable(tensor.name),
                   vision ? "only models of text are read, and this one has a part for images"
                          : "the configuration leaves it out, or this is a variant that is not known"),
       {.file = check.file,
        .tensor = tensor.name,
        .expected = "no such tensor",
        .found = shape_text(tensor.shape)});
}

}  // namespace

std::string weight_slot(const ModelSpec& spec, const Site& site, const Link& link) {
  if (link.branch == "head") return spec.tied_head ? "embed.weight" : "head.weight";
  const std::vector<std::string>& parts = site.address.parts();  // layers.3.attn.input_norm
  return fmt::format("{}.{}.weight", fmt::join(parts.begin(), parts.begin() + 3, "."), link.branch);
}

Naming naming_of(const std::vector<TensorInfo>& tensors) {
  struct Prefixes {
    std::string_view body, head;
  };
  constexpr std::array known{Prefixes{"model.", ""}, Prefixes{"", ""},
                             Prefixes{"language_model.model.", "language_model."},
                             Prefixes{"model.language_model.", ""}};
  constexpr std::string_view embedding = "embed_tokens.weight";
  for (const TensorInfo& tensor : tensors) {
    for (const Prefixes& prefixes : known) {
      if (tensor.name == fmt::format("{}{}", prefixes.body, embedding)) {
        return {Container::safetensors, std::string(prefixes.body), std::string(prefixes.head)};
      }
    }
  }
  return {};
}

void check_layer_count(const Naming& naming, const std::vector<TensorInfo>& tensors, std::int64_t layers,
                       const SlotCheck& check) {
  const std::string prefix = naming.body + "layers.";
  std::set<std::int64_t> present;
  for (const TensorInfo& tensor : tensors) {
    if (!tensor.name.starts_with(prefix)) continue;
    const char* end = tensor.name.data() + tensor.name.size();
    std::int64_t layer = 0;
    const auto [after, error] = std::from_chars(tensor.name.data() + prefix.size(), end, layer);
    if (error == std::errc() && after != end && *after == '.') present.insert(layer);
  }
  const auto count = static_cast<std::int64_t>(present.size());
  if (count == layers && (count == 0 || *present.rbegin() == layers - 1)) return;
  fail(ErrorCode::config,
       fmt::format("model configuration: {} is {}, but the tensors are of {} layers; the two belong to "
                   "different models, "
                   "or a shard is missing",
                   check.layers_key, layers, count),
       {.file = check.file,
        .key = check.layers_key,
        .expected = std::to_string(count),
        .found = std::to_string(layers)});
}

SlotMap map_slots(const NativeName& native, const ModelSpec& spec, const std::vector<TensorInfo>& tensors,
                  const FindTensor& find, const SlotCheck& check, std::vector<std::string>& warnings) {
  SlotMap slots;
  std::set<const TensorInfo*> claimed;
  const auto shapes = spec.tensor_slots();
  std::set<std::string> vectors;
  for (const Site& site : spec.sites()) {
    for (const std::string_view part : {".weight", ".alpha", ".beta"})
      vectors.insert(fmt::format("{}{}", site.address.str(), part));
  }
  for (const auto& [slot, shape] : shapes) {
    const std::string name = native(slot);
    const TensorInfo* tensor = name.empty() ? nullptr : find(name);
    if (tensor == nullptr) {
      fail(ErrorCode::config,
           fmt::format("model configuration: tensor {} is missing ({}); is this one shard of several, or "
                       "another model's "
                       "configuration?",
                       name, slot),
           {.file = check.file, .tensor = name, .expected = shape_text(shape), .found = "no such tensor"});
    }
    if (vectors.contains(slot)) check_vector(*tensor, check);
    slots[slot] = tensor;
    claimed.insert(tensor);
  }
  // Vectors first: a wrong width is best told by the shortest tensor that shows it.
  for (const bool want_vector : {true, false}) {
    for (const auto& [slot, shape] : shapes) {
      const TensorInfo& tensor = *slots[slot];
      if ((shape.size() == 1) != want_vector || same_shape(tensor.shape, shape)) continue;
      fail(ErrorCode::config,
           fmt::format("model configuration: {} has shape {}, but the configuration says {}",
                       printable(tensor.name), shape_text(tensor.shape), shape_text(shape)),
           {.file = check.file,
            .tensor = tensor.name,
            .key = shape.back() == spec.width ? check.width_key : "",
            .expected = shape_text(shape),
            .found = shape_text(tensor.shape)});
    }
  }
  std::vector<std::string> ignored;
  for (const TensorInfo& tensor : tensors) {
    if (claimed.contains(&tensor) || is_harmless(tensor.name)) continue;
    if (is_weight(tensor.name)) refuse_unclaimed(tensor, check);
    ignored.push_back(printable(tensor.name, 80));
  }
  if (!ignored.empty()) {
    constexpr std::size_t most = 3;
    const std::size_t count = ignored.size();
    ignored.resize(std::min(count, most));
    warnings.push_back(fmt::format("{} tensors are not read: {}{}", count, fmt::join(ignored, ", "),
                                   count > most ? ", ..." : ""));
  }
  return slots;
}

}  // namespace scalevec
