#include <scalevec/core/checkpoint/checkpoint.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <variant>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <scalevec/core/checkpoint/family.h>
#include <scalevec/core/checkpoint/gguf.h>
#include <scalevec/core/checkpoint/gguf_json.h>
#include <scalevec/core/checkpoint/hf_folder.h>
#include <scalevec/core/checkpoint/own_model.h>
#include <scalevec/core/checkpoint/quants.h>
#include <scalevec/core/checkpoint/slots.h>
#include <scalevec/core/error.h>
#include <scalevec/core/selector.h>
#include <scalevec/core/sha256.h>

namespace scalevec {
namespace {

namespace fs = std::filesystem;

// "org/model" where no such folder is: a name on a hub, which the user expects to be fetched.
[[noreturn]] void refuse_missing(const fs::path& path) {
  fail(ErrorCode::path,
       fmt::format(
           "opening a model: no such file or folder: {}; models are never downloaded, give a local path",
           printable(path.string())),
       {.file = path.string()});
}

[[noreturn]] void refuse_name(const fs::path& file, std::string_view kind, std::string_view name,
                              const std::vector<std::string>& names) {
  const std::string close = fmt::format("{}", fmt::join(nearest(name, names), ", "));
  fail(ErrorCode::addr,
       fmt::format("{} has no {} '{}'; nearest: {}", file.string(), kind, printable(name), close),
       {.file = file.string(), .tensor = printable(name), .expected = close});
}

bool begins_as_gguf(const fs::path& path) {
  const SourceFile file(path);
  std::array<std::byte, 4> magic{};
  if (file.size() < magic.size()) return false;
  file.read(0, magic);
  return std::equal(magic.begin(), magic.end(), reinterpret_cast<const std::byte*>("GGUF"));
}

std::variant<GgufFile, HfFolder> open_container(const fs::path& path, bool allow_links) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found) refuse_missing(path);
  const HfFolder::Options options{.allow_links = allow_links};
  if (fs::is_directory(status)) return HfFolder(path, options);
  // A name that says what the file is decides, so that the reader can say what it is instead.
  const fs::path extension = path.extension();
  if (extension == ".gguf" || (extension != ".safetensors" && begins_as_gguf(path))) return GgufFile(path);
  return HfFolder(path, options);
}

// What core/components.h does to tensors.
std::vector<double> compose(Parametrisation form, std::vector<double> alpha, double beta) {
  const auto n = static_cast<double>(alpha.size());
  if (form == Parametrisation::magnitude_direction) {
    const double squares = std::inner_product(alpha.begin(), alpha.end(), alpha.begin(), 0.0);
    const double factor = beta / std::sqrt(squares / n);
    for (double& value : alpha) value *= factor;
  } else {
    const double mean = std::accumulate(alpha.begin(), alpha.end(), 0.0) / n;
    for (double& value : alpha) value = std::exp(value - mean + beta);
  }
  return alpha;
}

}  // namespace

struct Checkpoint::State {
  fs::path path;
  std::variant<GgufFile, HfFolder> file;
  std::vector<fs::path> files;
  ModelSpec spec;
  SlotMap slots;
  std::vector<Site> sites;
  std::vector<std::string> warnings;

  const GgufFile* gguf() const { return std::get_if<GgufFile>(&file); }
  const HfFolder& folder() const { return std::get<HfFolder>(file); }
  const std::vector<TensorInfo>& tensors() const { return gguf() ? gguf()->tensors() : folder().tensors(); }
  const TensorInfo* find(std::string_view name) const {
    return gguf() ? gguf()->find(name) : folder().find(name);
  }

  void read_spec();
  void list_sites();
  std::string file_of(const TensorInfo& tensor) const { return files.at(tensor.file).string(); }
};

Checkpoint::Checkpoint(std::unique_ptr<State> state) : state_(std::move(state)) {}
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;
Checkpoint::~Checkpoint() = default;

Checkpoint Checkpoint::open(const fs::path& path, Options options) {
  auto state = std::make_unique<State>(State{.path = path,
                                             .file = open_container(path, options.allow_links),
                                             .files = {},
                                             .spec = {},
                                             .slots = {},
                                             .sites = {},
                                             .warnings = {}});
  if (const GgufFile* gguf = state->gguf()) {
    state->files = {gguf->path()};
  } else {
    for (const SourceFile& file : state->folder().files()) state->files.push_back(file.path());
  }
  state->read_spec();
  return Checkpoint(std::move(state));
}

void Checkpoint::State::read_spec() {
  const FindTensor find_tensor = [this](std::string_view name) { return find(name); };
  const Family* family = nullptr;
  Naming naming;
  NativeName native = [&](std::string_view slot) { return native_name(*family, naming, slot); };
  SlotCheck check;
  if (const GgufFile* file_ = gguf()) {
    family = &family_of_gguf(*file_);
    naming.container = Container::gguf;
    check.layers_key = file_->model_key("block_count");
    check.width_key = file_->model_key("embedding_length");
    check.file = file_->path().string();
    spec = assemble(*family, facts_of_gguf(*family, *file_, warnings));
  } else {
    check.file = (folder().folder() / "config.json").string();
    const nlohmann::json config = folder().config();
    if (is_own_model(config)) {
      check.width_key = "width";
      native = [](std::string_view slot) { return std::string(slot); };
      spec = spec_from_json(config, check.file);
    } else {
      family = &family_of_config(config, check.file);
      warnings = config_warnings(config);
      naming = naming_of(tensors());
      check.layers_key = family->config_in.empty() ? "num_hidden_layers"
                                                   : fmt::format("{}.num_hidden_layers", family->config_in);
      check.width_key = "hidden_size";
      const ModelFacts facts = facts_of_config(*family, config, check.file, naming, find_tensor, warnings);
      check_layer_count(naming, tensors(), static_cast<std::int64_t>(facts.layers.size()), check);
      spec = assemble(*family, facts);
    }
  }
  slots = map_slots(native, spec, tensors(), find_tensor, check, warnings);
  list_sites();
}

void Checkpoint::State::list_sites() {
  const auto native = [&](const std::string& slot) {
    const auto found = slots.find(slot);
    return found == slots.end() ? std::string() : found->second->name;
  };
  for (Site& site : spec.sites()) {
    if (site.width == 0) continue;
    const std::string slot = site.address.str();
    site.native = native(slot + (in_one_tensor(site.parametrisation) ? ".weight" : ".alpha"));
    site.bias_native = native(slot + ".bias");
    for (std::vector<Link>* links : {&site.consumers, &site.producers}) {
      for (Link& link : *links) link.native = native(weight_slot(spec, site, link));
    }
    sites.push_back(std::move(site));
  }
}

const fs::path& Checkpoint::path() const { return state_->path; }
Container Checkpoint::container() const { return state_->gguf() ? Container::gguf : Container::safetensors; }
const ModelSpec& Checkpoint::spec() const { return state_->spec; }
const std::vector<Site>& Checkpoint::sites() const { return state_->sites; }
const std::vector<fs::path>& Checkpoint::files() const { return state_->files; }
const std::vector<TensorInfo>& Checkpoint::tensors() const { return state_->tensors(); }
const std::vector<std::string>& Checkpoint::warnings() const { return state_->warnings; }

const TensorInfo& Checkpoint::tensor(std::string_view native) const {
  if (const TensorInfo* found = state_->find(native)) return *found;
  std::vector<std::string> names;
  for (const TensorInfo& tensor : tensors()) names.push_back(tensor.name);
  refuse_name(path(), "tensor", native, names);
}

bool Checkpoint::has_slot(std::string_view canonical) const {
  return state_->slots.find(std::string(canonical)) != state_->slots.end();
}

const TensorInfo& Checkpoint::slot(std::string_view canonical) const {
  const auto found = state_->slots.find(std::string(canonical));
  if (found != state_->slots.end()) return *found->second;
  std::vector<std::string> names;
  for (const auto& [slot, tensor] : state_->slots) names.push_back(slot);
  refuse_name(path(), "slot", canonical, names);
}

std::vector<std::byte> Checkpoint::read(const TensorInfo& tensor) const {
  std::vector<std::byte> bytes(tensor.bytes);
  read(tensor, 0, bytes);
  return bytes;
}

void Checkpoint::read(const TensorInfo& tensor, std::uint64_t first_byte, std::span<std::byte> out) const {
  if (const GgufFile* gguf = state_->gguf()) {
    gguf->read(tensor, first_byte, out);
  } else {
    state_->folder().read(tensor, first_byte, out);
  }
}

std::vector<double> Checkpoint::effective(const Site& site) const {
  if (!in_one_tensor(site.parametrisation)) {
    const auto component = [&](std::string_view name) {
      const TensorInfo& info = slot(fmt::format("{}.{}", site.address.str(), name));
      return decode(info.dtype, read(info));
    };
    return compose(site.parametrisation, component("alpha"), component("beta").at(0));
  }
  const TensorInfo& info = tensor(site.native);
  const std::vector<std::byte> bytes = read(info);
  std::vector<double> values;
  if (is_scale_dtype(info.dtype)) {
    values = decode(info.dtype, bytes);
  } else {
    std::vector<float> dequantised(info.elements());
    dequantise(info, bytes, dequantised);
    values.assign(dequantised.begin(), dequantised.end());
  }
  for (double& value : values) value += site.offset;
  return values;
}

std::string Checkpoint::digest(const Site& site) const {
  const TensorInfo& info = tensor(site.native);
  std::vector<std::byte> bytes = read(info);
  if (!in_one_tensor(site.parametrisation)) {
    const std::vector<std::byte> beta = read(slot(site.address.str() + ".beta"));
    bytes.insert(bytes.end(), beta.begin(), beta.end());
  }
  return vector_digest(info.dtype, site.width, site.offset, bytes);
}

std::string Checkpoint::config_json() const {
  if (const GgufFile* gguf = state_->gguf()) return metadata_json(gguf->metadata());
  return state_->folder().config_text();
}

std::string Checkpoint::tokenizer_json() const {
  const GgufFile* gguf = state_->gguf();
  return gguf == nullptr ? "null" : scalevec::tokenizer_json(gguf->metadata());
}

std::string vector_digest(DType dtype, std::int64_t width, double offset, std::span<const std::byte> stored) {
  const std::string head =
      fmt::format("scalevec vector 1\n{}\n{}\n{:.17g}\n", dtype_name(dtype), width, offset);
  Sha256 hash;
  hash.update(std::as_bytes(std::span(head)));
  hash.update(stored);
  return "sha256:" + hash.hex();
}

}  // namespace scalevec
