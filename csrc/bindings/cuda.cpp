// The operators on CUDA tensors: torch's current stream and its caching allocator for the CUDA rows.
// Nothing here waits for the GPU, so calls can be captured in CUDA graphs. Compiled only with the CUDA kernels.
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>

#include "../core/selector.h"
#include "../cuda/rows.h"
#include "operators.h"

namespace fastconv::bindings {
namespace {

struct DeviceGuard {
  explicit DeviceGuard(const Tensor& tensor) : guard(tensor.device()) {}
  c10::cuda::CUDAGuard guard;
};

Execution execution() {
  Execution e;
  e.stream = c10::cuda::getCurrentCUDAStream().stream();
  return e;
}

template <class Problem, class Operands, class Plan>
void run(const Problem& problem, const Operands& operands, const Plan& plan) {
  // Freed at the end of the call, before the kernels have run: the allocator hands it out again on this stream only.
  Tensor workspace;
  if (plan.workspace_bytes > 0)
    workspace = at::empty({plan.workspace_bytes},
                          at::device(at::Device(at::kCUDA, c10::cuda::current_device())).dtype(at::kByte));
  void* memory = workspace.defined() ? workspace.mutable_data_ptr() : nullptr;
  const Status status = plan.row->run(plan, operands, memory, execution());
  TORCH_CHECK(status.ok(), "fastconv: ", plan.row->name, " failed on ", text(problem), ": ", status.reason());
}

void run_conv(const ConvProblem& problem, const ConvOperands& operands, const Tensor&, std::string_view algorithm) {
  try {
    run(problem, operands, ConvPlan(select(problem, Device::cuda, 1, algorithm)));
  } catch (const Refusal& refusal) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, refusal.message);
  }
}

bool fuses(const ConvProblem& problem, std::string_view algorithm) {
  return fuses_max_pool(problem, Device::cuda, 1, algorithm);
}

void run_pool(const PoolProblem& problem, const PoolOperands& operands) {
  try {
    run(problem, operands, PoolPlan(select(problem, Device::cuda, 1)));
  } catch (const Refusal& refusal) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, refusal.message);
  }
}

void write_indices(const PoolProblem& problem, const void* offsets, int64_t* indices) {
  const Status status = cuda::pool_indices(problem, offsets, indices, execution().stream);
  TORCH_CHECK(status.ok(), "fastconv: ", status.reason());
}

}  // namespace

extern const Backend kCuda;
const Backend kCuda{Device::cuda, run_conv, run_pool, fuses, write_indices};

}  // namespace fastconv::bindings

TORCH_LIBRARY_IMPL(fastconv, CUDA, m) {
  using namespace fastconv::bindings;
  Operators<kCuda, DeviceGuard>::implement(m);
}
