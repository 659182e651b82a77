// Average-pooling, forward and gradient. Sums are kept in Compute<T> and divided once; int64 divides like torch,
// truncating, and in the gradient before summing. In the gradient every input element gathers from the windows that
// cover it, so a task writes only what it owns, in a fixed order, whatever the number of threads.
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

template <class S>
struct Mean {
  using T = S;
  using E = Compute<S>;
  Divisor divisor;
  const E* column_divisors;  // rows path: of every column, and kMargin more
  E row_divisor = 1;

  static constexpr E identity() { return E(0); }
  static Vec<E> load(const T* p) { return load_wide<T>(p); }
  static Vec<E> combine(Vec<E> sum, Vec<E> v) { return sum + v; }
  void begin_row(int64_t p) { row_divisor = static_cast<E>(divisor.row(p)); }
  Vec<E> finish_row(Vec<E> sum, int64_t q) const {
    return sum / (row_divisor * cpu::FASTCONV_ISA::load(column_divisors + q));
  }
  Vec<E> finish(Vec<E> sum, int64_t p, int64_t q) const { return sum / static_cast<E>(divisor.at(p, q)); }
  static void store(T* p, Vec<E> v) { store_narrow<T>(p, v); }
};

// Shared memory of the rows paths: S shifts, then this.
template <class A>
A* column_divisors(const Divisor& divisor, const PoolProblem& d, void* workspace) {
  A* const table = reinterpret_cast<A*>(static_cast<int64_t*>(workspace) + d.s);
  for (int64_t q = 0; q < d.q + kMargin; ++q) table[q] = static_cast<A>(q < d.q ? divisor.column(q) : 1);
  return table;
}

template <class T>
void planes(const PoolPlan& plan, const PoolOperands& operands, const Threads& threads) {
  using A = Compute<T>;
  const PoolProblem& d = plan.problem;
  const Divisor divisor(d);
  const Axis rows = divisor.rows, columns = divisor.columns;
  parallel_tasks(threads, tasks_of(plan), [&](int, int64_t task) {
    const Share share = share_of(plan, task);
    for (int64_t unit = share.unit; unit < share.unit_end; ++unit) {
      const int64_t n = unit / d.c, c = unit % d.c;
      const T* const x = static_cast<const T*>(operands.x) + n * d.x_strides[0] + c * d.x_strides[1];
      T* const y = static_cast<T*>(operands.y) + n * d.y_strides[0] + c * d.y_strides[1];
      for (int64_t p = share.row; p < share.row_end; ++p) {
        for (int64_t q = 0; q < d.q; ++q) {
          A sum(0);
          for (int64_t r = rows.first(p); r < rows.last(p); ++r)
            for (int64_t s = columns.first(q); s < columns.last(q); ++s)
              sum += widen(x[(rows.start(p) + r) * d.x_strides[2] + (columns.start(q) + s) * d.x_strides[3]]);
          y[p * d.y_strides[2] + q * d.y_strides[3]] = narrow<T>(divide(sum, divisor.at(p, q)));
        }
      }
    }
  });
}

template <class T>
void planes_grad(const PoolPlan& plan, const PoolOperands& operands, void* workspace, const Threads& threads) {
  using A = Compute<T>;
  const PoolProblem& d = plan.problem;
  const Divisor divisor(d);
  const CoverTable rows(divisor.rows, workspace), columns(divisor.columns, rows.end(divisor.rows));
  parallel_tasks(threads, tasks_of(plan), [&](int, int64_t task) {
    const Share share = share_of(plan, task);
    for (int64_t unit = share.unit; unit < share.unit_end; ++unit) {
      const int64_t n = unit / d.c, c = unit % d.c;
      T* const dx = static_cast<T*>(operands.x) + n * d.x_strides[0] + c * d.x_strides[1];
      const T* const dy = static_cast<const T*>(operands.y) + n * d.y_strides[0] + c * d.y_strides[1];
      for (int64_t h = share.row; h < share.row_end; ++h) {
        for (int64_t w = 0; w < d.w; ++w) {
          A sum(0);
          for (int64_t k = 0; k < rows.count(h); ++k) {
            for (int64_t j = 0; j < columns.count(w); ++j) {
              const int64_t p = rows.of(h)[k].o, q = columns.of(w)[j].o;
              sum += divide(widen(dy[p * d.y_strides[2] + q * d.y_strides[3]]), divisor.at(p, q));
            }
          }
          dx[h * d.x_strides[2] + w * d.x_strides[3]] = narrow<T>(sum);
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

// Writes one row of grad_input. gather(slot, i, v, N) fills N vectors with the gradients of the padded columns of one
// phase from index i on (see Phases). Columns that no tap reads get zero. `linear` holds a.in + kMargin elements.
template <class T, class Gather>
inline void emit_row(const Axis& a, const Phases& phases, T* to, const T* end, Compute<T>* linear, Gather&& gather) {
  using A = Compute<T>;
  constexpr int L = kLanes<A>;
  auto put = [&](int64_t w, Vec<A> v) {
    if (w < a.in) store_until<T, L>(to + w, end, [&](T* p) { store_narrow<T>(p, v); });
  };
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
template <class T>
void rows_grad(const PoolPlan& plan, const PoolOperands& operands, void* workspace, const Threads& threads) {
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
  const T* const dy = static_cast<const T*>(operands.y);
  const T* const dy_end = end_of(dy, d, false, d.y_strides);

  parallel_tasks(threads, tasks_of(plan), [&](int thread, int64_t task) {
    const Share share = share_of(plan, task);
    A* const sums = scratch_of<A>(plan, workspace, thread);
    A* const linear = sums + phases.pitch;
    fill(sums, phases.pitch, A(0));
    T* const dx = static_cast<T*>(operands.x);
    const T* const dx_end = dx + ((share.unit_end - 1) * d.h + share.row_end) * d.w;
    for (int64_t unit = share.unit; unit < share.unit_end; ++unit) {
      const T* const plane = dy + unit / d.c * d.y_strides[0] + unit % d.c * d.y_strides[1];
      for (int64_t h = share.row; h < share.row_end; ++h) {
        T* const row = dx + (unit * d.h + h) * d.w;
        if (h > share.row && rows.same_windows(h, h - 1)) {
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
            const T* from = plane + covers[k].o * d.y_strides[2] + q * d.y_strides[3];
            const Vec<A> v = load_strided<T>(from, d.y_strides[3], d.q - q, dy_end);
            sum += alike ? v : v / (static_cast<A>(divisor.row(covers[k].o)) * load(by_column + q));
          }
          if (alike && count) sum /= static_cast<A>(divisor.row(covers[0].o)) * load(by_column + q);
          store(sums + reach + q, sum);
        }
        fill(sums + reach + d.q, L, A(0));  // where vectors ran over
        emit_row<T>(columns, phases, row, dx_end, linear, [&](int64_t slot, int64_t i, Vec<A>* v, auto vectors) {
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

template <class T>
void channels_grad(const PoolPlan& plan, const PoolOperands& operands, void* workspace, const Threads& threads) {
  using A = Compute<T>;
  constexpr int L = kLanes<A>;
  const PoolProblem& d = plan.problem;
  const Divisor divisor(d);
  const CoverTable rows(divisor.rows, workspace), columns(divisor.columns, rows.end(divisor.rows));
  const T* const dy = static_cast<const T*>(operands.y);
  const T* const dy_end = end_of(dy, d, false, d.y_strides);
  const bool inside = d.c >= L;

  parallel_tasks(threads, tasks_of(plan), [&](int, int64_t task) {
    const Share share = share_of(plan, task);
    T* const dx = static_cast<T*>(operands.x);
    const T* const dx_end = dx + ((share.unit_end - 1) * d.h + share.row_end) * d.w * d.c;
    for (int64_t n = share.unit; n < share.unit_end; ++n) {
      for (int64_t h = share.row; h < share.row_end; ++h) {
        T* const row = dx + (n * d.h + h) * d.w * d.c;
        if (h > share.row && rows.same_windows(h, h - 1)) {
          std::memcpy(row, row - d.w * d.c, d.w * d.c * sizeof(T));
          continue;
        }
        const int64_t row_count = rows.count(h);
        const Cover* const row_covers = rows.of(h);
        for (int64_t w = 0; w < d.w; ++w) {
          T* const to = row + w * d.c;
          if (w > 0 && columns.same_windows(w, w - 1)) {
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
                const T* from = dy + n * d.y_strides[0] + p * d.y_strides[2] + q * d.y_strides[3] + c;
                const A by = alike ? A(1) : static_cast<A>(divisor.at(p, q));
                for (int m = 0; m < N; ++m) {
                  const Vec<A> v = inside ? load_wide<T>(from + m * L) : load_until<T, L>(from, dy_end, load_wide<T>);
                  sum[m] += alike ? v : v / by;
                }
              }
            }
            for (int m = 0; m < N; ++m)
              store_until<T, L>(to + c + m * L, dx_end, [&](T* p) { store_narrow<T>(p, sum[m] / by_all); });
          });
        }
      }
    }
  });
}

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
      switch (static_cast<PoolPath>(plan.detail[kPath])) {
        case PoolPath::rows:
          return forward_rows(
              plan, Mean<T>{divisor, column_divisors<Compute<T>>(divisor, plan.problem, workspace)}, operands,
              workspace, threads);
        case PoolPath::channels: return forward_channels(plan, Mean<T>{divisor, nullptr}, operands, threads);
        default: break;
      }
    }
    planes<T>(plan, operands, threads);
  });
}

void avg_pool_grad(const PoolPlan& plan, const PoolOperands& operands, void* workspace, const Threads& threads) {
  with_average_type(plan.problem.dtype, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (!std::is_integral_v<T>) {
      const auto path = static_cast<PoolPath>(plan.detail[kPath]);
      if (path == PoolPath::rows) return rows_grad<T>(plan, operands, workspace, threads);
      if (path == PoolPath::channels) return channels_grad<T>(plan, operands, workspace, threads);
    }
    planes_grad<T>(plan, operands, workspace, threads);
  });
}

}  // namespace fastconv::cpu::FASTCONV_ISA
