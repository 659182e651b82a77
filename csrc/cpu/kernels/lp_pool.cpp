// LP pooling, forward and gradient: y = (r s / count * sum of x^norm over the window)^(1 / norm), count the window's
// elements inside the input, as torch has it: powers of signed values, so that a sum may be negative and its root NaN.
// The gradient dx = x^(norm-1) * sum over the windows of dy * (r s / count) * y^(1-norm) is 0 from windows where y is 0.
//
// Norms 1 and 2 are a copy and a product away from average-pooling, which bounds them alike; any other takes a power of
// the C library for every element of every window row, some 20 ns, and is bound by that.
#include "pool_average.h"

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

// The formulas on vectors and on single values (V). N: 1 or 2, or 0 for any other norm.
template <class A, int N>
struct Norm {
  A norm, window;  // r s

  explicit Norm(const PoolProblem& d) : norm(static_cast<A>(d.norm.value())), window(static_cast<A>(d.r * d.s)) {}
  template <class V>
  V raised(V x) const {
    if constexpr (N == 1) return x;
    if constexpr (N == 2) return x * x;
    return by_lane<A>(x, [this](A v) { return power(v, norm); });
  }
  template <class V>
  V root(V mean) const {
    const V sum = mean * window + A(0);  // -0 is 0 in torch, and its root may be infinite
    if constexpr (N == 1) return sum;
    if constexpr (N == 2) return by_lane<A>(sum, [](A v) { return square_root(v); });
    return by_lane<A>(sum, [this](A v) { return power(v, 1 / norm); });
  }
  template <class V>
  V handed_down(V dy, V y) const {
    if constexpr (N == 1) return y == A(0) ? V{} : dy;
    if constexpr (N == 2) return y == A(0) ? V{} : dy / y;
    return y == A(0) ? V{} : dy * by_lane<A>(y, [this](A v) { return power(v, 1 - norm); });
  }
  // An input that is handed nothing keeps nothing, even if the power of it is infinite.
  template <class V>
  V received(V sum, V x) const {
    if constexpr (N == 1) return sum * window;
    if constexpr (N == 2) return sum * window * x;
    return sum == A(0) ? V{} : sum * window * by_lane<A>(x, [this](A v) { return power(v, norm - 1); });
  }
};

template <class S, int N>
struct Forward {
  using T = S;
  using E = Compute<S>;
  Norm<E, N> norm;
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

template <class S, int N>
struct Chain {
  using T = S;
  using A = Compute<S>;
  static constexpr bool of_windows_alone = false;
  Norm<A, N> norm;
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

// Calls f(a value of the type, the norm's N as a constant).
template <class F>
void with_type_and_norm(const PoolProblem& d, F&& f) {
  const auto with_norm = [&](auto zero) {
    const double norm = d.norm.value();
    if (norm == 1) return f(zero, Count<1>{});
    if (norm == 2) return f(zero, Count<2>{});
    f(zero, Count<0>{});
  };
  switch (d.dtype) {
    case DType::f64: return with_norm(double{});
    case DType::f16: return with_norm(f16{});
    case DType::bf16: return with_norm(bf16{});
    default: return with_norm(float{});
  }
}

}  // namespace

void lp_pool_forward(const PoolPlan& plan, const PoolOperands& operands, void* workspace, const Threads& threads) {
  const PoolProblem& d = plan.problem;
  with_type_and_norm(d, [&](auto zero, auto n) {
    using T = decltype(zero);
    Forward<T, decltype(n)::value> op{Norm<Compute<T>, decltype(n)::value>(d), Divisor(d)};
    switch (static_cast<PoolPath>(plan.detail[kPath])) {
      case PoolPath::rows:
        op.column_divisors = column_divisors<Compute<T>>(op.divisor, d, workspace);
        return forward_rows(plan, op, operands, workspace, threads);
      case PoolPath::channels: return forward_channels(plan, op, operands, threads);
      case PoolPath::planes: return forward_planes(plan, op, operands, threads);
    }
  });
}

void lp_pool_grad(const PoolPlan& plan, const PoolOperands& operands, void* workspace, const Threads& threads) {
  with_type_and_norm(plan.problem, [&](auto zero, auto n) {
    const Chain<decltype(zero), decltype(n)::value> chain(plan.problem, operands);
    switch (static_cast<PoolPath>(plan.detail[kPath])) {
      case PoolPath::rows: return rows_grad(plan, chain, operands, workspace, threads);
      case PoolPath::channels: return channels_grad(plan, chain, operands, workspace, threads);
      case PoolPath::planes: return planes_grad(plan, chain, operands, workspace, threads);
    }
  });
}

}  // namespace fastconv::cpu::FASTCONV_ISA
