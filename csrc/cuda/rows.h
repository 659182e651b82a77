// Entry points of the GPU rows, declared from the algorithm table. Each exists twice: built by nvcc for GPUs in namespace
// cuda, and for the emulator in namespace simulated.
#pragma once

#include "../core/table.h"

#define FASTCONV_CONV_ROW(...)
#define FASTCONV_POOL_ROW(...)
#define FASTCONV_GPU_CONV_ROW(row, passes, dtypes, min_arch, summary, source, entry) \
  Status entry##_supports(const ConvProblem&);                                       \
  void entry##_plan(const ConvProblem&, int threads, ConvPlan& plan);                \
  Status entry##_run(const ConvPlan&, const ConvOperands&, void* workspace, const Execution&);
#define FASTCONV_GPU_POOL_ROW(row, passes, dtypes, min_arch, summary, source, entry) \
  Status entry##_supports(const PoolProblem&);                                       \
  void entry##_plan(const PoolProblem&, int threads, PoolPlan& plan);                \
  Status entry##_run(const PoolPlan&, const PoolOperands&, void* workspace, const Execution&);

namespace fastconv::cuda {
#include "../core/algorithms.inc"
// Positions in the input's plane of max-pooling's window offsets, -1 for none; y_strides are those of `indices`.
Status pool_indices(const PoolProblem&, const void* offsets, int64_t* indices, void* stream);
}  // namespace fastconv::cuda
namespace fastconv::simulated {
#include "../core/algorithms.inc"
Status pool_indices(const PoolProblem&, const void* offsets, int64_t* indices, void* stream);
}  // namespace fastconv::simulated

#undef FASTCONV_CONV_ROW
#undef FASTCONV_POOL_ROW
#undef FASTCONV_GPU_CONV_ROW
#undef FASTCONV_GPU_POOL_ROW
