#include <scalevec/edits/export_llama.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <scalevec/core/checkpoint/family.h>
#include <scalevec/core/checkpoint/own_model.h>
#include <scalevec/core/checkpoint/write_model.h>
#include <scalevec/core/error.h>

namespace scalevec {
namespace {

constexpr std::string_view as_it_is = "Use the model as it is: every command reads it.";

[[noreturn]] void refuse(const std::string& address, std::string_view reason,
                         std::string_view way_out = as_it_is) {
  fail(ErrorCode::config, fmt::format("export as llama: '{}' {}. {}", address, reason, way_out),
       {.tensor = address});
}

void check_input(const std::string& address, const std::optional<NormSpec>& norm, const ModelSpec& spec) {
  if (!norm) refuse(address, "is not there, and a Llama has a norm in that place");
  if (norm->statistics != Statistics::rms || norm->group != spec.width)
    refuse(address, "is no RMSNorm of the whole width, as a Llama's are");
  if (norm->eps != spec.final_norm->eps)
    refuse(address, fmt::format("has epsilon {}, the final norm {}; a Llama has one", norm->eps,
                                spec.final_norm->eps));
  if (norm->bias) refuse(address, "has a bias, and a Llama's norms have none");
}

void check_linear(const std::string& slot, const LinearSpec& map) {
  if (map.bias) refuse(slot, "has a bias, which this export does not write");
  if (!map.output || map.output->statistics == Statistics::none) {
    if (map.output && map.output->bias) refuse(slot + ".output_scale", "has a bias");
    return;
  }
  const bool q_or_k = slot.ends_with(".q") || slot.ends_with(".k");
  if (q_or_k && map.output->width < map.out) {
    refuse(slot + "_norm",
           "normalises each head, and divides by what it computes from the token: no weight can hold it. A "
           "Qwen3 "
           "has such norms, a Llama none");
  }
  refuse(slot + ".output_norm", "divides by what it computes from the token: no weight can hold it",
         "An output scale (ap, dp) folds, a norm (dnp) does not. Use the model as it is: every command reads "
         "it.");
}

void check_layer(const ModelSpec& spec, std::size_t index) {
  const LayerSpec& layer = spec.layers[index];
  const LayerSpec& first = spec.layers[0];
  const AttentionSpec& attn = layer.attn;
  const std::string at = fmt::format("layers.{}.", index);
  if (layer.mlp.mixture) refuse(at + "mlp", "is a mixture of experts, and a Llama has one MLP in each layer");
  for (const auto& [name, norm] :
       {std::pair{"attn.output_norm", &layer.attn_output}, std::pair{"mlp.output_norm", &layer.mlp_output}}) {
    if (*norm) {
      refuse(
          at + name,
          "stands before the residual add and divides by what it computes from the token: no weight can hold "
          "it. A Gemma has such norms, a Llama none");
    }
  }
  check_input(at + "attn.input_norm", layer.attn_input, spec);
  check_input(at + "mlp.input_norm", layer.mlp_input, spec);
  for (const auto& [name, map] :
       {std::pair{"attn.q", &attn.q}, std::pair{"attn.k", &attn.k}, std::pair{"attn.v", &attn.v},
        std::pair{"attn.o", &attn.o}, std::pair{"mlp.gate", &layer.mlp.gate},
        std::pair{"mlp.up", &layer.mlp.up}, std::pair{"mlp.down", &layer.mlp.down}}) {
    check_linear(at + name, *map);
  }
  if (layer.mlp.activation != Activation::silu) refuse(at + "mlp", "has another activation than SiLU");
  if (attn.window != 0) refuse(at + "attn", "sees a window only, and a Llama all that is before");
  const double usual = 1.0 / std::sqrt(static_cast<double>(attn.head_dim));
  if (std::abs(attn.scale - usual) > 1e-12 * usual)
    refuse(at + "attn", fmt::format("scales q . k by {}, a Llama by {}", attn.scale, usual));
  const RopeSpec& rope = attn.rope;
  if (rope.scaling != RopeSpec::Scaling::none || rope.pairing != RopeSpec::Pairing::halves ||
      rope.dimensions != attn.head_dim) {
    refuse(at + "attn", "has another rotary embedding than of whole heads in halves, without scaling");
  }
  if (attn.heads != first.attn.heads || attn.kv_heads != first.attn.kv_heads ||
      attn.head_dim != first.attn.head_dim || rope.base != first.attn.rope.base ||
      layer.mlp.gate.out != first.mlp.gate.out) {
    refuse(at + "attn", "or its MLP has other sizes than the first layer's, and a Llama's layers are alike");
  }
}

void check_spec(const ModelSpec& spec) {
  if (spec.family != own_family) {
    refuse("family", fmt::format("is {}, whose files are Hugging Face's or llama.cpp's already", spec.family),
           "This export is of models that scalevec trained.");
  }
  if (spec.layers.empty()) refuse("layers", "are none");
  if (!spec.final_norm) refuse("final_norm", "is not there, and a Llama has a norm in that place");
  if (spec.embedding_scale != 1.0) refuse("embed", "is scaled, and a Llama's embedding is not");
  for (std::size_t i = 0; i < spec.layers.size(); ++i) check_layer(spec, i);
  check_input("final_norm", spec.final_norm, spec);
  if (spec.head.output && spec.head.output->statistics == Statistics::none && spec.tied_head) {
    refuse("lm_head.output_scale",
           "cannot be folded: the head is the embedding, one tensor, and would change that too",
           "Train with a head of its own, or without a scale on it.");
  }
  if (spec.head.output && spec.head.output->statistics != Statistics::none)
    refuse("lm_head.output_norm", "divides by what it computes from the token: no weight can hold it");
  if (spec.head.bias) refuse("head", "has a bias, which this export does not write");
}

// Multiplies the entry of row i and column j by rows[i] columns[j]; an empty list stands for ones.
struct Factors {
  std::vector<double> rows, columns;
};

class Folder {
 public:
  Folder(const Checkpoint& checkpoint, const Progress& progress)
      : checkpoint_(checkpoint), spec_(checkpoint.spec()), progress_(progress) {
    for (const Site& site : checkpoint.sites()) vectors_[site.address.str()] = &site;
    for (const Family& family : families()) {
      if (family.model_type == "llama") llama_ = &family;
    }
  }

  LlamaReport run(const std::filesystem::path& destination) {
    add("embed", {});
    for (std::size_t i = 0; i < spec_.layers.size(); ++i) {
      const LayerSpec& layer = spec_.layers[i];
      const std::string attn = fmt::format("layers.{}.attn.", i), mlp = fmt::format("layers.{}.mlp.", i);
      add_norm(attn, {{"q", &layer.attn.q}, {"k", &layer.attn.k}, {"v", &layer.attn.v}});
      add(attn + "o", {output_scale(attn + "o"), {}});
      add_norm(mlp, {{"gate", &layer.mlp.gate}, {"up", &layer.mlp.up}});
      add(mlp + "down", {output_scale(mlp + "down"), {}});
    }
    add_vector("final_norm", vector("final_norm"));
    if (!spec_.tied_head) add("head", {output_scale("lm_head"), {}});
    model_.config = config();
    model_.files = tokenizer_files(checkpoint_.files().at(0).parent_path());
    const WrittenModel written = write_model(destination, model_, progress_);
    report_.files = written.files, report_.bytes = written.bytes;
    return report_;
  }

 private:
  // Effective values; nothing for a norm without a vector.
  std::vector<double> vector(const std::string& address) const {
    const auto found = vectors_.find(address);
    return found == vectors_.end() ? std::vector<double>() : checkpoint_.effective(*found->second);
  }
  std::vector<double> output_scale(const std::string& map) const { return vector(map + ".output_scale"); }

  std::string native(const std::string& slot) const { return native_name(*llama_, {}, slot); }

  // The norm before several maps, and these maps.
  void add_norm(const std::string& part, const std::vector<std::pair<const char*, const LinearSpec*>>& maps) {
    const std::string address = part + "input_norm";
    const std::vector<double> shared = vector(address);
    const bool branches = std::any_of(maps.begin(), maps.end(), [&](const auto& map) {
      return vectors_.contains(fmt::format("{}[{}]", address, map.first));
    });
    add_vector(address, branches ? std::vector<double>() : shared);
    for (const auto& [name, map] : maps) {
      std::vector<double> own = vector(fmt::format("{}[{}]", address, name));
      if (branches && own.empty()) own = shared;
      add(part + name, {output_scale(part + name), std::move(own)});
    }
  }

  void add_vector(const std::string& address, std::vector<double> values) {
    if (values.empty()) values.assign(static_cast<std::size_t>(spec_.width), 1.0);
    const std::string name = native(address + ".weight");
    model_.tensors.push_back({.name = name,
                              .dtype = DType::f32,
                              .shape = {values.size()},
                              .write = [this, name, values = std::move(values)](const NewTensor::Put& put) {
                                put(rounded(name, values));
                              }});
  }

  void add(const std::string& map, Factors factors) {
    const TensorInfo& tensor = checkpoint_.slot(map + ".weight");
    if (!factors.rows.empty() || !factors.columns.empty()) ++report_.folded;
    const std::string name = native(map + ".weight");
    model_.tensors.push_back({.name = name,
                              .dtype = DType::f32,
                              .shape = tensor.shape,
                              .write = [this, name, &tensor, factors = std::move(factors)](
                                           const NewTensor::Put& put) { fold(tensor, name, factors, put); }});
  }

  void fold(const TensorInfo& tensor, const std::string& name, const Factors& factors,
            const NewTensor::Put& put) {
    const std::uint64_t rows = tensor.shape.at(0), columns = tensor.shape.at(1);
    const std::uint64_t row_bytes = columns * scale_dtype_bytes(tensor.dtype);
    const std::uint64_t step = std::max<std::uint64_t>(1, (std::uint64_t{1} << 18) / columns);
    std::vector<std::byte> bytes;
    for (std::uint64_t first = 0; first < rows; first += step) {
      const std::uint64_t count = std::min(step, rows - first);
      bytes.resize(count * row_bytes);
      checkpoint_.read(tensor, first * row_bytes, bytes);
      std::vector<double> values = decode(tensor.dtype, bytes);
      for (std::uint64_t i = 0; i < count; ++i) {
        double* const row = values.data() + i * columns;
        const double scale = factors.rows.empty() ? 1.0 : factors.rows[(first + i) % factors.rows.size()];
        for (std::uint64_t j = 0; j < columns; ++j)
          row[j] *= factors.columns.empty() ? scale : scale * factors.columns[j];
      }
      put(rounded(name, values));
    }
  }

  std::vector<std::byte> rounded(const std::string& name, std::span<const double> values) {
    std::vector<std::byte> bytes(values.size() * sizeof(float));
    for (std::size_t i = 0; i < values.size(); ++i) {
      const auto single = static_cast<float>(values[i]);
      if (!std::isfinite(single)) {
        fail(ErrorCode::value, fmt::format("export as llama: {} has an entry {}", name, values[i]),
             {.tensor = name, .expected = "a finite float32", .found = fmt::format("{}", values[i])});
      }
      const double error = values[i] == 0.0 ? 0.0 : std::abs((single - values[i]) / values[i]);
      if (error > report_.largest_rounding) report_.largest_rounding = error, report_.rounded_most = name;
      encode(DType::f32, values[i], std::span(bytes).subspan(i * sizeof(float), sizeof(float)));
    }
    return bytes;
  }

  std::string config() const {
    const LayerSpec& layer = spec_.layers[0];
    // Without bos and eos transformers takes the ids that Llama's own tokenizer has.
    return fmt::format(R"({{
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "vocab_size": {},
  "hidden_size": {},
  "intermediate_size": {},
  "num_hidden_layers": {},
  "num_attention_heads": {},
  "num_key_value_heads": {},
  "head_dim": {},
  "hidden_act": "silu",
  "max_position_embeddings": {},
  "rms_norm_eps": {},
  "rope_theta": {},
  "tie_word_embeddings": {},
  "attention_bias": false,
  "mlp_bias": false,
  "bos_token_id": null,
  "eos_token_id": null,
  "torch_dtype": "float32"
}}
)",
                       spec_.vocabulary, spec_.width, layer.mlp.gate.out, spec_.layers.size(),
                       layer.attn.heads, layer.attn.kv_heads, layer.attn.head_dim, spec_.context,
                       spec_.final_norm->eps, layer.attn.rope.base, spec_.tied_head);
  }

  const Checkpoint& checkpoint_;
  const ModelSpec& spec_;
  const Progress& progress_;
  const Family* llama_ = nullptr;
  std::map<std::string, const Site*> vectors_;
  NewModel model_;
  LlamaReport report_;
};

}  // namespace

LlamaReport export_llama(const Checkpoint& checkpoint, const std::filesystem::path& destination,
                         const Progress& progress) {
  check_spec(checkpoint.spec());
  return Folder(checkpoint, progress).run(destination);
}

}  // namespace scalevec
