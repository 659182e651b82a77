#include "cpu.h"

#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include "../core/selector.h"
#include "filter_cache.h"

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

// Scratch memory of one call. Small ones are kept, one for each thread; large ones go back at once.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) {
    if (bytes == 0) return;
    if (bytes > kKept) {
      own_ = c10::GetCPUAllocator()->allocate(bytes);
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
  c10::DataPtr own_;
  void* data_ = nullptr;
};

template <class Problem, class Operands, class Plan>
void run_plan(const Problem& problem, const Operands& operands, const Plan& plan, const Execution& exec) {
  // A filter that was kept leaves its part of the workspace untouched: those pages are never even mapped.
  Workspace workspace(plan.workspace_bytes);
  const Status status = plan.row->run(plan, operands, workspace.data(), exec);
  TORCH_CHECK(status.ok(), "fastconv: ", plan.row->name, " failed on ", text(problem), ": ", status.reason());
}

void run_conv(const ConvProblem& problem, const ConvOperands& operands, const Tensor& weight,
              std::string_view algorithm) {
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

void run_pool(const PoolProblem& problem, const PoolOperands& operands) {
  try {
    const PoolPlan& plan = select(problem, Device::cpu, thread_count());
    run_plan(problem, operands, plan, execution(plan.threads));
  } catch (const Refusal& refusal) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, refusal.message);
  }
}

// Offsets are a caller's tensor: whatever they hold, an index is a position in the plane or -1.
template <class Offset>
void write_indices(const PoolProblem& p, const Offset* offsets, int64_t* indices) {
  const int64_t planes = p.n * p.c;
  at::parallel_for(0, planes, 1, [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) {
      const int64_t n = plane / p.c, c = plane % p.c;
      for (int64_t y = 0; y < p.p; ++y)
        for (int64_t x = 0; x < p.q; ++x) {
          const auto at = [&](const Strides4& s) { return n * s[0] + c * s[1] + y * s[2] + x * s[3]; };
          const int64_t offset = offsets[at(p.offset_strides)];
          const int64_t row = y * p.stride_h - p.pad_top + offset / p.s * p.dilation_h;
          const int64_t column = x * p.stride_w - p.pad_left + offset % p.s * p.dilation_w;
          const bool inside = offset < p.r * p.s && row >= 0 && row < p.h && column >= 0 && column < p.w;
          indices[at(p.y_strides)] = inside ? row * p.w + column : -1;
        }
    }
  });
}

}  // namespace

static const Backend kCpu{Device::cpu, run_conv, run_pool};

Tensor cpu_conv2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                  const OptionalTensor& residual, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                  int64_t groups, std::string_view activation, std::string_view algorithm, std::string_view accuracy) {
  return conv2d(kCpu, input, weight, bias, residual,
                {stride, padding, dilation, groups, activation, algorithm, accuracy});
}

Tensor cpu_conv2d_grad_input(const Tensor& grad_output, const Tensor& weight, const OptionalTensor& output,
                             IntArrayRef input_size, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                             int64_t groups, std::string_view activation, std::string_view algorithm,
                             std::string_view accuracy) {
  return conv2d_grad_input(kCpu, grad_output, weight, output, input_size,
                           {stride, padding, dilation, groups, activation, algorithm, accuracy});
}

std::tuple<Tensor, Tensor> cpu_conv2d_grad_weight(const Tensor& input, const Tensor& grad_output,
                                                  const OptionalTensor& output, IntArrayRef weight_size, bool bias,
                                                  IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                                                  int64_t groups, std::string_view activation,
                                                  std::string_view algorithm, std::string_view accuracy) {
  return conv2d_grad_weight(kCpu, input, grad_output, output, weight_size, bias,
                            {stride, padding, dilation, groups, activation, algorithm, accuracy});
}

std::tuple<Tensor, Tensor> cpu_max_pool2d(const Tensor& input, IntArrayRef kernel_size, IntArrayRef stride,
                                          IntArrayRef padding, IntArrayRef dilation, bool ceil_mode) {
  return max_pool2d(kCpu, input, {kernel_size, stride, padding, dilation, ceil_mode}, true);
}

Tensor cpu_max_pool2d_values(const Tensor& input, IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding,
                             IntArrayRef dilation, bool ceil_mode) {
  return std::get<0>(max_pool2d(kCpu, input, {kernel_size, stride, padding, dilation, ceil_mode}, false));
}

Tensor cpu_max_pool2d_backward(const Tensor& grad_output, const Tensor& offsets, IntArrayRef input_size,
                               IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                               bool ceil_mode) {
  return max_pool2d_backward(kCpu, grad_output, offsets, input_size,
                             {kernel_size, stride, padding, dilation, ceil_mode});
}

Tensor cpu_max_pool2d_gather(const Tensor& input, const Tensor& offsets, IntArrayRef kernel_size, IntArrayRef stride,
                             IntArrayRef padding, IntArrayRef dilation, bool ceil_mode) {
  return max_pool2d_gather(kCpu, input, offsets, {kernel_size, stride, padding, dilation, ceil_mode});
}

Tensor cpu_max_pool2d_indices(const Tensor& offsets, IntArrayRef input_size, IntArrayRef kernel_size,
                              IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, bool ceil_mode) {
  Tensor indices;
  const PoolProblem p =
      max_pool2d_indices(offsets, input_size, {kernel_size, stride, padding, dilation, ceil_mode}, indices);
  int64_t* out = indices.mutable_data_ptr<int64_t>();
  const void* in = offsets.const_data_ptr();
  switch (p.offset_bytes) {
    case 1: write_indices(p, static_cast<const uint8_t*>(in), out); break;
    case 2: write_indices(p, static_cast<const uint16_t*>(in), out); break;
    default: write_indices(p, static_cast<const uint32_t*>(in), out); break;
  }
  return indices;
}

Tensor cpu_avg_pool2d(const Tensor& input, IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding,
                      bool ceil_mode, bool count_include_pad, std::optional<int64_t> divisor_override) {
  return avg_pool2d(kCpu, input, {kernel_size, stride, padding, {}, ceil_mode, count_include_pad, divisor_override});
}

Tensor cpu_avg_pool2d_backward(const Tensor& grad_output, IntArrayRef input_size, IntArrayRef kernel_size,
                               IntArrayRef stride, IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                               std::optional<int64_t> divisor_override) {
  return avg_pool2d_backward(kCpu, grad_output, input_size,
                             {kernel_size, stride, padding, {}, ceil_mode, count_include_pad, divisor_override});
}

}  // namespace fastconv::bindings

TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  using namespace fastconv::bindings;
  m.impl("conv2d", TORCH_FN(cpu_conv2d));
  m.impl("conv2d_grad_input", TORCH_FN(cpu_conv2d_grad_input));
  m.impl("conv2d_grad_weight", TORCH_FN(cpu_conv2d_grad_weight));
  m.impl("max_pool2d", TORCH_FN(cpu_max_pool2d));
  m.impl("max_pool2d_values", TORCH_FN(cpu_max_pool2d_values));
  m.impl("max_pool2d_backward", TORCH_FN(cpu_max_pool2d_backward));
  m.impl("max_pool2d_gather", TORCH_FN(cpu_max_pool2d_gather));
  m.impl("max_pool2d_indices", TORCH_FN(cpu_max_pool2d_indices));
  m.impl("avg_pool2d", TORCH_FN(cpu_avg_pool2d));
  m.impl("avg_pool2d_backward", TORCH_FN(cpu_avg_pool2d_backward));
}
