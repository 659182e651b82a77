// What the depthwise kernels share: lists of taps, and rows of the source in the order that lanes along channels read.
#pragma once

#include "../arena.h"
#include "../depthwise.h"
#include "pack.h"
#include "tile.h"
#include "unfold.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// The taps of one axis that a phase has, in ascending order of the displacement d: output i reads i * step + d.
struct Taps {
  int64_t count = 0;
  int64_t* d;
  int64_t* index;  // of the window's row or column

  Taps(const GatherAxis& a, Arena& arena) : d(arena.take<int64_t>(a.taps)), index(arena.take<int64_t>(a.taps)) {
    for (int64_t i = 0; i < a.taps; ++i) {
      const int64_t t = a.tap_step > 0 ? i : a.taps - 1 - i;
      const int64_t value = a.tap_origin + t * a.tap_step;
      if (value % a.tap_divisor != 0) continue;
      d[count] = value / a.tap_divisor;
      index[count++] = t;
    }
  }
};

// The outputs in [low, high) that have all taps inside the source.
inline Inside all_inside(const Taps& taps, const GatherAxis& a, int64_t low, int64_t high) {
  Inside all(0, 1, high - low, low, high);
  all.begin = low;
  all.end = high;
  for (int64_t t = 0; t < taps.count; ++t) {
    const Inside one(taps.d[t], a.step, a.src, low, high);
    all.begin = larger(all.begin, one.begin);
    all.end = smaller(all.end, one.end);
  }
  all.end = larger(all.begin, all.end);
  return all;
}

// Calls f(j0, j1, first tap, last tap + 1) for runs of outputs whose taps inside the source are the same ones: the
// interior as one run, and each output at the edges. Taps ascend, so those inside are neighbours.
template <class F>
inline void for_each_segment(const Taps& taps, const GatherAxis& a, const Inside& interior, F&& f) {
  const auto edge = [&](int64_t j0, int64_t j1) {
    for (int64_t j = j0; j < j1; ++j) {
      int64_t t0 = 0, t1 = taps.count;
      while (t0 < t1 && j * a.step + taps.d[t0] < 0) ++t0;
      while (t1 > t0 && j * a.step + taps.d[t1 - 1] >= a.src) --t1;
      f(j, j + 1, t0, t1);
    }
  };
  edge(0, interior.begin);
  if (interior.end > interior.begin) f(interior.begin, interior.end, int64_t{0}, taps.count);
  edge(interior.end, a.out);
}

// Source rows packed to [row][pixel][tile width] for one block of lanes. Lane l is channel `channels(l)` of the source,
// which is every channel in turn, every multiple of some number, or each channel several times.
template <class T>
struct ChannelBand {
  using A = Compute<T>;
  static constexpr int W = kTileWidth<A>;
  const T* source;  // lane 0's channel, row 0
  Strides4 strides;
  const T* mask;  // null: none
  Strides4 mask_strides;
  int64_t width, lanes;  // pixels of a row; lanes in use
  int64_t repeat;        // lanes per channel
  int64_t lane0;         // the block's first lane
  OutputGradient<A> gradient{};

  // One run of neighbouring rows whose pixels follow each other is packed as one row.
  void pack_rows(int64_t row, int64_t rows, A* to) const {
    if (lanes < W) zero(to, rows * width * W);
    const bool follow = rows == 1 || (width > 1 && strides[2] == width * strides[3] &&
                                      (!mask || mask_strides[2] == width * mask_strides[3]));
    const int64_t at_once = follow ? rows : 1;
    for (int64_t i = 0; i < rows; i += at_once) {
      Reader<T> reader{source + (row + i) * strides[2], strides[1], strides[3]};
      if (mask) {
        reader.mask = mask + (row + i) * mask_strides[2];
        reader.mask_si = mask_strides[1];
        reader.mask_sj = mask_strides[3];
        reader.gradient = gradient;
      }
      A* first = to + i * width * W;
      if (repeat == 1) {
        pack(reader, lanes, at_once * width, [&](int64_t j) { return first + j * W; });
      } else {
        for (int64_t l = 0; l < lanes; ++l) {
          const int64_t channel = (lane0 + l) / repeat - lane0 / repeat;
          for (int64_t j = 0; j < at_once * width; ++j) first[j * W + l] = reader.at(channel, j);
        }
      }
    }
  }
};

// Which source rows the outputs [row0, row1) read: slot[row - low] numbers them, -1 for the others.
struct SourceRows {
  int64_t low, high, count = 0;
  int64_t* slot;

  SourceRows(const Taps& taps, const GatherAxis& a, int64_t row0, int64_t row1, int64_t* memory) : slot(memory) {
    low = taps.count ? row0 * a.step + taps.d[0] : 0;
    high = taps.count ? (row1 - 1) * a.step + taps.d[taps.count - 1] : -1;
    for (int64_t row = low; row <= high; ++row) slot[row - low] = -1;
    for (int64_t i = row0; i < row1; ++i)
      for (int64_t t = 0; t < taps.count; ++t) {
        const int64_t row = i * a.step + taps.d[t];
        if (row >= 0 && row < a.src) slot[row - low] = 0;
      }
    for (int64_t row = low; row <= high; ++row)
      if (slot[row - low] == 0) slot[row - low] = count++;
  }
  int64_t operator[](int64_t row) const { return slot[row - low]; }

  template <class T>
  void pack(const ChannelBand<T>& band, Compute<T>* to) const {
    for (int64_t row = low; row <= high;) {
      int64_t end = row;
      while (end <= high && slot[end - low] >= 0) ++end;
      if (end > row) band.pack_rows(row, end - row, to + slot[row - low] * band.width * band.W);
      row = end + 1;
    }
  }
};

template <class F>
inline void with_float(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f64: return f(double{});
    case DType::f16: return f(f16{});
    case DType::bf16: return f(bf16{});
    default: return f(float{});
  }
}

// Keeps a loaded value in a register. GCC would rather read it again as the memory operand of every multiply-add that
// uses it, and loads are what bounds these kernels.
template <class V>
inline void pin(V& value) {
#if defined(__AVX512F__)
  asm("" : "+v"(value));
#elif defined(__x86_64__)
  asm("" : "+x"(value));
#else
  (void)value;
#endif
}

// A compile-time number, to unroll by.
template <int N>
struct Number {
  static constexpr int value = N;
};

// Calls f(Number<n>, j) for pieces of [j0, j1): as many of N as fit, then smaller ones.
template <int N, class F>
inline void in_pieces(int64_t j0, int64_t j1, F&& f) {
  int64_t j = j0;
  for (; j + N <= j1; j += N) f(Number<N>{}, j);
  if constexpr (N > 1) {
    if (j < j1) in_pieces<N / 2>(j, j1, f);
  }
}

// The same for work that may be done twice: a rest of more than half a piece is a whole one that ends where it ends.
template <int N, class F>
inline void in_overlapping_pieces(int64_t j0, int64_t j, int64_t j1, F&& f) {
  for (; j + N <= j1; j += N) f(Number<N>{}, j);
  if (j == j1) return;
  if constexpr (N > 1) {
    if (2 * (j1 - j) > N && j1 - j0 >= N) return f(Number<N>{}, j1 - N);
    in_overlapping_pieces<N / 2>(j0, j, j1, f);
  }
}

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
