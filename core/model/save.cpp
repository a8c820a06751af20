#include <scalevec/core/model/save.h>

#include <cstddef>
#include <set>
#include <span>

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <scalevec/core/checkpoint/own_model.h>
#include <scalevec/core/checkpoint/tensor_file.h>
#include <scalevec/core/checkpoint/write_model.h>
#include <scalevec/core/error.h>
#include <scalevec/core/model/layers.h>
#include <scalevec/core/torch_dtype.h>

namespace scalevec {
namespace {

std::string content_of(const std::filesystem::path& path) {
  const SourceFile file(path);
  std::string content(file.size(), '\0');
  file.read(0, std::as_writable_bytes(std::span(content)));
  return content;
}

}  // namespace

NewTensor new_tensor(const std::string& name, const at::Tensor& tensor, std::optional<at::ScalarType> as) {
  const at::ScalarType dtype = as.value_or(tensor.scalar_type());
  const std::optional<DType> stored = file_dtype(dtype);
  if (!stored) {
    fail(ErrorCode::dtype,
         fmt::format("saving a model: '{}' is {}; convert it first", name, c10::toString(dtype)),
         {.tensor = name, .expected = "F64, F32, F16 or BF16"});
  }
  return {.name = name,
          .dtype = *stored,
          .shape = {tensor.sizes().begin(), tensor.sizes().end()},
          .write = [tensor, dtype](const NewTensor::Put& put) {
            const at::NoGradGuard no_grad;
            const at::Tensor host = tensor.detach().to(at::kCPU, dtype).contiguous();
            put({static_cast<const std::byte*>(host.const_data_ptr()), host.nbytes()});
          }};
}

void save_model(const std::filesystem::path& folder, const ModelSpec& spec,
                const std::map<std::string, at::Tensor>& slots, const SaveOptions& options,
                const Progress& progress) {
  if (options.weights && *options.weights != at::kFloat && *options.weights != at::kBFloat16) {
    fail(ErrorCode::dtype,
         fmt::format("saving a model: weights are not rounded to {}", c10::toString(*options.weights)),
         {.expected = "float32 or bfloat16"});
  }
  check_spec(spec);
  check_slots(spec, slots);
  std::set<std::string> vectors;
  for (const Site& site : spec.sites()) {
    for (const char* const part : {".weight", ".alpha", ".beta", ".bias"})
      vectors.insert(site.address.str() + part);
  }

  NewModel model{.config = own_config_text(spec), .tensors = {}, .metadata = options.metadata, .files = {}};
  for (const auto& [slot, tensor] : slots) {
    const bool as_it_is = vectors.contains(slot) || !options.weights;
    model.tensors.push_back(new_tensor(slot, tensor, as_it_is ? std::nullopt : options.weights));
  }
  for (const std::filesystem::path& file : options.files)
    model.files[file.filename().string()] = content_of(file);
  write_model(folder, model, progress);
}

}  // namespace scalevec
