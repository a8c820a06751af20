#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstring>
#include <exception>
#include <mutex>
#include <set>
#include <span>
#include <thread>
#include <utility>

#include <ATen/Parallel.h>

#include <scalevec/core/checkpoint/quants.h>
#include <scalevec/core/error.h>
#include <scalevec/core/kernels/bfloat16.h>
#include <scalevec/core/model/layers.h>
#include <scalevec/core/model/transformer.h>
#include <scalevec/core/ops.h>
#include <scalevec/core/torch_dtype.h>

namespace scalevec {
namespace {

/// One tensor of the file and where its values go.
struct Job {
  const TensorInfo* source;
  at::Tensor target;
  bool as_is;  // bytes, not values: a scale vector, or float64 for float64
};

/// A piece of a job: whole blocks, about a megabyte of values.
struct Piece {
  const Job* job;
  std::uint64_t first_byte, bytes;
  std::uint64_t first_element, elements;
};

std::vector<Piece> cut(const std::vector<Job>& jobs) {
  constexpr std::uint64_t most = 1u << 18;
  std::vector<Piece> pieces;
  for (const Job& job : jobs) {
    const BlockLayout block = block_layout(job.source->dtype);
    const std::uint64_t total = job.source->elements();
    const std::uint64_t step = std::max<std::uint64_t>(1, most / block.elements) * block.elements;
    for (std::uint64_t first = 0; first < total; first += step) {
      const std::uint64_t count = std::min(step, total - first);
      pieces.push_back(
          {&job, first / block.elements * block.bytes, count / block.elements * block.bytes, first, count});
    }
  }
  return pieces;
}

/// What one thread needs to read pieces; its buffers live as long as it does.
class Reader {
 public:
  explicit Reader(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  void read(const Piece& piece) {
    const Job& job = *piece.job;
    auto* const target = static_cast<std::byte*>(job.target.mutable_data_ptr()) +
                         piece.first_element * static_cast<std::uint64_t>(job.target.element_size());
    if (job.as_is) return checkpoint_.read(*job.source, piece.first_byte, {target, piece.bytes});
    bytes_.resize(piece.bytes);
    checkpoint_.read(*job.source, piece.first_byte, bytes_);
    if (job.target.scalar_type() == at::kFloat) {
      return dequantise(*job.source, bytes_, {reinterpret_cast<float*>(target), piece.elements});
    }
    values_.resize(piece.elements);
    dequantise(*job.source, bytes_, values_);
    if (job.target.scalar_type() == at::kDouble) {
      std::copy(values_.begin(), values_.end(), reinterpret_cast<double*>(target));
    } else {
      std::transform(values_.begin(), values_.end(), reinterpret_cast<kernels::Bfloat16*>(target),
                     [](float v) { return kernels::narrow<kernels::Bfloat16>(v); });
    }
  }

 private:
  const Checkpoint& checkpoint_;
  std::vector<std::byte> bytes_;
  std::vector<float> values_;
};

/// Reads all pieces on the threads that ATen would use; progress is reported on the calling thread. The first
/// exception stops the others and is thrown here.
void read_all(const Checkpoint& checkpoint, const std::vector<Piece>& pieces, const Progress& progress) {
  std::uint64_t total = 0;
  for (const Piece& piece : pieces) total += piece.bytes;
  std::atomic<std::size_t> next{0};
  std::atomic<std::uint64_t> done{0};
  std::atomic<bool> stop{false};
  std::mutex mutex;
  std::condition_variable changed;
  std::exception_ptr failure;
  std::size_t running = 0;

  const auto work = [&] {
    try {
      Reader reader(checkpoint);
      for (std::size_t i = next++; i < pieces.size() && !stop; i = next++) {
        reader.read(pieces[i]);
        done += pieces[i].bytes;
      }
    } catch (...) {
      stop = true;
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
    }
    const std::lock_guard lock(mutex);
    --running;
    changed.notify_one();
  };

  const auto count = std::clamp<std::size_t>(static_cast<std::size_t>(at::get_num_threads()), 1, 64);
  std::vector<std::jthread> threads;
  running = count;
  for (std::size_t i = 0; i < count; ++i) threads.emplace_back(work);
  try {
    std::unique_lock lock(mutex);
    while (!changed.wait_for(lock, std::chrono::milliseconds(50), [&] { return running == 0; })) {
      lock.unlock();
      report(progress, "loading weights", done, total);
      lock.lock();
    }
  } catch (...) {
    stop = true;
    throw;
  }
  if (failure) std::rethrow_exception(failure);
  report(progress, "loading weights", done, total);
}

// Every slot of the spec but those that are there, dequantised once.
std::map<std::string, at::Tensor> read_slots(const Checkpoint& checkpoint, at::ScalarType compute,
                                             const std::map<std::string, at::Tensor>& there,
                                             const Progress& progress) {
  std::set<std::string> factors;
  for (const LayerSpec& layer : checkpoint.spec().layers) factors.insert(layer.attn.rope.factors_tensor);
  std::map<std::string, at::Tensor> out;
  std::vector<Job> jobs;
  for (const auto& [slot, shape] : checkpoint.spec().tensor_slots()) {
    if (there.contains(slot)) continue;
    const TensorInfo& source = checkpoint.slot(slot);
    // Refuses, naming the tensor and its type, before anything is read.
    if (!can_dequantise(source.dtype)) dequantise(source, {}, {});
    const at::ScalarType dtype = factors.contains(slot) ? at::kFloat : compute;
    const std::vector<std::int64_t> file_shape(source.shape.begin(), source.shape.end());
    const at::Tensor target = ops::empty(file_shape, dtype);
    jobs.push_back({&source, target, source.dtype == DType::f64 && dtype == at::kDouble});
    out[slot] = target;
  }
  read_all(checkpoint, cut(jobs), progress);
  return out;
}

}  // namespace

ScaleMap read_scales(const Checkpoint& checkpoint, at::Device device) {
  check_options({.compute = at::kFloat, .device = device});
  const auto read = [&](const std::string& slot, std::int64_t width) {
    if (!checkpoint.has_slot(slot)) return at::Tensor();
    const TensorInfo& source = checkpoint.slot(slot);
    require_editable(source, checkpoint.files().at(source.file).string());
    const at::Tensor target = ops::empty({width}, *torch_dtype(source.dtype));
    checkpoint.read(source, 0, {static_cast<std::byte*>(target.mutable_data_ptr()), source.bytes});
    return target.to(device);
  };
  std::vector<ScaleVector> vectors;
  for (const Site& site : checkpoint.sites()) {
    const std::string address = site.address.str();
    const bool one = in_one_tensor(site.parametrisation);
    vectors.emplace_back(site, read(address + (one ? ".weight" : ".alpha"), site.width),
                         read(address + ".bias", site.width), read(address + ".beta", 1));
  }
  return ScaleMap(std::move(vectors));
}

std::map<std::string, at::Tensor> read_tensors(const Checkpoint& checkpoint, at::ScalarType dtype,
                                               const Progress& progress) {
  return read_slots(checkpoint, dtype, {}, progress);
}

std::unique_ptr<Transformer> Transformer::load(const Checkpoint& checkpoint, const Options& options,
                                               const Progress& progress) {
  check_options(options);
  return load(checkpoint, options, read_scales(checkpoint, options.device), progress);
}

std::unique_ptr<Transformer> Transformer::load(const Checkpoint& checkpoint, const Options& options,
                                               const ScaleMap& scales, const Progress& progress) {
  check_options(options);
  const ModelSpec& spec = checkpoint.spec();
  std::map<std::string, at::Tensor> slots;
  for (const ScaleVector& vector : scales) {
    const bool one = in_one_tensor(vector.site().parametrisation);
    slots[vector.address() + (one ? ".weight" : ".alpha")] = vector.stored();
    if (vector.beta().defined()) slots[vector.address() + ".beta"] = vector.beta();
    if (vector.bias().defined()) slots[vector.address() + ".bias"] = vector.bias();
  }
  for (const auto& [slot, tensor] : read_slots(checkpoint, options.compute, slots, progress))
    slots[slot] = tensor.to(options.device);
  auto made = std::make_unique<Transformer>(spec, std::move(slots), options, checkpoint.sites());
  made->scales() = scales;
  return made;
}

}  // namespace scalevec
