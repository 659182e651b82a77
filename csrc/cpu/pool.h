// Pooling on the CPU: the rows `max_pool`, `avg_pool` and `lp_pool`.
#pragma once

#include "../core/table.h"

namespace fastconv::cpu {

Status max_pool_supports(const PoolProblem&);
void max_pool_plan(const PoolProblem&, int threads, PoolPlan&);
Status max_pool_run(const PoolPlan&, const PoolOperands&, void* workspace, const Execution&);

Status avg_pool_supports(const PoolProblem&);
void avg_pool_plan(const PoolProblem&, int threads, PoolPlan&);
Status avg_pool_run(const PoolPlan&, const PoolOperands&, void* workspace, const Execution&);

Status lp_pool_supports(const PoolProblem&);
void lp_pool_plan(const PoolProblem&, int threads, PoolPlan&);
Status lp_pool_run(const PoolPlan&, const PoolOperands&, void* workspace, const Execution&);

// Which loops run, by what neighbouring vector lanes are.
enum class PoolPath : int64_t {
  planes,    // no vectors: any strides, any window
  rows,      // neighbouring outputs of a row (NCHW)
  channels,  // neighbouring channels (NHWC)
  whole,     // neighbouring elements of planes that one window covers (NCHW)
};

// What PoolPlan::detail holds. A task is one block of units (planes or images) times one band of rows (output rows, or
// input rows in grad_input), and owns what it writes.
enum PoolDetail {
  kPath,
  kUnits,         // planes (n c), images (n), or images times channel blocks
  kUnitsPerTask,
  kRows,
  kRowsPerTask,
  kChannelBlock,   // planes path, grad_input: channels that one unit scatters together
  kSharedBytes,    // tables, written before the threads start
  kScratchBytes,   // per thread
};

}  // namespace fastconv::cpu
