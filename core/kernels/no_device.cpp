// Built where no CUDA toolkit was found, in place of kernels/cuda.
#include <scalevec/core/error.h>
#include <scalevec/core/kernels/rms_norm.h>

namespace scalevec::kernels {
namespace {

[[noreturn]] void refuse() {
  fail(ErrorCode::device,
       "this scalevec was built without CUDA: use the CPU, or build with the `cuda` preset where nvcc is "
       "installed");
}

}  // namespace

int require_cuda_device() { refuse(); }
void rms_norm_cuda(const RmsForward<float, float>&, std::int64_t, void*) { refuse(); }
void rms_norm_cuda(const RmsForward<Bfloat16, float>&, std::int64_t, void*) { refuse(); }

}  // namespace scalevec::kernels
