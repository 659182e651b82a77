// Average-pooling, forward and gradient. Sums are kept in Compute<T> and divided once; int64 divides like torch,
// truncating, and in the gradient before summing.
#include "pool_average.h"
#include "pool_whole.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

template <class S>
struct Mean {
  using T = S;
  using E = Compute<S>;
  Divisor divisor;
  const E* column_divisors = nullptr;  // rows path: of every column, and kMargin more
  E row_divisor = 1;

  static constexpr E identity() { return E(0); }
  static Vec<E> load(const T* p) { return load_wide<T>(p); }
  template <class V>
  static V combine(V sum, V v) {
    return sum + v;
  }
  void begin_row(int64_t p) { row_divisor = static_cast<E>(divisor.row(p)); }
  Vec<E> finish_row(Vec<E> sum, int64_t q) const {
    return sum / (row_divisor * cpu::FASTCONV_ISA::load(column_divisors + q));
  }
  Vec<E> finish(Vec<E> sum, int64_t p, int64_t q) const { return sum / static_cast<E>(divisor.at(p, q)); }
  static void store(T* p, Vec<E> v) { store_narrow<T>(p, v); }
  static E enter(E v) { return v; }
  E leave(E sum, int64_t p, int64_t q) const { return divide(sum, divisor.at(p, q)); }
};

// Of the gradient: windows hand down what they are given.
template <class S>
struct MeanChain {
  using T = S;
  using A = Compute<S>;
  static constexpr bool of_windows_alone = true;
  const T* dy;
  const T* dy_end;

  MeanChain(const PoolProblem& d, const PoolOperands& operands)
      : dy(static_cast<const T*>(operands.y)), dy_end(end_of(dy, d, false, d.y_strides)) {}
  template <class Load>
  Vec<A> window(int64_t at, Load&& load) const {
    return load(dy + at, dy_end);
  }
  A window_at(int64_t at) const { return widen(dy[at]); }
  template <class V>
  static V input(V sum, int64_t) {
    return sum;
  }
  static A input_at(A sum, int64_t) { return sum; }
};

// Types that average-pooling has; the table's row lists the same.
template <class F>
void with_average_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32: return f(float{});
    case DType::f64: return f(double{});
    case DType::f16: return f(f16{});
    case DType::bf16: return f(bf16{});
    default: return f(int64_t{});
  }
}

}  // namespace

void avg_pool_forward(const PoolPlan& plan, const PoolOperands& operands, void* workspace, const Threads& threads) {
  with_average_type(plan.problem.dtype, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (!std::is_integral_v<T>) {
      const Divisor divisor(plan.problem);
      const auto path = static_cast<PoolPath>(plan.detail[kPath]);
      if (path == PoolPath::channels) return forward_channels(plan, Mean<T>{divisor}, operands, threads);
      if (path == PoolPath::whole) return forward_whole(plan, Mean<T>{divisor}, operands, threads);
      if (path == PoolPath::rows) {
        const Mean<T> mean{divisor, column_divisors<Compute<T>>(divisor, plan.problem, workspace)};
        return plan.problem.adaptive ? forward_adaptive_rows(plan, mean, operands, workspace, threads)
                                     : forward_rows(plan, mean, operands, workspace, threads);
      }
    }
    forward_planes(plan, Mean<T>{Divisor(plan.problem)}, operands, threads);
  });
}

void avg_pool_grad(const PoolPlan& plan, const PoolOperands& operands, void* workspace, const Threads& threads) {
  with_average_type(plan.problem.dtype, [&](auto zero) {
    using T = decltype(zero);
    const MeanChain<T> chain(plan.problem, operands);
    if constexpr (!std::is_integral_v<T>) {
      const auto path = static_cast<PoolPath>(plan.detail[kPath]);
      if (path == PoolPath::rows) return rows_grad(plan, chain, operands, workspace, threads);
      if (path == PoolPath::channels) return channels_grad(plan, chain, operands, workspace, threads);
      if (path == PoolPath::whole)
        return whole_grad(plan, chain, Divisor(plan.problem).at(0, 0), operands, threads);
    }
    planes_grad(plan, chain, operands, workspace, threads);
  });
}

}  // namespace fastconv::cpu::FASTCONV_ISA
