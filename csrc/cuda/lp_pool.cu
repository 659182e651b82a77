// Row `lp_pool`: the norm of each window, and its gradient.
#include "lp_pool.cuh"

#include "rows.h"

namespace fastconv::FASTCONV_GPU {
namespace {

template <class T>
Status run_forward(const PoolPlan& plan, const PoolOperands& o, void* stream) {
  const PoolProblem& p = plan.problem;
  return run_pool_forward<T>("lp_pool", plan, o, stream, [&](auto index) {
    using Index = decltype(index);
    return LpPool<T, Index>{LpNorm<Compute<T>>(p.norm.value()), LpScale<Compute<T>, Index>(p)};
  });
}

template <class T>
Status run_gradient(const PoolPlan& plan, const PoolOperands& o, void* stream) {
  const PoolProblem& p = plan.problem;
  const bool aligned = is_aligned(o.input, 16) && is_aligned(o.output, 16);
  return run_pool_gradient<T>("lp_pool grad_input", plan, o, stream, aligned, [&](auto index) {
    using Index = decltype(index);
    return LpGradient<T, Index>{LpNorm<Compute<T>>(p.norm.value()), LpScale<Compute<T>, Index>(p),
                                static_cast<const T*>(o.input), static_cast<const T*>(o.output),
                                Strides<Index>(p.y_strides)};
  });
}

}  // namespace

Status lp_pool_supports(const PoolProblem& p) {
  if (p.kind != PoolKind::lp) return Status::refuse("computes LP norms only");
  if (is_integer(p.dtype)) return Status::refuse("takes floating-point types only");
  return {};
}

void lp_pool_plan(const PoolProblem& p, int threads, PoolPlan& plan) {
  plan.threads = threads;
  if (p.pass == Pass::grad_input) return plan_pool_gradient(p, plan);
  plan_pool_forward(p, plan);
}

Status lp_pool_run(const PoolPlan& plan, const PoolOperands& o, void*, const Execution& execution) {
  const PoolProblem& p = plan.problem;
  const Sizes4 written = p.pass == Pass::grad_input ? p.x_sizes() : p.y_sizes();
  if (written[0] * written[1] * written[2] * written[3] == 0) return {};
  return with_float(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (p.pass == Pass::grad_input) return run_gradient<T>(plan, o, execution.stream);
    return run_forward<T>(plan, o, execution.stream);
  });
}

}  // namespace fastconv::FASTCONV_GPU
