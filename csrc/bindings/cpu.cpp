#include "cpu.h"

#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include "../core/selector.h"
#include "../cpu/processor.h"
#include "filter_cache.h"
#include "memory.h"
#include "simulated.h"

namespace fastconv::bindings {
namespace {

int thread_count() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

Execution execution(int threads) {
  Execution e;
  e.threads.count = threads;
  e.threads.launch = [](int count, void (*body)(int, void*), void* data) {
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t thread = begin; thread < end; ++thread) body(static_cast<int>(thread), data);
    });
  };
  return e;
}

// Scratch memory of one call. Small ones are kept, one for each thread; large ones, transformed filters that are not kept
// among them, go back at once.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) {
    if (bytes == 0) return;
    if (bytes > kKept) {
      own_ = new_memory(bytes, "scratch");
      data_ = own_.get();
      return;
    }
    thread_local c10::DataPtr kept;
    if (!kept) kept = c10::GetCPUAllocator()->allocate(kKept);
    data_ = kept.get();
  }
  void* data() const { return data_; }

 private:
  static constexpr int64_t kKept = 256 << 10;
  std::shared_ptr<void> own_;
  void* data_ = nullptr;
};

void require_own_isa() {
  TORCH_CHECK(!cpu::processor().other_isa, "fastconv: plans are made for ", cpu::name(cpu::processor().isa()),
              " now, for tests: nothing runs on the CPU");
}

template <class Problem, class Operands, class Plan>
void run_plan(const Problem& problem, const Operands& operands, const Plan& plan, const Execution& exec) {
  // A filter that was kept leaves its part of the workspace untouched: those pages are never even mapped.
  Workspace workspace(plan.workspace_bytes);
  const Status status = plan.row->run(plan, operands, workspace.data(), exec);
  TORCH_CHECK(status.ok(), "fastconv: ", plan.row->name, " failed on ", text(problem), ": ", status.reason());
}

void run_conv(const ConvProblem& problem, const ConvOperands& operands, const Tensor& weight,
              std::string_view algorithm) {
  if (simulated_gpu()) return simulated_run_conv(problem, operands, algorithm);
  require_own_isa();
  try {
    const ConvPlan plan = select(problem, Device::cpu, thread_count(), algorithm);
    Execution exec = execution(plan.threads);
    std::shared_ptr<const void> filter;
    if (weight.defined()) filter = kept_filter(plan, operands, weight, exec);
    exec.prepacked = filter.get();
    run_plan(problem, operands, plan, exec);
  } catch (const Refusal& refusal) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, refusal.message);
  }
}

bool fuses(const ConvProblem& problem, std::string_view algorithm) {
  if (simulated_gpu()) return fuses_max_pool(problem, Device::simulated, 1, algorithm);
  return fuses_max_pool(problem, Device::cpu, thread_count(), algorithm);
}

void run_pool(const PoolProblem& problem, const PoolOperands& operands) {
  if (simulated_gpu()) return simulated_run_pool(problem, operands);
  require_own_isa();
  try {
    const PoolPlan& plan = select(problem, Device::cpu, thread_count());
    run_plan(problem, operands, plan, execution(plan.threads));
  } catch (const Refusal& refusal) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, refusal.message);
  }
}

// Offsets are a caller's tensor: whatever they hold, an index is a position in the plane or -1.
template <class Offset>
void write_indices(const PoolProblem& p, const void* given, int64_t* indices) {
  const auto* offsets = static_cast<const Offset*>(given);
  const int64_t planes = p.n * p.c;
  const auto start = [&](int64_t i, int64_t in, int64_t out, int64_t stride, int64_t pad) {
    return p.adaptive ? PoolProblem::adaptive_begin(i, in, out) : i * stride - pad;
  };
  at::parallel_for(0, planes, 1, [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) {
      const int64_t n = plane / p.c, c = plane % p.c;
      for (int64_t y = 0; y < p.p; ++y)
        for (int64_t x = 0; x < p.q; ++x) {
          const auto at = [&](const Strides4& s) { return n * s[0] + c * s[1] + y * s[2] + x * s[3]; };
          const int64_t offset = offsets[at(p.offset_strides)];
          const int64_t row = start(y, p.h, p.p, p.stride_h, p.pad_top) + offset / p.s * p.dilation_h;
          const int64_t column = start(x, p.w, p.q, p.stride_w, p.pad_left) + offset % p.s * p.dilation_w;
          const bool inside = offset < p.r * p.s && row >= 0 && row < p.h && column >= 0 && column < p.w;
          indices[at(p.y_strides)] = inside ? row * p.w + column : -1;
        }
    }
  });
}

void write_indices(const PoolProblem& p, const void* offsets, int64_t* indices) {
  if (simulated_gpu()) return simulated_write_indices(p, offsets, indices);
  switch (p.offset_bytes) {
    case 1: return write_indices<uint8_t>(p, offsets, indices);
    case 2: return write_indices<uint16_t>(p, offsets, indices);
    default: return write_indices<uint32_t>(p, offsets, indices);
  }
}

}  // namespace

const Backend kCpu{Device::cpu, run_conv, run_pool, fuses, write_indices};

}  // namespace fastconv::bindings

TORCH_LIBRARY_IMPL(fastconv, CPU, m) { fastconv::bindings::CpuOperators::implement(m); }
