// Max-pooling's gradient as a gather: each input element compares the offsets of the windows that cover it with its own
// place in them, and takes what those that chose it were given. No branches, and sums in a fixed order.
#pragma once

#include "pool_loops.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

using Offset = uint8_t;  // of the vector paths; windows of more than 255 positions take the plain one
constexpr Offset kNone = 0xff;

template <int L>
using Bytes = typename Lanes<Offset, L>::type;
template <int L>
inline Bytes<L> load_bytes(const Offset* p) {
  return *reinterpret_cast<const typename Lanes<Offset, L>::unaligned*>(p);
}
template <int L>
inline void store_bytes(Offset* p, Bytes<L> v) {
  *reinterpret_cast<typename Lanes<Offset, L>::unaligned*>(p) = v;
}

// Adds those of N vectors of values whose windows chose tap `code`. AVX-512 compares 64 offsets at a time, which halves
// the work of the port that shuffles and compares: twice as fast.
template <int N, class T, class A = Compute<T>>
inline void add_chosen(Vec<A>* sum, const Offset* offsets, int64_t code, const T* values) {
  constexpr int L = kLanes<A>;
#if defined(__AVX512BW__)
  if constexpr (N == 4 && sizeof(A) == 4) {
    const __m512i tap = _mm512_set1_epi8(static_cast<char>(code));
    const __mmask64 chosen = _mm512_cmpeq_epi8_mask(_mm512_loadu_si512(offsets), tap);
    const __mmask64 masks[4] = {chosen, _kshiftri_mask64(chosen, 16), _kshiftri_mask64(chosen, 32),
                                _kshiftri_mask64(chosen, 48)};
    // Not by intrinsic: GCC 12 moves every mask through a general register, to extend a sign that nobody reads.
    for (int m = 0; m < 4; ++m)
      asm("vaddps %1, %0, %0%{%2%}" : "+v"(sum[m]) : "v"(load_wide<T>(values + m * L)), "Yk"(masks[m]));
    return;
  }
#endif
  for (int m = 0; m < N; ++m) {
    const Vec<Code<A>> chosen = load_codes<A, Offset>(offsets + m * L);
    sum[m] += chosen == static_cast<Code<A>>(code) ? load_wide<T>(values + m * L) : Vec<A>{};
  }
}

// Rows (NCHW). Outputs are copied into a lattice (pool_window.h) whose margins chose nothing; then, for the inputs of
// one phase of both strides, every tap is the same shift all over the lattice. So sums run over bands of rows, or
// several planes, at a time: short rows waste no lanes, and what is stored at one alignment is loaded at another only
// after it has left the store buffer. Rows are interleaved from the phases' sums at the end.
//
// Of most layers grad_output as it lies is such a lattice, as long as offsets lead into the plane (any others lead
// elsewhere in the tensor, or nowhere). Measured, 832 planes of 7 x 7, 3 x 3 with stride 1: 21 us, copied 63, row by
// row 109, scattered 95.
//
// The steps take what they need by value: vectors may alias anything, so what lies in memory is loaded again after each
// store.

// Of a row of grad_output and its offsets, for any row.
template <class T>
struct LineCopy {
  static constexpr int L = kLanes<Compute<T>>;
  const T* values_end;
  const Offset* codes_end;
  int64_t count, pitch;
  Bytes<L> beyond;  // the lanes of the last vector that are past the row's end

  void operator()(const T* from, const Offset* choice, Compute<T>* to, Offset* chosen) const {
    int64_t q = 0;
    for (; q < count; q += L) {
      store(to + q, load_until<T, L>(from + q, values_end, load_wide<T>));
      const auto some = load_until<Offset, L>(choice + q, codes_end, load_bytes<L>);
      store_bytes<L>(chosen + q, q + L < count ? some : some | beyond);
    }
    for (; q < pitch; ++q) chosen[q] = kNone;
  }
};

// A tap: how far before the input's place in the lattice its output lies, and its offset in the window.
struct Shift {
  int32_t rows, columns;
  int64_t code;
};

template <class V, class A>
inline void sum_shifts(const Shift* begin, const Shift* end, int64_t pitch, const V* values, const Offset* codes, A* to,
                       int64_t size) {
  constexpr int L = kLanes<A>;
  in_blocks<4>(ceil_div(size, L), [=](int64_t vector, auto vectors) {
    constexpr int N = decltype(vectors)::value;
    Vec<A> sum[N] = {};
    for (const Shift* shift = begin; shift < end; ++shift) {
      const int64_t at = vector * L - (shift->rows * pitch + shift->columns);
      add_chosen<N>(sum, codes + at, shift->code, values + at);
    }
    for (int m = 0; m < N; ++m) store(to + (vector + m) * L, sum[m]);
  });
}

// A row of grad_input from the sums of its columns' phases.
template <class T, int Stride>
inline void emit_line(T* row, int64_t width, const Compute<T>* even, const Compute<T>* odd, const T* end) {
  using A = Compute<T>;
  constexpr int L = kLanes<A>;
  const auto put = [=](int64_t w, Vec<A> v) {
    store_until<T, L>(row + w, end, [&](T* p) { store_narrow<T>(p, v); });
  };
  for (int64_t w = 0; w < width; w += Stride * L) {
    if constexpr (Stride == 1) {
      put(w, load(even + w));
    } else {
      const Vec<A> a = load(even + w / 2), b = load(odd + w / 2);
      put(w, interleave<A, 0>(a, b));
      if (w + L < width) put(w + L, interleave<A, 1>(a, b));
    }
  }
}

template <class T>
void rows_gather(const PoolPlan& plan, const PoolOperands& operands, void* workspace, const Threads& threads) {
  using A = Compute<T>;
  constexpr int L = kLanes<A>;
  const PoolProblem& d = plan.problem;
  const Lattice lattice(d);
  // Shared: the taps of phase i are from first[i] to first[i + 1].
  int64_t* const first = static_cast<int64_t*>(workspace);
  Shift* const shifts = reinterpret_cast<Shift*>(first + lattice.phases() + 1);
  static_assert(sizeof(Shift) == Lattice::kShiftBytes);
  int64_t count = 0;
  for (int64_t i = 0; i < lattice.phases(); ++i) {
    first[i] = count;
    for (int64_t r = i / d.stride_w; r < d.r; r += d.stride_h)
      for (int64_t s = i % d.stride_w; s < d.s; s += d.stride_w)
        shifts[count++] = {static_cast<int32_t>(r / d.stride_h), static_cast<int32_t>(s / d.stride_w), r * d.s + s};
  }
  first[lattice.phases()] = count;
  const T* const dy = static_cast<const T*>(operands.y);
  const Offset* const offsets = static_cast<const Offset*>(operands.offsets);
  LineCopy<T> copy_line{end_of(dy, d, false, d.y_strides), end_of(offsets, d, false, d.offset_strides), d.q,
                        lattice.pitch, {}};
  // Of grad_output as it lies, without a copy.
  const Layout layout = layout_of(d.y_sizes(), d.y_strides);
  const bool is_lattice = lattice.overlaid && d.offset_strides == d.y_strides &&
                          (layout == Layout::nchw || layout == Layout::both);
  for (int l = 0; l < L; ++l) copy_line.beyond[l] = l < (d.q - 1) % L + 1 ? 0 : kNone;

  parallel_tasks(threads, tasks_of(plan), [&](int thread, int64_t task) {
    const Share share = share_of(plan, task);
    const int64_t size = lattice.size(), pitch = lattice.pitch, above = lattice.row_delay, left = lattice.column_delay;
    const int64_t base = above * pitch + left, stride = d.stride_h, pad = d.pad_top, width = d.w, outputs = d.p;
    const int64_t total = d.n * d.c * d.p * d.q, y_step = d.y_strides[2], offset_step = d.offset_strides[2];
    A* const sums = scratch_of<A>(plan, workspace, thread);  // of one phase after the other
    A* const values = sums + lattice.phases() * size;
    Offset* const codes = reinterpret_cast<Offset*>(values + size);
    // Between planes nothing is chosen, ever; of bands of one plane the places change.
    const bool stays = lattice.planes > 1;
    std::memset(codes, kNone, stays ? size : base);
    T* const dx = static_cast<T*>(operands.x);
    const T* const dx_end = dx + ((share.unit_end - 1) * d.h + share.row_end) * width;

    // The lines from i on of one plane, and those above that taps reach, to the lattice's from `line` on.
    const LineCopy<T> copy = copy_line;
    const auto copy_plane = [=](int64_t unit, int64_t i, int64_t lines, int64_t line) {
      const int64_t n = unit / d.c, c = unit % d.c;
      const T* const from = dy + n * d.y_strides[0] + c * d.y_strides[1];
      const Offset* const choice = offsets + n * d.offset_strides[0] + c * d.offset_strides[1];
      int64_t at = left + line * pitch;
      for (int64_t p = i - above; p < i + lines; ++p, at += pitch) {
        if (p >= 0 && p < outputs) {
          copy(from + p * y_step, choice + p * offset_step, values + at, codes + at);
        } else if (!stays) {
          std::memset(codes + at, kNone, pitch);
        }
      }
    };
    // The input rows that start with `line` and phase `phase` of the stride, from the phases' sums.
    const auto emit_rows = [=](auto column_stride, T* row, int64_t rows, int64_t line, int64_t pitch, int64_t phase) {
      constexpr int kStride = decltype(column_stride)::value;
      const int64_t pad_left = d.pad_left;
      const auto of_column = [=](int64_t u) { return u % kStride * size + u / kStride; };
      const int64_t even = of_column(pad_left), odd = of_column(pad_left + 1);
      for (; rows > 0; --rows, row += width) {
        const A* const from = sums + phase * kStride * size + line * pitch;
        emit_line<T, kStride>(row, width, from + even, from + odd, dx_end);
        if (++phase < stride) continue;
        phase = 0;
        ++line;
      }
    };

    const int64_t i_begin = (share.row + pad) / stride, i_end = (share.row_end - 1 + pad) / stride + 1;
    for (int64_t unit = share.unit; unit < share.unit_end; unit += lattice.planes) {
      const int64_t planes = share.unit_end - unit < lattice.planes ? share.unit_end - unit : lattice.planes;
      for (int64_t i = i_begin; i < i_end; i += lattice.band) {
        const int64_t lines = i + lattice.band < i_end ? lattice.band : i_end - i;
        const int64_t start = (unit * outputs + i) * d.q;
        const int64_t span = ((planes - 1) * outputs + lines) * d.q + lattice.spill();
        const bool in_place = is_lattice && start >= above * d.q + left && start + span + L <= total;
        const int64_t stacked = in_place ? outputs : lines + above, line_pitch = in_place ? d.q : pitch;
        if (!in_place)
          for (int64_t m = 0; m < planes; ++m) copy_plane(unit + m, i, lines, m * stacked);
        for (int64_t phase = 0; phase < lattice.phases(); ++phase) {
          const Shift* const begin = shifts + first[phase];
          const Shift* const end = shifts + first[phase + 1];
          A* const to = sums + phase * size;
          if (in_place) {
            sum_shifts(begin, end, line_pitch, dy + start, offsets + start, to, span);
          } else {
            sum_shifts(begin, end, pitch, values + base, codes + base, to, ((planes - 1) * stacked + lines) * pitch);
          }
        }
        const int64_t top = i * stride - pad, h = top > share.row ? top : share.row;
        const int64_t below = top + lines * stride, rows = (below < share.row_end ? below : share.row_end) - h;
        if (in_place && d.stride_w == 1 && stride == 1 && width == d.q && (planes == 1 || d.h == outputs)) {
          // Lattice and grad_input are alike.
          const int64_t skipped = (h - top) * width + d.pad_left, rows_of_all = (planes - 1) * outputs + rows;
          emit_line<T, 1>(dx + (unit * d.h + h) * width, rows_of_all * width, sums + skipped, nullptr, dx_end);
          continue;
        }
        for (int64_t m = 0; m < planes; ++m) {
          T* const row = dx + ((unit + m) * d.h + h) * width;
          const int64_t line = m * stacked + (h - top) / stride, phase = (h - top) % stride;
          if (d.stride_w == 1) {
            emit_rows(Count<1>{}, row, rows, line, line_pitch, phase);
          } else {
            emit_rows(Count<2>{}, row, rows, line, line_pitch, phase);
          }
        }
      }
    }
  });
}

// Channels (NHWC). `Inside`: whether there are as many channels as lanes, else vectors run over into the next pixel.
template <class T, bool Inside>
void channels_gather(const PoolPlan& plan, const PoolOperands& operands, void* workspace, const Threads& threads) {
  using A = Compute<T>;
  constexpr int L = kLanes<A>;
  const PoolProblem& d = plan.problem;
  constexpr int kBlock = L >= 16 ? 4 : 8;
  const CoverTable rows(vertical(d), workspace), columns(horizontal(d), rows.end(vertical(d)));
  const T* const dy = static_cast<const T*>(operands.y);
  const T* const dy_end = end_of(dy, d, false, d.y_strides);
  const Offset* const offsets = static_cast<const Offset*>(operands.offsets);
  const Offset* const offsets_end = end_of(offsets, d, false, d.offset_strides);

  struct Tap {  // of one pixel
    const T* values;
    const Offset* offsets;
    int64_t code;
  };
  static_assert(sizeof(Tap) == kChannelTapBytes);

  parallel_tasks(threads, tasks_of(plan), [&](int thread, int64_t task) {
    const Share share = share_of(plan, task);
    const int64_t channels = d.c;
    Tap* const taps = scratch_of<Tap>(plan, workspace, thread);
    T* const dx = static_cast<T*>(operands.x);
    const T* const dx_end = dx + ((share.unit_end - 1) * d.h + share.row_end) * d.w * channels;
    for (int64_t n = share.unit; n < share.unit_end; ++n) {
      for (int64_t h = share.row; h < share.row_end; ++h) {
        for (int64_t w = 0; w < d.w; ++w) {
          const Tap* end = taps;
          for (int64_t k = 0; k < rows.count(h); ++k) {
            for (int64_t j = 0; j < columns.count(w); ++j) {
              const Cover row = rows.of(h)[k], column = columns.of(w)[j];
              taps[end++ - taps] = {
                  dy + n * d.y_strides[0] + row.o * d.y_strides[2] + column.o * d.y_strides[3],
                  offsets + n * d.offset_strides[0] + row.o * d.offset_strides[2] + column.o * d.offset_strides[3],
                  row.tap * d.s + column.tap};
            }
          }
          T* const to = dx + ((n * d.h + h) * d.w + w) * channels;
          in_channel_blocks<L, kBlock>(channels, [=](int64_t c, auto count) {
            constexpr int N = decltype(count)::value;
            Vec<A> sum[N] = {};
            for (const Tap* tap = taps; tap < end; ++tap) {
              if constexpr (Inside) {
                add_chosen<N>(sum, tap->offsets + c, tap->code, tap->values + c);
              } else {  // one vector
                load_until<Offset, L>(tap->offsets, offsets_end, [&](const Offset* chosen) {
                  load_until<T, L>(tap->values, dy_end, [&](const T* p) { add_chosen<1>(sum, chosen, tap->code, p); });
                });
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

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
