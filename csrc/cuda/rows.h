// Entry points of the GPU rows, for the table. Each exists twice: built by nvcc for GPUs, and for the emulator.
#pragma once

#include "../core/table.h"

#define FASTCONV_GPU_CONV(row)                                      \
  Status row##_supports(const ConvProblem&);                        \
  void row##_plan(const ConvProblem&, int threads, ConvPlan& plan); \
  Status row##_run(const ConvPlan&, const ConvOperands&, void* workspace, const Execution&);
#define FASTCONV_GPU_POOL(row)                                      \
  Status row##_supports(const PoolProblem&);                        \
  void row##_plan(const PoolProblem&, int threads, PoolPlan& plan); \
  Status row##_run(const PoolPlan&, const PoolOperands&, void* workspace, const Execution&);
#define FASTCONV_GPU_ROWS       \
  FASTCONV_GPU_CONV(direct)        \
  FASTCONV_GPU_CONV(im2col)        \
  FASTCONV_GPU_CONV(implicit_gemm) \
  FASTCONV_GPU_CONV(depthwise)     \
  FASTCONV_GPU_POOL(max_pool)      \
  FASTCONV_GPU_POOL(avg_pool)      \
  /* Positions in the input's plane of max-pooling's window offsets, -1 for none; y_strides are those of `indices`. */ \
  Status pool_indices(const PoolProblem&, const void* offsets, int64_t* indices, void* stream);

namespace fastconv::cuda {
FASTCONV_GPU_ROWS
}
namespace fastconv::simulated {
FASTCONV_GPU_ROWS
}

#undef FASTCONV_GPU_CONV
#undef FASTCONV_GPU_POOL
#undef FASTCONV_GPU_ROWS
