// Max-pooling, forward: values, and on request the offset r * S + s of each window's maximum (all ones: none, the
// window lies wholly in padding).
#include "max_order.h"
#include "pool_loops.h"
#include "pool_whole.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

using Offset = uint8_t;  // of the vector paths; windows of more than 255 positions take the plain one
constexpr Offset kNone = 0xff;

template <class M>
struct MaxOfValues {
  using T = typename M::E;
  using E = typename M::E;
  static constexpr E identity() { return M::lowest_key(); }
  static Vec<E> load(const T* p) { return M::enter(cpu::FASTCONV_ISA::load(p)); }
  template <class V>
  static V combine(V best, V v) {
    return M::max(best, v);
  }
  void begin_row(int64_t) {}
  Vec<E> finish_row(Vec<E> v, int64_t) const { return v; }
  Vec<E> finish(Vec<E> v, int64_t, int64_t) const { return v; }
  static void store(T* p, Vec<E> v) { cpu::FASTCONV_ISA::store(p, M::leave(v)); }
};

// Rows, with offsets. Ties make the order of a window's elements matter, so it is walked tap by tap. Input rows are
// regrouped by phases once, when a window first asks for them, and kept in a ring for the windows below.
template <class M>
void rows_with_offsets(const PoolPlan& plan, const PoolOperands& operands, void* workspace, const Threads& threads) {
  using E = typename M::E;
  constexpr int L = kLanes<E>;
  const PoolProblem& d = plan.problem;
  const Axis rows = vertical(d), columns = horizontal(d);
  const Phases phases(columns, d.q);
  const int64_t ring = (d.r - 1) * d.dilation_h + 1, row_size = phases.slots * phases.pitch;
  // Shared tables: the shift of each tap, and the first tap of each window that lies inside the row.
  int64_t* const shift = static_cast<int64_t*>(workspace);
  Code<E>* const first_tap = reinterpret_cast<Code<E>*>(shift + d.s);
  for (int64_t s = 0; s < d.s; ++s) shift[s] = phases.slot(s) * phases.pitch + phases.delay(s);
  for (int64_t q = 0; q < d.q + kMargin; ++q)
    first_tap[q] = q < d.q && columns.first(q) < columns.last(q) ? static_cast<Code<E>>(columns.first(q)) : -1;
  const E* x = static_cast<const E*>(operands.x);
  const E* x_end = end_of(x, d, true, d.x_strides);

  parallel_tasks(threads, tasks_of(plan), [&](int thread, int64_t task) {
    const Share share = share_of(plan, task);
    int64_t* const held = scratch_of<int64_t>(plan, workspace, thread);  // which input row each place of the ring holds
    const E** const tap_rows = reinterpret_cast<const E**>(held + ring);
    E* const kept = reinterpret_cast<E*>(tap_rows + d.r);
    E* const linear = kept + ring * row_size;
    fill(kept, ring * row_size, M::lowest());
    E* const y = static_cast<E*>(operands.y);
    Offset* const offsets = static_cast<Offset*>(operands.offsets);
    const int64_t end = ((share.unit_end - 1) * d.p + share.row_end) * d.q;
    for (int64_t unit = share.unit; unit < share.unit_end; ++unit) {
      const E* plane = x + unit / d.c * d.x_strides[0] + unit % d.c * d.x_strides[1];
      fill<int64_t>(held, ring, -1);
      for (int64_t p = share.row; p < share.row_end; ++p) {
        const int64_t r_first = rows.first(p), r_last = rows.last(p), out = (unit * d.p + p) * d.q;
        const int64_t top = rows.start(p);
        if (r_first >= r_last) {
          fill(y + out, d.q, M::lowest());
          fill(offsets + out, d.q, kNone);
          continue;
        }
        int64_t place = (top + r_first * rows.dilation) % ring;  // of the row in the ring
        for (int64_t r = r_first; r < r_last; ++r, place += rows.dilation) {
          const int64_t h = top + r * rows.dilation;
          if (place >= ring) place -= ring;
          tap_rows[r] = kept + place * row_size;
          if (held[place] == h) continue;
          held[place] = h;
          const E* from = plane + h * d.x_strides[2];
          spread(columns, phases, M::lowest(), linear, kept + place * row_size,
                 [&](int64_t w) { return load_until<E, L>(from + w, x_end, load<E>); });
        }
        in_blocks(ceil_div(d.q, L), [&](int64_t first, auto count) {
          constexpr int N = decltype(count)::value;
          typename M::Best best[N];
          for (int n = 0; n < N; ++n) {
            const Vec<Code<E>> none = Vec<Code<E>>{} - 1, s = load(first_tap + (first + n) * L);
            const Vec<Code<E>> inside = s + static_cast<Code<E>>(r_first * d.s);
            best[n] = M::start(s == none ? none : inside);
          }
          for (int64_t r = r_first; r < r_last; ++r) {
            const E* from = tap_rows[r] + first * L;
            for (int64_t s = 0; s < d.s; ++s) {
              const Vec<Code<E>> code = Vec<Code<E>>{} + static_cast<Code<E>>(r * d.s + s);
              for (int n = 0; n < N; ++n) M::take(best[n], load(from + shift[s] + n * L), code);
            }
          }
          for (int n = 0; n < N; ++n) {
            const int64_t at = out + (first + n) * L;
            store_until<E, L>(y + at, y + end, [&](E* p) { store(p, M::result(best[n])); });
            store_until<Offset, L>(offsets + at, offsets + end,
                                   [&](Offset* p) { store_codes<E, Offset>(p, best[n].code); });
          }
        });
      }
    }
  });
}

// Channels, with offsets.
template <class M>
void channels_with_offsets(const PoolPlan& plan, const PoolOperands& operands, const Threads& threads) {
  using E = typename M::E;
  constexpr int L = kLanes<E>;
  const PoolProblem& d = plan.problem;
  const Axis rows = vertical(d), columns = horizontal(d);
  const E* x = static_cast<const E*>(operands.x);
  const E* x_end = end_of(x, d, true, d.x_strides);
  const int64_t row_step = rows.dilation * d.x_strides[2], column_step = columns.dilation * d.x_strides[3];
  const bool inside = d.c >= L;  // else vectors run over into the next pixel

  parallel_tasks(threads, tasks_of(plan), [&](int, int64_t task) {
    const Share share = share_of(plan, task);
    E* const y = static_cast<E*>(operands.y);
    Offset* const offsets = static_cast<Offset*>(operands.offsets);
    const int64_t end = ((share.unit_end - 1) * d.p + share.row_end) * d.q * d.c;
    for (int64_t n = share.unit; n < share.unit_end; ++n) {
      for (int64_t p = share.row; p < share.row_end; ++p) {
        const int64_t r_first = rows.first(p), r_last = rows.last(p);
        for (int64_t q = 0; q < d.q; ++q) {
          const int64_t s_first = columns.first(q), s_last = columns.last(q), out = ((n * d.p + p) * d.q + q) * d.c;
          if (r_first >= r_last || s_first >= s_last) {
            fill(y + out, d.c, M::lowest());
            fill(offsets + out, d.c, kNone);
            continue;
          }
          const E* from = x + n * d.x_strides[0] + rows.start(p) * d.x_strides[2] + columns.start(q) * d.x_strides[3];
          in_channel_blocks<L>(d.c, [&](int64_t c, auto count) {
            constexpr int N = decltype(count)::value;
            typename M::Best best[N];
            for (int i = 0; i < N; ++i)
              best[i] = M::start(Vec<Code<E>>{} + static_cast<Code<E>>(r_first * d.s + s_first));
            for (int64_t r = r_first; r < r_last; ++r) {
              for (int64_t s = s_first; s < s_last; ++s) {
                const E* tap = from + r * row_step + s * column_step + c;
                const Vec<Code<E>> code = Vec<Code<E>>{} + static_cast<Code<E>>(r * d.s + s);
                for (int i = 0; i < N; ++i)
                  M::take(best[i], inside ? load(tap + i * L) : load_until<E, L>(tap, x_end, load<E>), code);
              }
            }
            for (int i = 0; i < N; ++i) {
              const int64_t at = out + c + i * L;
              store_until<E, L>(y + at, y + end, [&](E* p) { store(p, M::result(best[i])); });
              store_until<Offset, L>(offsets + at, offsets + end,
                                     [&](Offset* p) { store_codes<E, Offset>(p, best[i].code); });
            }
          });
        }
      }
    }
  });
}

// Any strides, any window: the definition, element by element. O is void for values only.
template <class M, class O>
void planes(const PoolPlan& plan, const PoolOperands& operands, const Threads& threads) {
  using E = typename M::E;
  const PoolProblem& d = plan.problem;
  const Axis rows = vertical(d), columns = horizontal(d);
  parallel_tasks(threads, tasks_of(plan), [&](int, int64_t task) {
    const Share share = share_of(plan, task);
    for (int64_t unit = share.unit; unit < share.unit_end; ++unit) {
      const int64_t n = unit / d.c, c = unit % d.c;
      const E* x = static_cast<const E*>(operands.x) + n * d.x_strides[0] + c * d.x_strides[1];
      E* y = static_cast<E*>(operands.y) + n * d.y_strides[0] + c * d.y_strides[1];
      for (int64_t p = share.row; p < share.row_end; ++p) {
        const int64_t r_first = rows.first(p), r_last = rows.last(p), top = rows.start(p);
        for (int64_t q = 0; q < d.q; ++q) {
          const int64_t s_first = columns.first(q), s_last = columns.last(q), left = columns.start(q);
          E best = M::lowest();
          int64_t code = r_first < r_last && s_first < s_last ? r_first * d.s + s_first : -1;
          for (int64_t r = r_first; r < r_last; ++r) {
            const E* row = x + (top + r * rows.dilation) * d.x_strides[2];
            for (int64_t s = s_first; s < s_last; ++s) {
              const E v = row[(left + s * columns.dilation) * d.x_strides[3]];
              if (!M::wins(v, best)) continue;
              best = v;
              code = r * d.s + s;
            }
          }
          y[p * d.y_strides[2] + q * d.y_strides[3]] = best;
          if constexpr (!std::is_void_v<O>)
            static_cast<O*>(operands.offsets)[n * d.offset_strides[0] + c * d.offset_strides[1] +
                                              p * d.offset_strides[2] + q * d.offset_strides[3]] =
                static_cast<O>(code);
        }
      }
    }
  });
}

// Vectors are for floating point; integers, which torch takes too, are nowhere in a hurry.
template <class T>
constexpr bool kHasVectors = !std::is_integral_v<T>;

template <class T>
void forward(const PoolPlan& plan, const PoolOperands& operands, void* workspace, const Threads& threads) {
  using M = Order<T>;
  if constexpr (kHasVectors<T>) {
    const auto path = static_cast<PoolPath>(plan.detail[kPath]);
    const bool values_only = plan.problem.offset_bytes == 0;
    if (path == PoolPath::whole) return forward_whole(plan, MaxOfValues<M>{}, operands, threads);
    if (path == PoolPath::rows && plan.problem.adaptive)
      return forward_adaptive_rows(plan, MaxOfValues<M>{}, operands, workspace, threads);
    if (path == PoolPath::rows)
      return values_only ? forward_rows(plan, MaxOfValues<M>{}, operands, workspace, threads)
                         : rows_with_offsets<M>(plan, operands, workspace, threads);
    if (path == PoolPath::channels)
      return values_only ? forward_channels(plan, MaxOfValues<M>{}, operands, threads)
                         : channels_with_offsets<M>(plan, operands, threads);
  }
  switch (plan.problem.offset_bytes) {
    case 1: return planes<M, uint8_t>(plan, operands, threads);
    case 2: return planes<M, uint16_t>(plan, operands, threads);
    case 4: return planes<M, uint32_t>(plan, operands, threads);
    default: return planes<M, void>(plan, operands, threads);
  }
}

}  // namespace

void max_pool_forward(const PoolPlan& plan, const PoolOperands& operands, void* workspace, const Threads& threads) {
  with_dtype(plan.problem.dtype,
             [&](auto zero) { forward<decltype(zero)>(plan, operands, workspace, threads); });
}

}  // namespace fastconv::cpu::FASTCONV_ISA
