#include "simulated.h"

#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include <atomic>

#include "../core/selector.h"
#include "../cuda/rows.h"

namespace fastconv::bindings {
namespace {

std::atomic<bool> on{false};

template <class Problem, class Operands, class Plan>
void run(const Problem& problem, const Operands& operands, const Plan& plan) {
  const c10::DataPtr workspace = c10::GetCPUAllocator()->allocate(static_cast<size_t>(plan.workspace_bytes));
  const Status status = plan.row->run(plan, operands, workspace.get(), {});
  TORCH_CHECK(status.ok(), "fastconv: ", plan.row->name, " failed on ", text(problem), ": ", status.reason());
}

}  // namespace

bool simulated_gpu() { return on.load(std::memory_order_relaxed); }
void set_simulated_gpu(bool value) { on = value; }

void simulated_run_conv(const ConvProblem& problem, const ConvOperands& operands, std::string_view algorithm) {
  try {
    run(problem, operands, ConvPlan(select(problem, Device::simulated, 1, algorithm)));
  } catch (const Refusal& refusal) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, refusal.message);
  }
}

void simulated_run_pool(const PoolProblem& problem, const PoolOperands& operands) {
  try {
    run(problem, operands, PoolPlan(select(problem, Device::simulated, 1)));
  } catch (const Refusal& refusal) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, refusal.message);
  }
}

void simulated_write_indices(const PoolProblem& problem, const void* offsets, int64_t* indices) {
  const Status status = simulated::pool_indices(problem, offsets, indices, nullptr);
  TORCH_CHECK(status.ok(), "fastconv: ", status.reason());
}

}  // namespace fastconv::bindings
