// Max-pooling's gradient, and `gather`, the gradient's transpose: both read window offsets and no input.
//
// The vector paths compare the offsets of the windows that cover an element with that element's place in each, so they
// are safe with any offsets. With large overlapping windows that is too much work, and a scalar scatter wins.
#include "pool_grad_loops.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

using Offset = uint8_t;  // of the vector paths

// A row of grad_output in reach: its values, its offsets widened to the same lanes, and the offset that would choose the
// input row in hand by its first tap.
template <class A>
struct CoveringRow {
  const A* values;
  const Code<A>* codes;
  int64_t base;
};

template <class T>
void rows_grad(const PoolPlan& plan, const PoolOperands& operands, void* workspace, const Threads& threads) {
  using A = Compute<T>;
  constexpr int L = kLanes<A>;
  const PoolProblem& d = plan.problem;
  const Axis rows = vertical(d), columns = horizontal(d);
  const Phases phases(columns, padded_outputs(columns));
  const int64_t ring = rows_in_flight(d), reach = phases.reach;
  int64_t* const delay = static_cast<int64_t*>(workspace);
  for (int64_t s = 0; s < d.s; ++s) delay[s] = phases.delay(s);
  const T* const dy = static_cast<const T*>(operands.y);
  const T* const dy_end = end_of(dy, d, false, d.y_strides);
  const Offset* const offsets = static_cast<const Offset*>(operands.offsets);
  const Offset* const offsets_end = end_of(offsets, d, false, d.offset_strides);

  parallel_tasks(threads, tasks_of(plan), [&](int thread, int64_t task) {
    const Share share = share_of(plan, task);
    int64_t* const held = scratch_of<int64_t>(plan, workspace, thread);
    Cover* const covers = reinterpret_cast<Cover*>(held + ring);
    auto* const covering = reinterpret_cast<CoveringRow<A>*>(covers + d.r);
    A* const values = reinterpret_cast<A*>(covering + d.r);
    Code<A>* const codes = reinterpret_cast<Code<A>*>(values + ring * phases.pitch);
    A* const linear = reinterpret_cast<A*>(codes + ring * phases.pitch);
    fill(values, ring * phases.pitch, A(0));
    fill(codes, ring * phases.pitch, Code<A>(-1));
    T* const dx = static_cast<T*>(operands.x);
    const T* const dx_end = dx + ((share.unit_end - 1) * d.h + share.row_end) * d.w;
    for (int64_t unit = share.unit; unit < share.unit_end; ++unit) {
      const int64_t n = unit / d.c, c = unit % d.c;
      fill<int64_t>(held, ring, -1);
      for (int64_t h = share.row; h < share.row_end; ++h) {
        const int64_t count = covers_of(rows, h, covers);
        for (int64_t k = 0; k < count; ++k) {
          const int64_t p = covers[k].o, place = p % ring;
          A* const to = values + place * phases.pitch;
          Code<A>* const codes_to = codes + place * phases.pitch;
          covering[k] = {to, codes_to, covers[k].tap * d.s};
          if (held[place] == p) continue;
          held[place] = p;
          const T* from = dy + n * d.y_strides[0] + c * d.y_strides[1] + p * d.y_strides[2];
          const Offset* codes_from =
              offsets + n * d.offset_strides[0] + c * d.offset_strides[1] + p * d.offset_strides[2];
          for (int64_t q = 0; q < d.q; q += L) {
            store(to + reach + q, load_strided<T>(from + q * d.y_strides[3], d.y_strides[3], d.q - q, dy_end));
            if (d.offset_strides[3] == 1) {
              store(codes_to + reach + q, load_until<Offset, L>(codes_from + q, offsets_end, load_codes<A, Offset>));
            } else {
              for (int64_t l = 0; l < L && q + l < d.q; ++l)
                codes_to[reach + q + l] = static_cast<Code<A>>(codes_from[(q + l) * d.offset_strides[3]]);
            }
          }
          fill(codes_to + reach + d.q, L, Code<A>(-1));  // where vectors ran over
        }
        T* const row = dx + (unit * d.h + h) * d.w;
        emit_row<T>(columns, phases, row, dx_end, linear, [&](int64_t slot, int64_t i, Vec<A>* v, auto vectors) {
          constexpr int N = decltype(vectors)::value;
          Vec<A> sum[N] = {};
          for (int64_t k = 0; k < count; ++k) {
            for (int64_t s = slot; s < d.s; s += phases.slots) {
              const Vec<Code<A>> code = Vec<Code<A>>{} + static_cast<Code<A>>(covering[k].base + s);
              const int64_t at = i - delay[s] + reach;
              for (int m = 0; m < N; ++m) {
                const Vec<Code<A>> chosen = load(covering[k].codes + at + m * L) == code;
                sum[m] += chosen ? load(covering[k].values + at + m * L) : Vec<A>{};
              }
            }
          }
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
  const Axis rows = vertical(d);
  const CoverTable columns(horizontal(d), workspace);
  const T* const dy = static_cast<const T*>(operands.y);
  const T* const dy_end = end_of(dy, d, false, d.y_strides);
  const Offset* const offsets = static_cast<const Offset*>(operands.offsets);
  const Offset* const offsets_end = end_of(offsets, d, false, d.offset_strides);
  const bool inside = d.c >= L;

  parallel_tasks(threads, tasks_of(plan), [&](int thread, int64_t task) {
    const Share share = share_of(plan, task);
    Cover* const covers = scratch_of<Cover>(plan, workspace, thread);
    T* const dx = static_cast<T*>(operands.x);
    const T* const dx_end = dx + ((share.unit_end - 1) * d.h + share.row_end) * d.w * d.c;
    for (int64_t n = share.unit; n < share.unit_end; ++n) {
      for (int64_t h = share.row; h < share.row_end; ++h) {
        const int64_t row_count = covers_of(rows, h, covers);
        for (int64_t w = 0; w < d.w; ++w) {
          T* const to = dx + ((n * d.h + h) * d.w + w) * d.c;
          in_channel_blocks<L>(d.c, [&](int64_t c, auto count) {
            constexpr int N = decltype(count)::value;
            Vec<A> sum[N] = {};
            for (int64_t k = 0; k < row_count; ++k) {
              const T* from = dy + n * d.y_strides[0] + covers[k].o * d.y_strides[2] + c;
              const Offset* codes = offsets + n * d.offset_strides[0] + covers[k].o * d.offset_strides[2] + c;
              for (int64_t j = columns.start[w]; j < columns.start[w + 1]; ++j) {
                const Cover column = columns.all[j];
                const Vec<Code<A>> code = Vec<Code<A>>{} + static_cast<Code<A>>(covers[k].tap * d.s + column.tap);
                const T* values_at = from + column.o * d.y_strides[3];
                const Offset* codes_at = codes + column.o * d.offset_strides[3];
                for (int m = 0; m < N; ++m) {
                  const Vec<A> value =
                      inside ? load_wide<T>(values_at + m * L) : load_until<T, L>(values_at, dy_end, load_wide<T>);
                  const Vec<Code<A>> chosen =
                      inside ? load_codes<A, Offset>(codes_at + m * L)
                             : load_until<Offset, L>(codes_at, offsets_end, load_codes<A, Offset>);
                  sum[m] += chosen == code ? value : Vec<A>{};
                }
              }
            }
            for (int m = 0; m < N; ++m)
              store_until<T, L>(to + c + m * L, dx_end, [&](T* p) { store_narrow<T>(p, sum[m]); });
          });
        }
      }
    }
  });
}

// Where a window offset points, if anywhere: offsets come from outside, and a wrong one must not reach outside the plane.
struct Target {
  Axis rows, columns;
  const int64_t* tap_row;     // r * dilation of each offset
  const int64_t* tap_column;  // s * dilation
  int64_t taps;

  Target(const PoolProblem& d, void* memory) : rows(vertical(d)), columns(horizontal(d)), taps(d.r * d.s) {
    int64_t* r = static_cast<int64_t*>(memory);
    int64_t* s = r + taps;
    for (int64_t t = 0; t < taps; ++t) {
      r[t] = t / d.s * d.dilation_h;
      s[t] = t % d.s * d.dilation_w;
    }
    tap_row = r;
    tap_column = s;
  }
  bool find(int64_t p, int64_t q, int64_t offset, int64_t& h, int64_t& w) const {
    if (offset >= taps) return false;
    h = rows.start(p) + tap_row[offset];
    w = columns.start(q) + tap_column[offset];
    return h >= 0 && h < rows.in && w >= 0 && w < columns.in;
  }
};

// Any strides, any window. A unit is a block of channels of one image, which the task scatters into; 16-bit floating
// point by way of a plane of sums in fp32.
template <class T, class O>
void scatter(const PoolPlan& plan, const PoolOperands& operands, void* workspace, const Threads& threads) {
  using A = Compute<T>;
  using S = std::conditional_t<std::is_integral_v<T>, T, A>;  // of the sums
  constexpr bool in_place = sizeof(T) == sizeof(S);
  const PoolProblem& d = plan.problem;
  const Target target(d, workspace);
  const int64_t block = plan.detail[kChannelBlock], blocks = ceil_div(d.c, block);
  parallel_tasks(threads, tasks_of(plan), [&](int thread, int64_t task) {
    const Share share = share_of(plan, task);
    for (int64_t unit = share.unit; unit < share.unit_end; ++unit) {
      const int64_t n = unit / blocks, c0 = unit % blocks * block, count = d.c - c0 < block ? d.c - c0 : block;
      T* const dx = static_cast<T*>(operands.x) + n * d.x_strides[0] + c0 * d.x_strides[1];
      const T* const dy = static_cast<const T*>(operands.y) + n * d.y_strides[0] + c0 * d.y_strides[1];
      const O* const offsets =
          static_cast<const O*>(operands.offsets) + n * d.offset_strides[0] + c0 * d.offset_strides[1];
      S* sums;
      int64_t step_c, step_h, step_w;
      if constexpr (in_place) {
        sums = reinterpret_cast<S*>(dx);
        step_c = d.x_strides[1], step_h = d.x_strides[2], step_w = d.x_strides[3];
      } else {
        sums = scratch_of<S>(plan, workspace, thread);
        step_c = 1, step_w = block, step_h = d.w * block;
      }
      for (int64_t h = 0; h < d.h; ++h)
        for (int64_t w = 0; w < d.w; ++w)
          for (int64_t c = 0; c < count; ++c) sums[h * step_h + w * step_w + c * step_c] = S(0);
      for (int64_t p = 0; p < d.p; ++p) {
        for (int64_t q = 0; q < d.q; ++q) {
          const T* from = dy + p * d.y_strides[2] + q * d.y_strides[3];
          const O* codes = offsets + p * d.offset_strides[2] + q * d.offset_strides[3];
          for (int64_t c = 0; c < count; ++c) {
            int64_t h, w;
            if (!target.find(p, q, codes[c * d.offset_strides[1]], h, w)) continue;
            S& sum = sums[h * step_h + w * step_w + c * step_c];
            sum = static_cast<S>(static_cast<A>(sum) + widen(from[c * d.y_strides[1]]));
          }
        }
      }
      if constexpr (!in_place) {
        for (int64_t h = 0; h < d.h; ++h)
          for (int64_t w = 0; w < d.w; ++w)
            for (int64_t c = 0; c < count; ++c)
              dx[h * d.x_strides[2] + w * d.x_strides[3] + c * d.x_strides[1]] =
                  narrow<T>(sums[h * step_h + w * step_w + c]);
      }
    }
  });
}

// y = x at the offset, 0 where there is none. B holds the bits of an element.
template <class B, class O>
void gather(const PoolPlan& plan, const PoolOperands& operands, void* workspace, const Threads& threads) {
  const PoolProblem& d = plan.problem;
  const Target target(d, workspace);
  parallel_tasks(threads, tasks_of(plan), [&](int, int64_t task) {
    const Share share = share_of(plan, task);
    for (int64_t unit = share.unit; unit < share.unit_end; ++unit) {
      const int64_t n = unit / d.c, c = unit % d.c;
      const B* const x = static_cast<const B*>(operands.x) + n * d.x_strides[0] + c * d.x_strides[1];
      B* const y = static_cast<B*>(operands.y) + n * d.y_strides[0] + c * d.y_strides[1];
      const O* const offsets =
          static_cast<const O*>(operands.offsets) + n * d.offset_strides[0] + c * d.offset_strides[1];
      for (int64_t p = share.row; p < share.row_end; ++p) {
        for (int64_t q = 0; q < d.q; ++q) {
          int64_t h, w;
          const bool found = target.find(p, q, offsets[p * d.offset_strides[2] + q * d.offset_strides[3]], h, w);
          y[p * d.y_strides[2] + q * d.y_strides[3]] = found ? x[h * d.x_strides[2] + w * d.x_strides[3]] : B(0);
        }
      }
    }
  });
}

template <class F>
void with_offset_type(int bytes, F&& f) {
  if (bytes == 1) return f(uint8_t{});
  if (bytes == 2) return f(uint16_t{});
  f(uint32_t{});
}

}  // namespace

void max_pool_grad(const PoolPlan& plan, const PoolOperands& operands, void* workspace, const Threads& threads) {
  with_dtype(plan.problem.dtype, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (!std::is_integral_v<T>) {
      const auto path = static_cast<PoolPath>(plan.detail[kPath]);
      if (path == PoolPath::rows) return rows_grad<T>(plan, operands, workspace, threads);
      if (path == PoolPath::channels) return channels_grad<T>(plan, operands, workspace, threads);
    }
    with_offset_type(plan.problem.offset_bytes,
                     [&](auto offset) { scatter<T, decltype(offset)>(plan, operands, workspace, threads); });
  });
}

void max_pool_gather(const PoolPlan& plan, const PoolOperands& operands, void* workspace, const Threads& threads) {
  with_dtype(plan.problem.dtype, [&](auto zero) {
    using B = typename IntOf<sizeof(zero)>::type;
    with_offset_type(plan.problem.offset_bytes,
                     [&](auto offset) { gather<B, decltype(offset)>(plan, operands, workspace, threads); });
  });
}

}  // namespace fastconv::cpu::FASTCONV_ISA
