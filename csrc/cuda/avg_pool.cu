// Row `avg_pool`: the average of each window, and its gradient.
#include "avg_pool.cuh"

#include "rows.h"

namespace fastconv::FASTCONV_GPU {
namespace {

constexpr int64_t kFewTaps = 16, kManyTaps = 256;  // of a window
constexpr int64_t kTapsOfThread = 8;               // before another thread joins
constexpr int64_t kBlockTaps = 4096;               // NCHW: a window for a block instead of a warp
constexpr int64_t kLineVectors = 8;                // 128 bytes

// How windows are shared; found from the problem alone, for planning and running.
struct Sharing {
  bool channels = false;
  int64_t lanes = 1, threads = 0, splits = 1, blocks = 0;  // threads: of a window, 0: windows are not shared
};

Sharing sharing_of(const PoolProblem& p) {
  Sharing s;
  const int64_t rows = std::min(p.r, p.h), columns = std::min(p.s, p.w), taps = rows * columns;
  const int64_t outputs = p.n * p.p * p.q, vector = 16 / size_of(p.dtype);
  // Input that several windows share is read again by each.
  if (taps < kFewTaps || p.p * p.q * taps > 4 * p.h * p.w || !fits_int32(p) || outputs * p.c == 0) return s;
  int64_t blocks_of_splits = 1;
  if (has_channel_vectors(p.x_sizes(), p.x_strides, vector) && has_channel_vectors(p.y_sizes(), p.y_strides, vector)) {
    const int64_t vectors = p.c / vector;
    if (taps < kManyTaps && outputs * vectors >= kFullThreads) return s;
    s.channels = true;
    s.lanes = std::min(vectors, kLineVectors);
    s.threads = std::clamp<int64_t>(div_up(taps, kTapsOfThread), 1, kTileThreads / s.lanes);
    blocks_of_splits = outputs * div_up(vectors, s.lanes);
    s.splits = div_up(kFullThreads, blocks_of_splits * s.lanes * s.threads);
  } else if ((p.x_strides[3] == 1 || p.w == 1) && taps >= kManyTaps) {
    s.threads = taps >= kBlockTaps ? kTileThreads : 32;
    blocks_of_splits = div_up(outputs * p.c, kTileThreads / s.threads);
    s.splits = div_up(kFullThreads, blocks_of_splits * kTileThreads);
  } else {
    return s;
  }
  const int64_t most = std::min<int64_t>({rows, div_up(taps, s.threads * kTapsOfThread), 65535});
  s.splits = std::clamp<int64_t>(s.splits, 1, most);
  s.blocks = blocks_of_splits;
  return s;
}

template <class T>
Status run_windows(const PoolProblem& p, const PoolOperands& o, void* workspace, void* stream) {
  constexpr int64_t V = kFullVector<T>;
  const Sharing s = sharing_of(p);
  WindowShare<T> w;
  w.divisor = AverageDivisor<Compute<T>, int32_t>(p);
  w.splits = static_cast<int32_t>(s.splits);
  w.threads = static_cast<int32_t>(s.threads);
  w.xs = Strides<int32_t>(p.x_strides);
  w.ys = Strides<int32_t>(p.y_strides);
  w.x = static_cast<const T*>(o.x);
  w.y = static_cast<T*>(o.y);
  w.partials = s.splits > 1 ? static_cast<Compute<T>*>(workspace) : nullptr;
  w.all_outputs = p.n * p.c * p.p * p.q;
  dim3 grid = grid_of(s.blocks);
  grid.y = static_cast<unsigned>(s.splits);
  Status status;
  if (s.channels) {
    w.outputs = Elements<int32_t>({p.n, p.c / V, p.p, p.q}, true);
    w.lanes = Divider<int32_t>(s.lanes);
    w.blocks = Divider<int32_t>(div_up(p.c / V, s.lanes));
    status = launch("avg_pool shared windows", average_channels<T>, grid, block_of(s.lanes * s.threads), 0, stream, w);
  } else {
    w.outputs = Elements<int32_t>(p.y_sizes(), false);
    status = launch("avg_pool shared windows", average_runs<T>, grid, block_of(kTileThreads), 0, stream, w);
  }
  if (!status || s.splits == 1) return status;
  w.outputs = Elements<int32_t>(p.y_sizes(), s.channels);
  return launch("avg_pool sums", average_splits<T>, grid_of(blocks_for(w.all_outputs)), block_of(kTileThreads), 0,
                stream, w);
}

template <class T>
Status run_forward(const PoolPlan& plan, const PoolOperands& o, void* workspace, void* stream) {
  const PoolProblem& p = plan.problem;
  if (static_cast<PoolPath>(plan.detail[kPoolPath]) == PoolPath::windows &&
      (!sharing_of(p).channels || (is_aligned(o.x, 16) && is_aligned(o.y, 16))))
    return run_windows<T>(p, o, workspace, stream);
  return run_pool_forward<T>("avg_pool", plan, o, stream, [&](auto index) {
    using Index = decltype(index);
    return Average<T, Index>{AverageDivisor<Compute<T>, Index>(p)};
  });
}

template <class T>
Status run_gradient(const PoolPlan& plan, const PoolOperands& o, void* stream) {
  return run_pool_gradient<T>("avg_pool grad_input", plan, o, stream, true, [&](auto index) {
    using Index = decltype(index);
    return AverageGradient<T, Index>{AverageDivisor<Compute<T>, Index>(plan.problem)};
  });
}

}  // namespace

Status avg_pool_supports(const PoolProblem& p) {
  if (p.kind != PoolKind::avg) return Status::refuse("computes averages only");
  if (is_integer(p.dtype)) return Status::refuse("takes floating-point types only");
  if (p.dilation_h != 1 || p.dilation_w != 1) return Status::refuse("has no dilated windows");
  return {};
}

void avg_pool_plan(const PoolProblem& p, int threads, PoolPlan& plan) {
  plan.threads = threads;
  if (p.pass == Pass::grad_input) return plan_pool_gradient(p, plan);
  plan_pool_forward(p, plan);
  const Sharing s = sharing_of(p);
  if (s.threads == 0) return;
  const int64_t sums = s.splits > 1 ? s.splits * p.n * p.c * p.p * p.q * (p.dtype == DType::f64 ? 8 : 4) : 0;
  const int64_t block = s.channels ? s.lanes * s.threads : kTileThreads;
  plan.detail[kPoolPath] = static_cast<int64_t>(PoolPath::windows);
  plan.detail[kPoolSplits] = s.splits;
  plan.detail[kPoolWindowThreads] = s.threads;
  plan.workspace_bytes = sums;
  plan.cost = memory_seconds(p.minimum_bytes() + 2 * sums, s.blocks * s.splits * block, s.splits > 1 ? 2 : 1);
}

Status avg_pool_run(const PoolPlan& plan, const PoolOperands& o, void* workspace, const Execution& execution) {
  const PoolProblem& p = plan.problem;
  const Sizes4 written = p.pass == Pass::grad_input ? p.x_sizes() : p.y_sizes();
  if (written[0] * written[1] * written[2] * written[3] == 0) return {};
  return with_float(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (p.pass == Pass::grad_input) return run_gradient<T>(plan, o, execution.stream);
    return run_forward<T>(plan, o, workspace, execution.stream);
  });
}

}  // namespace fastconv::FASTCONV_GPU
