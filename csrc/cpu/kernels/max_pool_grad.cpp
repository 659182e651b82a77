// Max-pooling's gradient, and `gather`, the gradient's transpose: both read window offsets and no input.
//
// Of small windows the inputs gather, in vectors (max_grad_gather.h). Otherwise a scalar scatter does one addition per
// output in place of up to R * S comparisons per input.
#include "max_grad_gather.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// Where window offsets lead. They come from outside, so one that leads out of the plane is passed over, like "none".
struct Tap {
  int64_t distance;  // from the window's corner, in elements
  int64_t column;    // from its left column
};
void fill_taps(const PoolProblem& d, int64_t step_h, int64_t step_w, Tap* taps) {
  for (int64_t r = 0; r < d.r; ++r)
    for (int64_t s = 0; s < d.s; ++s)
      taps[r * d.s + s] = {r * d.dilation_h * step_h + s * d.dilation_w * step_w, s * d.dilation_w};
}

// Of one row of windows.
struct Targets {
  const Tap* taps;
  uint64_t first, count;  // offsets of the taps that lie in rows of the plane
  uint64_t width;

  Targets(const Tap* taps, const PoolProblem& d, const Axis& rows, int64_t p) : taps(taps), width(d.w) {
    const int64_t rows_inside = rows.last(p) - rows.first(p);
    first = rows.first(p) * d.s;
    count = rows_inside > 0 ? rows_inside * d.s : 0;
  }
  // Whether `offset` leads into the plane from a window whose left column is `left`.
  bool hit(uint64_t offset, int64_t left) const {
    return offset - first < count && static_cast<uint64_t>(left + taps[offset].column) < width;
  }
};

// One row of sums to T.
template <class T>
void narrow_row(const Compute<T>* from, T* to, int64_t count, int64_t step) {
  constexpr int L = kLanes<Compute<T>>;
  int64_t i = 0;
  if (step == 1)
    for (; i + L <= count; i += L) store_narrow<T>(to + i, load(from + i));
  for (; i < count; ++i) to[i * step] = narrow<T>(from[i]);
}

// Adds a run of outputs to the sums that their offsets choose. Windows are `left_step` columns and `corner_step`
// elements apart (no columns, for a run of channels).
template <class T, class S, class O>
inline void scatter_run(const Targets targets, int64_t count, const O* codes, int64_t codes_step, const T* from,
                        int64_t from_step, S* sums, int64_t corner, int64_t corner_step, int64_t left,
                        int64_t left_step) {
  using A = Compute<T>;
  for (int64_t i = 0; i < count; ++i, left += left_step, corner += corner_step) {
    const uint64_t code = codes[i * codes_step];
    if (!targets.hit(code, left)) continue;
    S& sum = sums[corner + targets.taps[code].distance];
    sum = static_cast<S>(static_cast<A>(sum) + widen(from[i * from_step]));
  }
}

// Any strides, any window. A unit is a block of channels of one image, which the task scatters into; 16-bit floating
// point by way of a plane of sums in fp32. Rows are set to zero just before the windows reach them, while in cache.
template <class T, class O>
void scatter(const PoolPlan& plan, const PoolOperands& operands, void* workspace, const Threads& threads) {
  using A = Compute<T>;
  using S = std::conditional_t<std::is_integral_v<T>, T, A>;  // of the sums
  constexpr bool in_place = sizeof(T) == sizeof(S);
  const PoolProblem& d = plan.problem;
  const Axis rows = vertical(d), columns = horizontal(d);
  const int64_t block = plan.detail[kChannelBlock], blocks = ceil_div(d.c, block);
  const int64_t step_c = in_place ? d.x_strides[1] : 1, step_w = in_place ? d.x_strides[3] : block;
  const int64_t step_h = in_place ? d.x_strides[2] : d.w * block;
  const bool contiguous = step_h == d.w * step_w && step_w == block && (step_c == 1 || block == 1);
  Tap* const taps = static_cast<Tap*>(workspace);
  fill_taps(d, step_h, step_w, taps);

  parallel_tasks(threads, tasks_of(plan), [&](int thread, int64_t task) {
    const Share share = share_of(plan, task);
    for (int64_t unit = share.unit; unit < share.unit_end; ++unit) {
      const int64_t n = unit / blocks, c0 = unit % blocks * block, count = d.c - c0 < block ? d.c - c0 : block;
      T* const dx = static_cast<T*>(operands.x) + n * d.x_strides[0] + c0 * d.x_strides[1];
      const T* const dy = static_cast<const T*>(operands.y) + n * d.y_strides[0] + c0 * d.y_strides[1];
      const O* const offsets =
          static_cast<const O*>(operands.offsets) + n * d.offset_strides[0] + c0 * d.offset_strides[1];
      S* const sums = in_place ? reinterpret_cast<S*>(dx) : scratch_of<S>(plan, workspace, thread);
      int64_t zeroed = 0;
      const auto zero_up_to = [&](int64_t end) {
        end = end < d.h ? end : d.h;
        if (zeroed >= end) return;
        if (contiguous && count == block) {
          std::memset(sums + zeroed * step_h, 0, (end - zeroed) * step_h * sizeof(S));
        } else {
          for (int64_t h = zeroed; h < end; ++h)
            for (int64_t w = 0; w < d.w; ++w)
              for (int64_t c = 0; c < count; ++c) sums[h * step_h + w * step_w + c * step_c] = S(0);
        }
        zeroed = end;
      };
      for (int64_t p = 0; p < d.p; ++p) {
        zero_up_to(rows.start(p) + (d.r - 1) * d.dilation_h + 1);
        const T* const from = dy + p * d.y_strides[2];
        const O* const codes = offsets + p * d.offset_strides[2];
        const Targets targets(taps, d, rows, p);
        const int64_t row = rows.start(p) * step_h;
        if (count == 1 && !d.adaptive) {
          scatter_run(targets, d.q, codes, d.offset_strides[3], from, d.y_strides[3], sums, row - columns.pad * step_w,
                      columns.stride * step_w, -columns.pad, columns.stride);
        } else {
          for (int64_t q = 0; q < d.q; ++q)
            scatter_run(targets, count, codes + q * d.offset_strides[3], d.offset_strides[1],
                        from + q * d.y_strides[3], d.y_strides[1], sums, row + columns.start(q) * step_w, step_c,
                        columns.start(q), 0);
        }
      }
      zero_up_to(d.h);
      if constexpr (!in_place) {
        for (int64_t h = 0; h < d.h; ++h) {
          if (block == 1) {
            narrow_row(sums + h * step_h, dx + h * d.x_strides[2], d.w, d.x_strides[3]);
          } else {
            for (int64_t w = 0; w < d.w; ++w)
              narrow_row(sums + h * step_h + w * step_w, dx + h * d.x_strides[2] + w * d.x_strides[3], count,
                         d.x_strides[1]);
          }
        }
      }
    }
  });
}

// y = x at the offset, 0 where there is none. B holds the bits of an element.
template <class B, class O>
void gather(const PoolPlan& plan, const PoolOperands& operands, void* workspace, const Threads& threads) {
  const PoolProblem& d = plan.problem;
  const Axis rows = vertical(d), columns = horizontal(d);
  Tap* const taps = static_cast<Tap*>(workspace);
  fill_taps(d, d.x_strides[2], d.x_strides[3], taps);
  parallel_tasks(threads, tasks_of(plan), [&](int, int64_t task) {
    const Share share = share_of(plan, task);
    for (int64_t unit = share.unit; unit < share.unit_end; ++unit) {
      const int64_t n = unit / d.c, c = unit % d.c;
      const B* const x = static_cast<const B*>(operands.x) + n * d.x_strides[0] + c * d.x_strides[1];
      B* const y = static_cast<B*>(operands.y) + n * d.y_strides[0] + c * d.y_strides[1];
      const O* const offsets =
          static_cast<const O*>(operands.offsets) + n * d.offset_strides[0] + c * d.offset_strides[1];
      for (int64_t p = share.row; p < share.row_end; ++p) {
        const Targets targets(taps, d, rows, p);
        for (int64_t q = 0; q < d.q; ++q) {
          const uint64_t code = offsets[p * d.offset_strides[2] + q * d.offset_strides[3]];
          const int64_t corner = rows.start(p) * d.x_strides[2] + columns.start(q) * d.x_strides[3];
          y[p * d.y_strides[2] + q * d.y_strides[3]] =
              targets.hit(code, columns.start(q)) ? x[corner + taps[code].distance] : B(0);
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
      if (path == PoolPath::rows) return rows_gather<T>(plan, operands, workspace, threads);
      if (path == PoolPath::channels)
        return plan.problem.c >= kLanes<Compute<T>> ? channels_gather<T, true>(plan, operands, workspace, threads)
                                                    : channels_gather<T, false>(plan, operands, workspace, threads);
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
