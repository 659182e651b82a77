// Row `max_pool`: the maximum of each window, its offset, and the passes that read offsets.
#include "max_pool.cuh"

#include "rows.h"

namespace fastconv::FASTCONV_GPU {
namespace {

template <class T>
Status run_forward(const PoolPlan& plan, const PoolOperands& o, const Execution& execution) {
  return run_pool_forward<T>("max_pool", plan, o, execution.stream, [](auto) { return Maximum<T>{}; });
}

template <class T>
Status run_gradient(const PoolPlan& plan, const PoolOperands& o, const Execution& execution) {
  const PoolProblem& p = plan.problem;
  const auto make = [&](auto index) {
    using Index = decltype(index);
    return MaximumGradient<T, Index>{o.offsets, p.offset_bytes, Strides<Index>(p.offset_strides),
                                     static_cast<Index>(p.s)};
  };
  return run_pool_gradient<T>("max_pool grad_input", plan, o, execution.stream,
                              is_aligned(o.offsets, kFullVector<T>), make);
}

template <class Word>
Status run_gather(const PoolPlan& plan, const PoolOperands& o, const Execution& execution) {
  const PoolProblem& p = plan.problem;
  const int64_t blocks = blocks_for(p.n * p.c * p.p * p.q);
  if (blocks > kMostBlocks) return Status::refuse("has more outputs than a grid has threads");
  return launch("max_pool gather", pool_gather<Word>, grid_of(blocks), block_of(kTileThreads), 0, execution.stream,
                PoolWindow<int64_t>(p), Elements<int64_t>(p.y_sizes(), p.y_strides), Strides<int64_t>(p.x_strides),
                Strides<int64_t>(p.y_strides), Strides<int64_t>(p.offset_strides), static_cast<const Word*>(o.x),
                static_cast<Word*>(o.y), o.offsets, static_cast<int>(p.offset_bytes));
}

}  // namespace

Status max_pool_supports(const PoolProblem& p) {
  if (p.kind != PoolKind::max) return Status::refuse("computes maxima only");
  if (p.pass != Pass::forward && !p.offset_bytes) return Status::refuse("needs the forward's window offsets");
  return {};
}

void max_pool_plan(const PoolProblem& p, int threads, PoolPlan& plan) {
  plan.threads = threads;
  if (p.pass == Pass::forward) return plan_pool_forward(p, plan);
  if (p.pass == Pass::grad_input) return plan_pool_gradient(p, plan);
  plan.detail[kPoolPath] = static_cast<int64_t>(PoolPath::any);
  plan.cost = 3 * memory_seconds(p.minimum_bytes(), p.n * p.c * p.p * p.q, 1);
}

Status max_pool_run(const PoolPlan& plan, const PoolOperands& operands, void*, const Execution& execution) {
  const PoolProblem& p = plan.problem;
  const Sizes4 written = p.pass == Pass::grad_input ? p.x_sizes() : p.y_sizes();
  if (written[0] * written[1] * written[2] * written[3] == 0) return {};
  if (p.pass == Pass::gather) {  // moves bits
    switch (size_of(p.dtype)) {
      case 2: return run_gather<uint16_t>(plan, operands, execution);
      case 4: return run_gather<uint32_t>(plan, operands, execution);
      default: return run_gather<uint64_t>(plan, operands, execution);
    }
  }
  if (p.pass == Pass::grad_input)
    return with_float(p.dtype, [&](auto zero) { return run_gradient<decltype(zero)>(plan, operands, execution); });
  return with_float(p.dtype, [&](auto zero) { return run_forward<decltype(zero)>(plan, operands, execution); });
}

}  // namespace fastconv::FASTCONV_GPU
