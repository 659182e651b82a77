// LP-pooling's own part: y = (r * s / count * sum of x^norm over the window)^(1 / norm), count its elements inside the
// input, as torch.nn.functional.lp_pool2d computes it (x.pow(norm) without absolute values, so that odd norms of negative
// sums are NaN), but with all steps in Compute<T> and no division where a window is whole.
//
// Forward: see pool_forward.cuh. Gradient: see pool_gradient.cuh; it reads grad_output, x and y, three times the bytes of
// an average's. Norms 1, 2 and 3 take products and a root; others a power for each element of each window, some 60
// instructions, which bound them.
#pragma once

#include <cmath>

#include "pool_forward.cuh"
#include "pool_gradient.cuh"

namespace fastconv::FASTCONV_GPU {

// A function of its own: its instructions would be repeated for every element of a vector.
template <class A>
__device__ FASTCONV_NOINLINE A power(A base, A exponent) {
  return std::pow(base, exponent);
}

template <class A>
struct LpNorm {
  A norm = 1, inverse = 1;
  int whole = 0;  // the norm, if it is 1, 2 or 3

  LpNorm() = default;
  explicit LpNorm(double n)
      : norm(static_cast<A>(n)), inverse(static_cast<A>(1 / n)), whole(n == 1 ? 1 : n == 2 ? 2 : n == 3 ? 3 : 0) {}

  __device__ __forceinline__ A raise(A x) const {
    if (whole == 1) return x;
    if (whole == 2) return x * x;
    if (whole == 3) return x * x * x;
    return power(x, norm);
  }
  __device__ __forceinline__ A root(A sum) const {
    if (whole == 1) return sum;
    if (whole == 2) return std::sqrt(sum);
    return power(sum, inverse);
  }
  // dy / dx = y^(1 - norm) * x^(norm - 1). torch's choice: 0 where the sum is 0, at which the root has no derivative.
  __device__ __forceinline__ A of_output(A y) const {
    if (y == A(0) || (norm < A(0) && y > A(0) && y + y == y)) return A(0);
    if (whole == 1) return A(1);
    if (whole == 2) return A(1) / y;
    if (whole == 3) return A(1) / (y * y);
    return power(y, A(1) - norm);
  }
  __device__ __forceinline__ A of_input(A x) const {
    if (whole == 1) return A(1);
    if (whole == 2) return x;
    if (whole == 3) return x * x;
    return power(x, norm - A(1));
  }
};

// What the sum of a window is multiplied by: only ceil_mode makes windows that reach beyond the input.
template <class A, class Index>
struct LpScale {
  PoolWindow<Index> g;
  A whole = 1;  // elements of a whole window
  bool clipped = false;

  LpScale() = default;
  explicit LpScale(const PoolProblem& p) : g(p), whole(static_cast<A>(p.r * p.s)), clipped(p.ceil_mode) {}
  __device__ __forceinline__ A at(Index p, Index q) const {
    return clipped ? whole / static_cast<A>(g.rows.divisor(p, false) * g.columns.divisor(q, false)) : A(1);
  }
};

template <class Storage, class Index>
struct LpPool {
  using T = Storage;
  using A = Compute<T>;
  static constexpr bool kOffsets = false, kSlidesChannels = false, kSlidesPlanes = false, kAnyInt32 = false;
  struct State {
    A sum;
  };
  LpNorm<A> norm;
  LpScale<A, Index> scale;

  __device__ __forceinline__ static State begin(int32_t) { return {A(0)}; }
  __device__ __forceinline__ void take(State& state, T v, int32_t) const { state.sum += norm.raise(widen(v)); }
  __device__ __forceinline__ T finish(const State& state, Index p, Index q) const {
    return narrow<T>(norm.root(state.sum * scale.at(p, q)));
  }
};

template <class Storage, class Index>
struct LpGradient {
  using T = Storage;
  using A = Compute<T>;
  static constexpr bool kAnyInt32 = std::is_same_v<T, float>;
  LpNorm<A> norm;
  LpScale<A, Index> scale;
  const T* x;
  const T* y;
  Strides<Index> strides;  // of y

  struct Covers {};
  __device__ __forceinline__ Covers covers(Index, Index, Index, Index) const { return {}; }
  template <int V>
  __device__ __forceinline__ void add(A (&sum)[V], const Vector<T, V>& dy, Covers, Index n, Index c, Index p, Index q,
                                      Index, Index) const {
    const auto outputs = load_vector<V>(y + strides.at(n, c, p, q));
    const A by = scale.at(p, q);
    FASTCONV_UNROLL
    for (int v = 0; v < V; ++v) {
      const A slope = norm.of_output(widen(outputs[v]));
      if (slope != A(0)) sum[v] += widen(dy[v]) * by * slope;
    }
  }
  template <int V>
  __device__ __forceinline__ Vector<T, V> finish(const A (&sum)[V], Covers, Index at) const {
    const auto inputs = load_vector<V>(x + at);
    Vector<T, V> result;
    FASTCONV_UNROLL
    for (int v = 0; v < V; ++v)
      result[v] = narrow<T>(sum[v] == A(0) ? A(0) : sum[v] * norm.of_input(widen(inputs[v])));
    return result;
  }
};

}  // namespace fastconv::FASTCONV_GPU
