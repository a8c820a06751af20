#include <cuda_runtime.h>

#include <string>

#include <scalevec/core/error.h>
#include <scalevec/core/kernels/rms_norm.h>

namespace scalevec::kernels {
namespace {

constexpr int threads = 128;

__device__ inline float load(float v) { return v; }
__device__ inline float load(Bfloat16 v) { return __uint_as_float(static_cast<unsigned>(v.bits) << 16); }
__device__ inline void store(float& out, float v) { out = v; }
__device__ inline void store(Bfloat16& out, float v) {
  const unsigned bits = __float_as_uint(v);
  const unsigned rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  out.bits = static_cast<std::uint16_t>(v != v ? 0x7FC0u : rounded);
}

// One block a group: its threads stride over the entries, a tree in fixed order sums, and the entries are
// read again from cache. The products are kept apart (no fused multiply-add), so that normalized * g is y bit
// for bit.
template <class T>
__global__ void forward(RmsForward<T, float> c) {
  const std::int64_t groups = c.width / c.group;
  const std::int64_t index = blockIdx.x;
  const std::int64_t at = index * c.group;
  const T* x = c.x + at;

  float sum = 0.0f;
  for (std::int64_t i = threadIdx.x; i < c.group; i += threads) {
    const float v = load(x[i]);
    sum = __fadd_rn(sum, __fmul_rn(v, v));
  }
  for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(0xFFFFFFFFu, sum, step);
  __shared__ float parts[threads / 32];
  __shared__ float shared_rstd;
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    double total = 0.0;
    for (const float part : parts) total += part;
    shared_rstd = static_cast<float>(1.0 / sqrt(total / static_cast<double>(c.group) + c.eps));
    if (c.rstd) c.rstd[index] = shared_rstd;
  }
  __syncthreads();

  const float rstd = shared_rstd;
  const float* g = c.g ? c.g + (index % groups) * c.group : nullptr;
  for (std::int64_t i = threadIdx.x; i < c.group; i += threads) {
    const float v = __fmul_rn(load(x[i]), rstd);
    if (c.normalized) c.normalized[at + i] = v;
    store(c.y[at + i], g ? __fmul_rn(v, g[i]) : v);
  }
}

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  fail(ErrorCode::device, std::string(what) + ": CUDA says \"" + cudaGetErrorString(status) +
                              "\": use the CPU, or look at the driver with nvidia-smi");
}

template <class T>
void launch(const RmsForward<T, float>& call, std::int64_t rows, void* stream) {
  const std::int64_t blocks = rows * (call.width / call.group);
  if (blocks == 0) return;
  if (blocks > 0x7FFFFFFF) {
    fail(ErrorCode::limit, "RMSNorm on CUDA: more than 2^31 - 1 groups in one call; split the batch");
  }
  forward<T><<<static_cast<unsigned>(blocks), threads, 0, static_cast<cudaStream_t>(stream)>>>(call);
  check(cudaGetLastError(), "RMSNorm on CUDA");
}

}  // namespace

int require_cuda_device() {
  int count = 0;
  check(cudaGetDeviceCount(&count), "looking for a CUDA device");
  if (count == 0) fail(ErrorCode::device, "no CUDA device: use the CPU");
  return count;
}

void rms_norm_cuda(const RmsForward<float, float>& call, std::int64_t rows, void* stream) {
  launch(call, rows, stream);
}
void rms_norm_cuda(const RmsForward<Bfloat16, float>& call, std::int64_t rows, void* stream) {
  launch(call, rows, stream);
}

}  // namespace scalevec::kernels
