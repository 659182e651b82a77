// The loops that pooling passes have in common.
//
// Rows (NCHW): lanes are neighbouring outputs of a row. A window is reduced down its rows first, whole input rows at a
// time (R loads per column, whatever the stride); the reduced row is regrouped by phases of the stride (pool_window.h),
// so that the reduction along the row is S shifted loads: R + S steps in place of R * S, and no lane is wasted.
// Channels (NHWC): lanes are neighbouring channels, and every tap of a window is a plain load.
#pragma once

#include "../pool.h"
#include "../pool_window.h"
#include "pool_lanes.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

struct Share {
  int64_t unit, unit_end, row, row_end;
};
inline int64_t tasks_of(const PoolPlan& plan) {
  return ceil_div(plan.detail[kUnits], plan.detail[kUnitsPerTask]) *
         ceil_div(plan.detail[kRows], plan.detail[kRowsPerTask]);
}
inline Share share_of(const PoolPlan& plan, int64_t task) {
  const int64_t bands = ceil_div(plan.detail[kRows], plan.detail[kRowsPerTask]);
  const int64_t unit = task / bands * plan.detail[kUnitsPerTask];
  const int64_t row = task % bands * plan.detail[kRowsPerTask];
  const int64_t units = plan.detail[kUnits], rows = plan.detail[kRows];
  return {unit, unit + plan.detail[kUnitsPerTask] < units ? unit + plan.detail[kUnitsPerTask] : units, row,
          row + plan.detail[kRowsPerTask] < rows ? row + plan.detail[kRowsPerTask] : rows};
}
template <class E>
inline E* scratch_of(const PoolPlan& plan, void* workspace, int thread) {
  return reinterpret_cast<E*>(static_cast<char*>(workspace) + plan.detail[kSharedBytes] +
                              thread * plan.detail[kScratchBytes]);
}

// One past the last element of a view.
template <class T>
inline const T* end_of(const T* p, const PoolProblem& d, bool of_x, const Strides4& strides) {
  return p + (d.n - 1) * strides[0] + (d.c - 1) * strides[1] + ((of_x ? d.h : d.p) - 1) * strides[2] +
         ((of_x ? d.w : d.q) - 1) * strides[3] + 1;
}

template <class E>
inline void fill(E* p, int64_t count, E value) {
  for (int64_t i = 0; i < count; ++i) p[i] = value;
}

// Regroups a row of a.in columns by phases; load(w) gives the vector of columns from w on. `identity` stands in
// padding: on the left it is there already, on the right vectors may have run over it. `linear` holds a.in + kMargin
// elements.
template <class E, class Load>
inline void spread(const Axis& a, const Phases& phases, E identity, E* linear, E* dst, Load&& load) {
  constexpr int L = kLanes<E>;
  const int64_t length = a.out + phases.reach;  // of one slot, in columns that some window reads
  if (a.stride == 1) {
    const int64_t n = a.in < length - a.pad ? a.in : length - a.pad;
    for (int64_t w = 0; w < n; w += L) store(dst + a.pad + w, load(w));
    for (int64_t i = a.in + a.pad; i < length; ++i) dst[i] = identity;
    return;
  }
  if (a.stride == 2 && phases.slots == 2) {
    const int64_t n = a.in < 2 * length - a.pad ? a.in : 2 * length - a.pad;
    E* even = dst + (a.pad & 1) * phases.pitch + (a.pad >> 1);
    E* odd = dst + ((a.pad + 1) & 1) * phases.pitch + ((a.pad + 1) >> 1);
    for (int64_t w = 0; w < n; w += 2 * L) {
      const Vec<E> low = load(w), high = w + L < n ? load(w + L) : low;
      store(even + (w >> 1), evens<E>(low, high));
      store(odd + (w >> 1), odds<E>(low, high));
    }
  } else {
    for (int64_t w = 0; w < a.in; w += L) store(linear + w, load(w));
    for (int64_t slot = 0; slot < phases.slots; ++slot) {
      int64_t i = a.pad > phases.phase(slot) ? ceil_div(a.pad - phases.phase(slot), a.stride) : 0;
      for (int64_t w = i * a.stride + phases.phase(slot) - a.pad; w < a.in && i < length; w += a.stride, ++i)
        dst[slot * phases.pitch + i] = linear[w];
    }
  }
  for (int64_t slot = 0; slot < phases.slots; ++slot)
    for (int64_t i = ceil_div(a.in + a.pad - phases.phase(slot), a.stride); i < length; ++i)
      dst[slot * phases.pitch + i] = identity;
}

// Calls block(index of the first vector, number of vectors as a constant) so that `vectors` are covered.
template <int N>
struct Count {
  static constexpr int value = N;
};
template <int Most = 2, class Block>
inline void in_blocks(int64_t vectors, Block&& block, int64_t v = 0) {
  for (; v + Most <= vectors; v += Most) block(v, Count<Most>{});
  if constexpr (Most > 1) in_blocks<Most / 2>(vectors, block, v);
}

// Lanes are channels: calls block(c, number of vectors as a constant) so that all `channels` are covered. A last
// vector that would run past the end is moved back to end there; with fewer channels than lanes it runs over.
template <int L, int Most = 2, class Block>
inline void in_channel_blocks(int64_t channels, Block&& block) {
  in_blocks<Most>(channels / L, [&](int64_t v, auto count) { block(v * L, count); });
  if (channels % L) block(channels > L ? channels - L : 0, Count<1>{});
}

// Several rows read at a time are more than the hardware prefetches well from memory: 64 planes of 224 x 224 took 1.5
// times as long without. 2, 8 and 16 KB are slower by 5 to 25 %.
constexpr int64_t kAheadBytes = 4096;

// Op: T (stored), E (computed in), identity(), load(const T*) -> Vec<E>, combine() of vectors and of values,
// begin_row(p), finish_row(Vec<E>, q), finish(Vec<E>, p, q), store(T*, Vec<E>).

// A vector of columns, combined over `taps` rows that are `step` elements apart.
template <class Op, class T>
inline Vec<typename Op::E> reduce_rows(const Op& op, const T* from, int64_t taps, int64_t step, const T* x_end) {
  constexpr int L = kLanes<typename Op::E>;
  if (from + (taps - 1) * step + L <= x_end) {
    auto v = op.load(from);
    __builtin_prefetch(from + kAheadBytes / sizeof(T));
    for (int64_t r = 1; r < taps; ++r) {
      v = Op::combine(v, op.load(from + r * step));
      __builtin_prefetch(from + r * step + kAheadBytes / sizeof(T));
    }
    return v;
  }
  const auto load_x = [&](const T* p) { return op.load(p); };
  auto v = load_until<T, L>(from, x_end, load_x);
  for (int64_t r = 1; r < taps; ++r) v = Op::combine(v, load_until<T, L>(from + r * step, x_end, load_x));
  return v;
}

template <class Op>
inline void forward_rows(const PoolPlan& plan, Op op, const PoolOperands& operands, void* workspace,
                         const Threads& threads) {
  using T = typename Op::T;
  using E = typename Op::E;
  constexpr int L = kLanes<E>;
  const PoolProblem& d = plan.problem;
  const Axis rows = vertical(d), columns = horizontal(d);
  const Phases phases(columns, d.q);
  int64_t* const shift = static_cast<int64_t*>(workspace);  // of each tap
  for (int64_t s = 0; s < d.s; ++s) shift[s] = phases.slot(s) * phases.pitch + phases.delay(s);
  const T* x = static_cast<const T*>(operands.x);
  const T* x_end = end_of(x, d, true, d.x_strides);

  parallel_tasks(threads, tasks_of(plan), [&](int thread, int64_t task) {
    const Share share = share_of(plan, task);
    E* const reduced = scratch_of<E>(plan, workspace, thread);
    E* const linear = reduced + phases.slots * phases.pitch;
    fill(reduced, phases.slots * phases.pitch, Op::identity());
    Op row_op = op;
    T* const y = static_cast<T*>(operands.y);
    const T* const y_end = y + ((share.unit_end - 1) * d.p + share.row_end) * d.q;
    for (int64_t unit = share.unit; unit < share.unit_end; ++unit) {
      const T* plane = x + unit / d.c * d.x_strides[0] + unit % d.c * d.x_strides[1];
      for (int64_t p = share.row; p < share.row_end; ++p) {
        const int64_t taps = rows.last(p) - rows.first(p);
        const T* top = plane + (rows.start(p) + rows.first(p) * rows.dilation) * d.x_strides[2];
        const int64_t step = rows.dilation * d.x_strides[2];
        if (taps <= 0) {
          fill(reduced, phases.slots * phases.pitch, Op::identity());
        } else {
          spread(columns, phases, Op::identity(), linear, reduced,
                 [&](int64_t w) { return reduce_rows(op, top + w, taps, step, x_end); });
        }
        row_op.begin_row(p);
        T* to = y + (unit * d.p + p) * d.q;
        in_blocks(ceil_div(d.q, L), [&](int64_t first, auto count) {
          constexpr int N = decltype(count)::value;
          const E* from = reduced + first * L;
          Vec<E> v[N];
          for (int n = 0; n < N; ++n) v[n] = load(from + shift[0] + n * L);
          for (int64_t s = 1; s < d.s; ++s)
            for (int n = 0; n < N; ++n) v[n] = Op::combine(v[n], load(from + shift[s] + n * L));
          for (int n = 0; n < N; ++n) {
            const int64_t q = (first + n) * L;
            const Vec<E> result = row_op.finish_row(v[n], q);
            store_until<T, L>(to + q, y_end, [&](T* p) { Op::store(p, result); });
          }
        });
      }
    }
  });
}

// The same for adaptive windows. Along a row those have no common stride, so there the reduced row is combined value by
// value: about R W / lanes + W steps for a row of outputs.
template <class Op>
inline void forward_adaptive_rows(const PoolPlan& plan, Op op, const PoolOperands& operands, void* workspace,
                                  const Threads& threads) {
  using T = typename Op::T;
  using E = typename Op::E;
  constexpr int L = kLanes<E>;
  const PoolProblem& d = plan.problem;
  const Axis rows = vertical(d), columns = horizontal(d);
  int64_t* const begin = static_cast<int64_t*>(workspace) + d.s + d.q + kMargin;  // after the divisors of columns
  int64_t* const end = begin + d.q;
  for (int64_t q = 0; q < d.q; ++q) {
    begin[q] = columns.start(q);
    end[q] = begin[q] + columns.last(q);
  }
  const T* x = static_cast<const T*>(operands.x);
  const T* x_end = end_of(x, d, true, d.x_strides);

  parallel_tasks(threads, tasks_of(plan), [&](int thread, int64_t task) {
    const Share share = share_of(plan, task);
    E* const reduced = scratch_of<E>(plan, workspace, thread);
    E* const combined = reduced + d.w + kMargin;
    Op row_op = op;
    T* const y = static_cast<T*>(operands.y);
    const T* const y_end = y + ((share.unit_end - 1) * d.p + share.row_end) * d.q;
    for (int64_t unit = share.unit; unit < share.unit_end; ++unit) {
      const T* plane = x + unit / d.c * d.x_strides[0] + unit % d.c * d.x_strides[1];
      for (int64_t p = share.row; p < share.row_end; ++p) {
        const T* const top = plane + rows.start(p) * d.x_strides[2];
        const int64_t taps = rows.last(p);
        if (taps <= 0) fill(reduced, d.w, Op::identity());  // an input without rows
        for (int64_t w = 0; w < d.w && taps > 0; w += L)
          store(reduced + w, reduce_rows(op, top + w, taps, d.x_strides[2], x_end));
        for (int64_t q = 0; q < d.q; ++q) {
          E v = Op::identity();
          for (int64_t w = begin[q]; w < end[q]; ++w) v = Op::combine(v, reduced[w]);
          combined[q] = v;
        }
        row_op.begin_row(p);
        T* to = y + (unit * d.p + p) * d.q;
        for (int64_t q = 0; q < d.q; q += L) {
          const Vec<E> result = row_op.finish_row(load(combined + q), q);
          store_until<T, L>(to + q, y_end, [&](T* p) { Op::store(p, result); });
        }
      }
    }
  });
}

// Inside: whether there are as many channels as lanes, else vectors run over into the next pixel. (As a branch on
// every load it took twice the time.)
template <bool Inside, class Op>
inline void forward_channels_of(const PoolPlan& plan, Op op, const PoolOperands& operands, const Threads& threads) {
  using T = typename Op::T;
  using E = typename Op::E;
  constexpr int L = kLanes<E>;
  const PoolProblem& d = plan.problem;
  const Axis rows = vertical(d), columns = horizontal(d);
  const T* x = static_cast<const T*>(operands.x);
  [[maybe_unused]] const T* x_end = end_of(x, d, true, d.x_strides);
  const int64_t row_step = rows.dilation * d.x_strides[2], column_step = columns.dilation * d.x_strides[3];
  [[maybe_unused]] const auto load_x = [&](const T* p) { return op.load(p); };

  parallel_tasks(threads, tasks_of(plan), [&](int, int64_t task) {
    const Share share = share_of(plan, task);
    T* const y = static_cast<T*>(operands.y);
    const T* const y_end = y + ((share.unit_end - 1) * d.p + share.row_end) * d.q * d.c;
    for (int64_t n = share.unit; n < share.unit_end; ++n) {
      for (int64_t p = share.row; p < share.row_end; ++p) {
        const int64_t row_taps = rows.last(p) - rows.first(p);
        const int64_t h = rows.start(p) + rows.first(p) * rows.dilation;
        for (int64_t q = 0; q < d.q; ++q) {
          const int64_t column_taps = columns.last(q) - columns.first(q);
          const int64_t w = columns.start(q) + columns.first(q) * columns.dilation;
          T* to = y + ((n * d.p + p) * d.q + q) * d.c;
          if (row_taps <= 0 || column_taps <= 0) {
            const Vec<E> none = op.finish(Vec<E>{} + Op::identity(), p, q);
            for (int64_t c = 0; c < d.c; c += L)
              store_until<T, L>(to + c, to + d.c, [&](T* p) { Op::store(p, none); });
            continue;
          }
          const T* from = x + n * d.x_strides[0] + h * d.x_strides[2] + w * d.x_strides[3];
          in_channel_blocks<L, 4>(d.c, [&](int64_t c, auto count) {
            constexpr int N = decltype(count)::value;
            Vec<E> v[N];
            for (int n = 0; n < N; ++n) v[n] = Vec<E>{} + Op::identity();
            for (int64_t r = 0; r < row_taps; ++r) {
              for (int64_t s = 0; s < column_taps; ++s) {
                const T* tap = from + r * row_step + s * column_step + c;
                for (int n = 0; n < N; ++n) {
                  if constexpr (Inside) {
                    v[n] = Op::combine(v[n], op.load(tap + n * L));
                  } else {
                    v[n] = Op::combine(v[n], load_until<T, L>(tap, x_end, load_x));
                  }
                }
              }
            }
            for (int n = 0; n < N; ++n) {
              const Vec<E> result = op.finish(v[n], p, q);
              store_until<T, L>(to + c + n * L, y_end, [&](T* p) { Op::store(p, result); });
            }
          });
        }
      }
    }
  });
}

template <class Op>
inline void forward_channels(const PoolPlan& plan, Op op, const PoolOperands& operands, const Threads& threads) {
  if (plan.problem.c >= kLanes<typename Op::E>) return forward_channels_of<true>(plan, op, operands, threads);
  forward_channels_of<false>(plan, op, operands, threads);
}

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
