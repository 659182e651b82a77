// What average and LP pooling share: divisors, and the gradient's loops. In the gradient every input element gathers
// from the windows that cover it, so a task writes only what it owns, in a fixed order, whatever the number of threads.
//
// Chain says what a window hands down, by the element offset `at` of its output, and what an input makes of the sum, by
// its own offset: T, of_windows_alone (whether inputs under the same windows have the same gradient),
// window(at, load) -> Vec, input(Vec sum, at) -> Vec, and window_at(at), input_at(sum, at) of single values.
#pragma once

#include "pool_loops.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// The divisor of every window: an override, or the product of what each axis contributes.
struct Divisor {
  Axis rows, columns;
  int64_t override_by;
  bool count_pad;

  explicit Divisor(const PoolProblem& d)
      : rows(vertical(d)), columns(horizontal(d)), override_by(d.divisor), count_pad(d.count_include_pad) {}
  int64_t row(int64_t p) const { return override_by ? override_by : rows.divisor(p, count_pad); }
  int64_t column(int64_t q) const { return override_by ? 1 : columns.divisor(q, count_pad); }
  int64_t at(int64_t p, int64_t q) const { return row(p) * column(q); }
};

template <class A>
inline A divide(A sum, int64_t divisor) {
  if constexpr (std::is_integral_v<A>) {
    // -1 apart: the one quotient that overflows would trap.
    return divisor == -1 ? A(0) - sum : static_cast<A>(static_cast<int64_t>(sum) / divisor);
  } else {
    return sum / static_cast<A>(divisor);
  }
}

// Shared memory of the rows paths: S shifts, then this.
template <class A>
A* column_divisors(const Divisor& divisor, const PoolProblem& d, void* workspace) {
  A* const table = reinterpret_cast<A*>(static_cast<int64_t*>(workspace) + d.s);
  for (int64_t q = 0; q < d.q + kMargin; ++q) table[q] = static_cast<A>(q < d.q ? divisor.column(q) : 1);
  return table;
}

// Any strides, any window: the definition, element by element. Op: enter() of a value, leave() of a window's sum.
template <class Op>
void forward_planes(const PoolPlan& plan, const Op op, const PoolOperands& operands, const Threads& threads) {
  using T = typename Op::T;
  using A = Compute<T>;
  const PoolProblem& d = plan.problem;
  const Axis rows = vertical(d), columns = horizontal(d);
  parallel_tasks(threads, tasks_of(plan), [&](int, int64_t task) {
    const Share share = share_of(plan, task);
    for (int64_t unit = share.unit; unit < share.unit_end; ++unit) {
      const int64_t n = unit / d.c, c = unit % d.c;
      const T* const x = static_cast<const T*>(operands.x) + n * d.x_strides[0] + c * d.x_strides[1];
      T* const y = static_cast<T*>(operands.y) + n * d.y_strides[0] + c * d.y_strides[1];
      for (int64_t p = share.row; p < share.row_end; ++p) {
        const int64_t top = rows.start(p), r_first = rows.first(p), r_last = rows.last(p);
        for (int64_t q = 0; q < d.q; ++q) {
          const int64_t left = columns.start(q), s_first = columns.first(q), s_last = columns.last(q);
          A sum(0);
          for (int64_t r = r_first; r < r_last; ++r)
            for (int64_t s = s_first; s < s_last; ++s)
              sum += op.enter(widen(x[(top + r) * d.x_strides[2] + (left + s) * d.x_strides[3]]));
          y[p * d.y_strides[2] + q * d.y_strides[3]] = narrow<T>(op.leave(sum, p, q));
        }
      }
    }
  });
}

template <class Chain>
void planes_grad(const PoolPlan& plan, const Chain chain, const PoolOperands& operands, void* workspace,
                 const Threads& threads) {
  using T = typename Chain::T;
  using A = Compute<T>;
  const PoolProblem& d = plan.problem;
  const Divisor divisor(d);
  const CoverTable rows(divisor.rows, workspace), columns(divisor.columns, rows.end(divisor.rows));
  parallel_tasks(threads, tasks_of(plan), [&](int, int64_t task) {
    const Share share = share_of(plan, task);
    for (int64_t unit = share.unit; unit < share.unit_end; ++unit) {
      const int64_t n = unit / d.c, c = unit % d.c;
      T* const dx = static_cast<T*>(operands.x);
      const int64_t from = n * d.y_strides[0] + c * d.y_strides[1], into = n * d.x_strides[0] + c * d.x_strides[1];
      for (int64_t h = share.row; h < share.row_end; ++h) {
        for (int64_t w = 0; w < d.w; ++w) {
          A sum(0);
          for (int64_t k = 0; k < rows.count(h); ++k) {
            for (int64_t j = 0; j < columns.count(w); ++j) {
              const int64_t p = rows.of(h)[k].o, q = columns.of(w)[j].o;
              sum += divide(chain.window_at(from + p * d.y_strides[2] + q * d.y_strides[3]), divisor.at(p, q));
            }
          }
          const int64_t at = into + h * d.x_strides[2] + w * d.x_strides[3];
          dx[at] = narrow<T>(chain.input_at(sum, at));
        }
      }
    }
  });
}

// kLanes values of a row of grad_output whose elements are `stride` apart; lanes at and past `left` are anything.
template <class T>
inline Vec<Compute<T>> load_strided(const T* p, int64_t stride, int64_t left, const T* end) {
  constexpr int L = kLanes<Compute<T>>;
  if (stride == 1) return load_until<T, L>(p, end, load_wide<T>);
  T some[L] = {};
  for (int l = 0; l < L && l < left; ++l) some[l] = p[l * stride];
  return load_wide<T>(some);
}

// Writes one row of grad_input by put(w, vector of columns from w on). gather(slot, i, v, N) fills N vectors with the gradients of the padded columns of one
// phase from index i on (see Phases). Columns that no tap reads get zero. `linear` holds a.in + kMargin elements.
template <class A, class Put, class Gather>
inline void emit_row(const Axis& a, const Phases& phases, A* linear, Put&& put, Gather&& gather) {
  constexpr int L = kLanes<A>;
  if (a.stride == 1) {
    in_blocks(ceil_div(a.in, L), [&](int64_t first, auto count) {
      constexpr int N = decltype(count)::value;
      Vec<A> v[N];
      gather(int64_t{0}, first * L + a.pad, v, count);
      for (int n = 0; n < N; ++n) put((first + n) * L, v[n]);
    });
  } else if (a.stride == 2 && phases.slots == 2) {
    in_blocks(ceil_div(a.in, 2 * L), [&](int64_t first, auto count) {
      constexpr int N = decltype(count)::value;
      const int64_t u = first * 2 * L + a.pad;
      Vec<A> even[N], odd[N];
      gather(u & 1, u >> 1, even, count);
      gather((u + 1) & 1, (u + 1) >> 1, odd, count);
      for (int n = 0; n < N; ++n) {
        put((first + n) * 2 * L, interleave<A, 0>(even[n], odd[n]));
        put((first + n) * 2 * L + L, interleave<A, 1>(even[n], odd[n]));
      }
    });
  } else {
    fill(linear, a.in, A(0));
    for (int64_t slot = 0; slot < phases.slots; ++slot) {
      const int64_t phase = phases.phase(slot);
      int64_t i = a.pad > phase ? ceil_div(a.pad - phase, a.stride) : 0;
      int64_t w = i * a.stride + phase - a.pad;
      while (w < a.in) {
        Vec<A> v[1];
        gather(slot, i, v, Count<1>{});
        for (int l = 0; l < L && w < a.in; ++l, w += a.stride) linear[w] = v[0][l];
        i += L;
      }
    }
    for (int64_t w = 0; w < a.in; w += L) put(w, load(linear + w));
  }
}

// The sums of the rows of grad_output that cover an input row first, then along the row: the forward's order reversed.
// Input rows under the same windows have the same gradient.
template <class Chain>
void rows_grad(const PoolPlan& plan, const Chain chain, const PoolOperands& operands, void* workspace,
               const Threads& threads) {
  using T = typename Chain::T;
  using A = Compute<T>;
  constexpr int L = kLanes<A>;
  const PoolProblem& d = plan.problem;
  const Divisor divisor(d);
  const Axis columns = divisor.columns;
  const Phases phases(columns, padded_outputs(columns));
  const int64_t reach = phases.reach;
  int64_t* const delay = static_cast<int64_t*>(workspace);
  for (int64_t s = 0; s < d.s; ++s) delay[s] = phases.delay(s);
  const A* const by_column = column_divisors<A>(divisor, d, workspace);
  const CoverTable rows(divisor.rows, delay + d.s + d.q + kMargin);
  // Only of adaptive windows, which have no phases.
  const CoverTable by_window(d.adaptive ? columns : Axis{}, rows.end(divisor.rows));

  parallel_tasks(threads, tasks_of(plan), [&](int thread, int64_t task) {
    const Share share = share_of(plan, task);
    A* const sums = scratch_of<A>(plan, workspace, thread);
    A* const linear = sums + phases.pitch;
    fill(sums, phases.pitch, A(0));
    T* const dx = static_cast<T*>(operands.x);
    const T* const dx_end = dx + ((share.unit_end - 1) * d.h + share.row_end) * d.w;
    for (int64_t unit = share.unit; unit < share.unit_end; ++unit) {
      const int64_t plane = unit / d.c * d.y_strides[0] + unit % d.c * d.y_strides[1];
      for (int64_t h = share.row; h < share.row_end; ++h) {
        T* const row = dx + (unit * d.h + h) * d.w;
        if (Chain::of_windows_alone && h > share.row && rows.same_windows(h, h - 1)) {
          std::memcpy(row, row - d.w, d.w * sizeof(T));
          continue;
        }
        const int64_t count = rows.count(h);
        const Cover* const covers = rows.of(h);
        bool alike = true;  // then one division serves all rows
        for (int64_t k = 1; k < count; ++k) alike &= divisor.row(covers[k].o) == divisor.row(covers[0].o);
        for (int64_t q = 0; q < d.q; q += L) {
          Vec<A> sum{};
          for (int64_t k = 0; k < count; ++k) {
            const Vec<A> v = chain.window(plane + covers[k].o * d.y_strides[2] + q * d.y_strides[3],
                                          [&](const T* values, const T* end) {
                                            return load_strided<T>(values, d.y_strides[3], d.q - q, end);
                                          });
            sum += alike ? v : v / (static_cast<A>(divisor.row(covers[k].o)) * load(by_column + q));
          }
          if (alike && count) sum /= static_cast<A>(divisor.row(covers[0].o)) * load(by_column + q);
          store(sums + reach + q, sum);
        }
        fill(sums + reach + d.q, L, A(0));  // where vectors ran over
        const auto put = [&](int64_t w, Vec<A> v) {
          if (w >= d.w) return;
          v = chain.input(v, row + w - dx);
          store_until<T, L>(row + w, dx_end, [&](T* p) { store_narrow<T>(p, v); });
        };
        if (d.adaptive) {
          for (int64_t w = 0; w < d.w; ++w) {
            A sum(0);
            for (int64_t j = 0; j < by_window.count(w); ++j) sum += sums[reach + by_window.of(w)[j].o];
            linear[w] = sum;
          }
          for (int64_t w = 0; w < d.w; w += L) put(w, load(linear + w));
          continue;
        }
        emit_row(columns, phases, linear, put, [&](int64_t slot, int64_t i, Vec<A>* v, auto vectors) {
          constexpr int N = decltype(vectors)::value;
          Vec<A> sum[N] = {};
          for (int64_t s = slot; s < d.s; s += phases.slots)
            for (int m = 0; m < N; ++m) sum[m] += load(sums + i - delay[s] + reach + m * L);
          for (int m = 0; m < N; ++m) v[m] = sum[m];
        });
      }
    }
  });
}

template <class Chain>
void channels_grad(const PoolPlan& plan, const Chain chain, const PoolOperands& operands, void* workspace,
                   const Threads& threads) {
  using T = typename Chain::T;
  using A = Compute<T>;
  constexpr int L = kLanes<A>;
  const PoolProblem& d = plan.problem;
  const Divisor divisor(d);
  const CoverTable rows(divisor.rows, workspace), columns(divisor.columns, rows.end(divisor.rows));
  const bool inside = d.c >= L;

  parallel_tasks(threads, tasks_of(plan), [&](int, int64_t task) {
    const Share share = share_of(plan, task);
    T* const dx = static_cast<T*>(operands.x);
    const T* const dx_end = dx + ((share.unit_end - 1) * d.h + share.row_end) * d.w * d.c;
    for (int64_t n = share.unit; n < share.unit_end; ++n) {
      for (int64_t h = share.row; h < share.row_end; ++h) {
        T* const row = dx + (n * d.h + h) * d.w * d.c;
        if (Chain::of_windows_alone && h > share.row && rows.same_windows(h, h - 1)) {
          std::memcpy(row, row - d.w * d.c, d.w * d.c * sizeof(T));
          continue;
        }
        const int64_t row_count = rows.count(h);
        const Cover* const row_covers = rows.of(h);
        for (int64_t w = 0; w < d.w; ++w) {
          T* const to = row + w * d.c;
          if (Chain::of_windows_alone && w > 0 && columns.same_windows(w, w - 1)) {
            std::memcpy(to, to - d.c, d.c * sizeof(T));
            continue;
          }
          const int64_t column_count = columns.count(w);
          const Cover* const column_covers = columns.of(w);
          bool alike = row_count && column_count;  // then one division serves all windows
          for (int64_t k = 0; k < row_count; ++k)
            for (int64_t j = 0; j < column_count; ++j)
              alike &= divisor.at(row_covers[k].o, column_covers[j].o) ==
                       divisor.at(row_covers[0].o, column_covers[0].o);
          const A by_all = alike ? static_cast<A>(divisor.at(row_covers[0].o, column_covers[0].o)) : A(1);
          in_channel_blocks<L>(d.c, [&](int64_t c, auto count) {
            constexpr int N = decltype(count)::value;
            Vec<A> sum[N] = {};
            for (int64_t k = 0; k < row_count; ++k) {
              for (int64_t j = 0; j < column_count; ++j) {
                const int64_t p = row_covers[k].o, q = column_covers[j].o;
                const int64_t from = n * d.y_strides[0] + p * d.y_strides[2] + q * d.y_strides[3] + c;
                const A by = alike ? A(1) : static_cast<A>(divisor.at(p, q));
                for (int m = 0; m < N; ++m) {
                  const Vec<A> v = chain.window(from + m * L, [&](const T* values, const T* end) {
                    return inside ? load_wide<T>(values) : load_until<T, L>(values, end, load_wide<T>);
                  });
                  sum[m] += alike ? v : v / by;
                }
              }
            }
            for (int m = 0; m < N; ++m) {
              const Vec<A> v = chain.input(sum[m] / by_all, to + c + m * L - dx);
              store_until<T, L>(to + c + m * L, dx_end, [&](T* p) { store_narrow<T>(p, v); });
            }
          });
        }
      }
    }
  });
}

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
