// Windows that are whole planes (NCHW): what squeeze-and-excitation blocks and classifiers' heads pool.
//
// Rows of 7 columns leave most lanes idle, so a plane is read as the one run of elements that it is, and `lanes` planes
// share the reduction across lanes and the division. Measured, 2048 planes of 7 x 7: 7 us in place of 136.
#pragma once

#include "pool_loops.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// Where a plane of the input lies, without a division per plane.
struct PlaneWalk {
  int64_t n, c, at, channels, step_n, step_c;

  PlaneWalk(int64_t unit, int64_t channels, const Strides4& strides)
      : n(unit / channels), c(unit % channels), channels(channels), step_n(strides[0]), step_c(strides[1]) {
    at = n * step_n + c * step_c;
  }
  void next() {
    at += step_c;
    if (++c < channels) return;
    c = 0;
    at = ++n * step_n;
  }
};

// Lanes that a run's last vector holds of it.
template <class E>
inline Vec<Code<E>> lanes_below(int64_t count) {
  Vec<Code<E>> lane;
  for (int l = 0; l < kLanes<E>; ++l) lane[l] = static_cast<Code<E>>(l);
  return lane < static_cast<Code<E>>(count);
}

// `size` elements reduced to a vector. Four sums, so that additions of large planes do not wait for each other.
template <class Op, class T, class E = typename Op::E>
inline Vec<E> reduce_run(const Op& op, const T* from, int64_t size, Vec<Code<E>> tail, const T* end) {
  constexpr int L = kLanes<E>;
  const auto load_x = [&](const T* p) { return op.load(p); };
  const Vec<E> none = Vec<E>{} + Op::identity();
  Vec<E> v = none;
  int64_t i = 0;
  if (size >= 4 * L) {
    Vec<E> a = op.load(from), b = op.load(from + L), c = op.load(from + 2 * L);
    v = op.load(from + 3 * L);
    for (i = 4 * L; i + 4 * L <= size; i += 4 * L) {
      a = Op::combine(a, op.load(from + i));
      b = Op::combine(b, op.load(from + i + L));
      c = Op::combine(c, op.load(from + i + 2 * L));
      v = Op::combine(v, op.load(from + i + 3 * L));
    }
    v = Op::combine(Op::combine(a, b), Op::combine(c, v));
  }
  for (; i + L <= size; i += L) v = Op::combine(v, op.load(from + i));
  if (i < size) {
    const Vec<E> last = load_until<T, L>(from + i, end, load_x);
    v = Op::combine(v, tail ? last : none);
  }
  return v;
}

// Lane l of the result is vector l reduced. Each step halves the number of vectors, and of lanes that belong to one.
template <class Op, int Count, class E>
inline Vec<E> reduce_lanes(Vec<E>* v) {
  if constexpr (Count == 1) {
    return v[0];
  } else {
    for (int i = 0; i < Count / 2; ++i)
      v[i] = Op::combine(evens<E>(v[2 * i], v[2 * i + 1]), odds<E>(v[2 * i], v[2 * i + 1]));
    return reduce_lanes<Op, Count / 2, E>(v);
  }
}

template <class Op>
inline void forward_whole(const PoolPlan& plan, const Op op, const PoolOperands& operands, const Threads& threads) {
  using T = typename Op::T;
  using E = typename Op::E;
  constexpr int L = kLanes<E>;
  const PoolProblem& d = plan.problem;
  const int64_t size = d.h * d.w;
  const T* const x = static_cast<const T*>(operands.x);
  const T* const x_end = end_of(x, d, true, d.x_strides);
  const Vec<Code<E>> tail = lanes_below<E>(size % L);

  parallel_tasks(threads, tasks_of(plan), [&](int, int64_t task) {
    const Share share = share_of(plan, task);
    T* const y = static_cast<T*>(operands.y);
    PlaneWalk plane(share.unit, d.c, d.x_strides);
    for (int64_t unit = share.unit; unit < share.unit_end; unit += L) {
      Vec<E> v[L];
      for (int l = 0; l < L; ++l) {
        if (unit + l < share.unit_end) {
          v[l] = reduce_run(op, x + plane.at, size, tail, x_end);
          plane.next();
        } else {
          v[l] = Vec<E>{} + Op::identity();
        }
      }
      const Vec<E> result = op.finish(reduce_lanes<Op, L, E>(v), 0, 0);
      store_until<T, L>(y + unit, y + share.unit_end, [&](T* p) { Op::store(p, result); });
    }
  });
}

// Chain: as in pool_average.h. All of a plane is handed down the same, divided once.
template <class Chain>
inline void whole_grad(const PoolPlan& plan, const Chain chain, int64_t divisor, const PoolOperands& operands,
                       const Threads& threads) {
  using T = typename Chain::T;
  using A = Compute<T>;
  constexpr int L = kLanes<A>;
  const PoolProblem& d = plan.problem;
  const int64_t size = d.h * d.w;

  parallel_tasks(threads, tasks_of(plan), [&](int, int64_t task) {
    const Share share = share_of(plan, task);
    T* const dx = static_cast<T*>(operands.x);
    const T* const dx_end = dx + share.unit_end * size;
    PlaneWalk window(share.unit, d.c, d.y_strides);
    for (int64_t unit = share.unit; unit < share.unit_end; ++unit, window.next()) {
      const Vec<A> sum = Vec<A>{} + chain.window_at(window.at) / static_cast<A>(divisor);
      T* const to = dx + unit * size;
      for (int64_t i = 0; i < size; i += L) {
        const Vec<A> v = chain.input(sum, to + i - dx);
        store_until<T, L>(to + i, dx_end, [&](T* p) { store_narrow<T>(p, v); });
      }
    }
  });
}

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
