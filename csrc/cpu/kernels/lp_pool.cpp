// LP pooling, forward and gradient: y = (r s / count * sum of x^norm over the window)^(1 / norm), count the window's
// elements inside the input, as torch has it: powers of signed values, so that a sum may be negative and its root NaN.
// The gradient x^(norm-1) * sum over the windows of dy * (r s / count) * y^(1-norm) is 0 from windows where y is 0.
//
// Norms 1 and 2 are a copy and a product away from average-pooling and run in its loops. Any other takes a power of the
// C library for every element of every window, some 20 ns, and is bound by that, so it has the plain loops only.
#include "pool_average.h"
#include "pool_whole.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

inline float power(float x, float exponent) { return __builtin_powf(x, exponent); }
inline double power(double x, double exponent) { return __builtin_pow(x, exponent); }
inline float square_root(float x) { return __builtin_sqrtf(x); }
inline double square_root(double x) { return __builtin_sqrt(x); }

template <class A, class F>
inline Vec<A> by_lane(Vec<A> v, F&& f) {
  for (int l = 0; l < kLanes<A>; ++l) v[l] = f(static_cast<A>(v[l]));
  return v;
}
template <class A, class F>
inline A by_lane(A v, F&& f) {
  return f(v);
}

// The formulas on vectors and on single values (V), of norms 1 and 2: a run-time branch, to halve the kernels.
template <class A>
struct PlainNorm {
  A window;  // r s
  bool squares;

  explicit PlainNorm(const PoolProblem& d) : window(static_cast<A>(d.r * d.s)), squares(d.norm.value() == 2) {}
  template <class V>
  V raised(V x) const {
    return squares ? x * x : x;
  }
  template <class V>
  V root(V mean) const {
    const V sum = mean * window;
    return squares ? by_lane<A>(sum, [](A v) { return square_root(v); }) : sum;
  }
  template <class V>
  V handed_down(V dy, V y) const {
    return y == A(0) ? V{} : squares ? dy / y : dy;
  }
  template <class V>
  V received(V sum, V x) const {
    return squares ? sum * window * x : sum * window;
  }
};

// Of any other norm, on single values.
template <class A>
struct PowerNorm {
  A norm, window;

  explicit PowerNorm(const PoolProblem& d) : norm(static_cast<A>(d.norm.value())), window(static_cast<A>(d.r * d.s)) {}
  A raised(A x) const { return power(x, norm); }
  // -0 is 0 in torch, and its root may be infinite.
  A root(A mean) const { return power(mean * window + A(0), 1 / norm); }
  A handed_down(A dy, A y) const { return y == A(0) ? A(0) : dy * power(y, 1 - norm); }
  // An input that is handed nothing keeps nothing, even if the power of it is infinite.
  A received(A sum, A x) const { return sum == A(0) ? A(0) : sum * window * power(x, norm - 1); }
};

template <class S, template <class> class Norm>
struct Forward {
  using T = S;
  using E = Compute<S>;
  Norm<E> norm;
  Divisor divisor;
  const E* column_divisors = nullptr;  // rows path: of every column, and kMargin more
  E row_divisor = 1;

  static constexpr E identity() { return E(0); }
  Vec<E> load(const T* p) const { return norm.raised(load_wide<T>(p)); }
  template <class V>
  static V combine(V sum, V v) {
    return sum + v;
  }
  void begin_row(int64_t p) { row_divisor = static_cast<E>(divisor.row(p)); }
  Vec<E> finish_row(Vec<E> sum, int64_t q) const {
    return norm.root(sum / (row_divisor * cpu::FASTCONV_ISA::load(column_divisors + q)));
  }
  Vec<E> finish(Vec<E> sum, int64_t p, int64_t q) const { return norm.root(sum / static_cast<E>(divisor.at(p, q))); }
  static void store(T* p, Vec<E> v) { store_narrow<T>(p, v); }
  E enter(E v) const { return norm.raised(v); }
  E leave(E sum, int64_t p, int64_t q) const { return norm.root(divide(sum, divisor.at(p, q))); }
};

template <class S, template <class> class Norm>
struct Chain {
  using T = S;
  using A = Compute<S>;
  static constexpr bool of_windows_alone = false;
  Norm<A> norm;
  const T *dy, *y, *x;
  const T *dy_end, *y_end, *x_end;

  Chain(const PoolProblem& d, const PoolOperands& operands)
      : norm(d),
        dy(static_cast<const T*>(operands.y)),
        y(static_cast<const T*>(operands.output)),
        x(static_cast<const T*>(operands.input)),
        dy_end(end_of(dy, d, false, d.y_strides)),
        y_end(end_of(y, d, false, d.y_strides)),
        x_end(end_of(x, d, true, d.x_strides)) {}
  template <class Load>
  Vec<A> window(int64_t at, Load&& load) const {
    return norm.handed_down(load(dy + at, dy_end), load(y + at, y_end));
  }
  Vec<A> input(Vec<A> sum, int64_t at) const {
    return norm.received(sum, load_until<T, kLanes<A>>(x + at, x_end, load_wide<T>));
  }
  A window_at(int64_t at) const { return norm.handed_down(widen(dy[at]), widen(y[at])); }
  A input_at(A sum, int64_t at) const { return norm.received(sum, widen(x[at])); }
};

template <class F>
void with_float(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f64: return f(double{});
    case DType::f16: return f(f16{});
    case DType::bf16: return f(bf16{});
    default: return f(float{});
  }
}

bool is_plain(const PoolProblem& d) { return d.norm.value() == 1 || d.norm.value() == 2; }

}  // namespace

void lp_pool_forward(const PoolPlan& plan, const PoolOperands& operands, void* workspace, const Threads& threads) {
  const PoolProblem& d = plan.problem;
  with_float(d.dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Compute<T>;
    const Divisor divisor(d);
    if (!is_plain(d))
      return forward_planes(plan, Forward<T, PowerNorm>{PowerNorm<A>(d), divisor}, operands, threads);
    Forward<T, PlainNorm> op{PlainNorm<A>(d), divisor};
    const auto path = static_cast<PoolPath>(plan.detail[kPath]);
    if (path == PoolPath::planes) return forward_planes(plan, op, operands, threads);
    if (path == PoolPath::channels) return forward_channels(plan, op, operands, threads);
    if (path == PoolPath::whole) return forward_whole(plan, op, operands, threads);
    op.column_divisors = column_divisors<A>(divisor, d, workspace);
    forward_rows(plan, op, operands, workspace, threads);
  });
}

void lp_pool_grad(const PoolPlan& plan, const PoolOperands& operands, void* workspace, const Threads& threads) {
  const PoolProblem& d = plan.problem;
  with_float(d.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (!is_plain(d)) return planes_grad(plan, Chain<T, PowerNorm>(d, operands), operands, workspace, threads);
    const Chain<T, PlainNorm> chain(d, operands);
    const auto path = static_cast<PoolPath>(plan.detail[kPath]);
    if (path == PoolPath::planes) return planes_grad(plan, chain, operands, workspace, threads);
    if (path == PoolPath::channels) return channels_grad(plan, chain, operands, workspace, threads);
    if (path == PoolPath::whole) return whole_grad(plan, chain, Divisor(d).at(0, 0), operands, threads);
    rows_grad(plan, chain, operands, workspace, threads);
  });
}

}  // namespace fastconv::cpu::FASTCONV_ISA
