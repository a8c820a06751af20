#include <scalevec/trainer/state_file.h>

#include <charconv>
#include <cstddef>
#include <span>
#include <vector>

#include <fmt/format.h>

#include <scalevec/core/atomic_file.h>
#include <scalevec/core/checkpoint/safetensors.h>
#include <scalevec/core/error.h>
#include <scalevec/core/model/save.h>
#include <scalevec/core/ops.h>
#include <scalevec/core/torch_dtype.h>

namespace scalevec {
namespace {

constexpr const char* file_name = "state.safetensors";
const std::string watched = "watcher:";
constexpr const char* schema = "scalevec training state 1";

}  // namespace

void write_state(const std::filesystem::path& folder, const TrainingState& state) {
  AtomicFolder made(folder);
  std::vector<NewTensor> tensors;
  for (const auto& [name, tensor] : state.tensors) tensors.push_back(new_tensor(name, tensor));
  for (const auto& [name, tensor] : state.watched) tensors.push_back(new_tensor(watched + name, tensor));
  write_safetensors(made.path() / file_name, tensors,
                    {{"schema", schema},
                     {"step", std::to_string(state.step)},
                     {"experiment", state.experiment},
                     {"corpus", state.corpus}});
  made.commit();
}

TrainingState read_state(const std::filesystem::path& folder) {
  const SafetensorsFile file(folder / file_name);
  const std::map<std::string, std::string> metadata = file.metadata();
  const auto field = [&](const char* key) {
    const auto found = metadata.find(key);
    if (found != metadata.end()) return found->second;
    fail(ErrorCode::schema, fmt::format("resuming: the state has no '{}': it is not of a training run", key),
         {.file = file.path().string(), .key = key});
  };
  if (field("schema") != schema) {
    fail(ErrorCode::schema, "resuming: the state is of another kind or version",
         {.file = file.path().string(),
          .key = "schema",
          .expected = schema,
          .found = printable(field("schema"))});
  }
  TrainingState out;
  out.experiment = field("experiment");
  out.corpus = field("corpus");
  const std::string step = field("step");
  const auto [end, error] = std::from_chars(step.data(), step.data() + step.size(), out.step);
  if (error != std::errc() || end != step.data() + step.size() || out.step < 0) {
    fail(ErrorCode::schema, "resuming: the state's step is no number",
         {.file = file.path().string(),
          .key = "step",
          .expected = "a whole number",
          .found = printable(step)});
  }
  for (const TensorInfo& info : file.tensors()) {
    const std::vector<std::int64_t> shape(info.shape.begin(), info.shape.end());
    const std::optional<at::ScalarType> dtype = torch_dtype(info.dtype);
    if (!dtype) {
      fail(ErrorCode::dtype,
           fmt::format("resuming: '{}' is {}: it is not of a training run", printable(info.name),
                       info.dtype_text),
           {.file = file.path().string(),
            .tensor = printable(info.name),
            .expected = "F64, F32, F16 or BF16"});
    }
    const at::Tensor tensor = ops::empty(shape, *dtype);
    file.read(info, {static_cast<std::byte*>(tensor.mutable_data_ptr()), info.bytes});
    if (info.name.starts_with(watched)) {
      out.watched[info.name.substr(watched.size())] = tensor;
    } else {
      out.tensors[info.name] = tensor;
    }
  }
  return out;
}

}  // namespace scalevec
