// A matrix product on packed panels: sums[m][n] = sum over d of a[d][m] * b[d][n], for Winograd's frequencies (m: tiles,
// d: channels, n: filters) and for 1x1 convolutions.
//
// a is [d / L][m][L]: the L values of one m share a cache line, so that one line of each of 14 feeds L steps of the
// register tile. b is [d][tile width]. Per step 2 loads, 14 broadcasts, 28 multiply-adds: the multiply-add units are the
// limit, of whose peak an Intel Xeon then reaches 83 %.
// Sums start from zero every chunk of depths and are then added to memory: their rounding is most of Winograd's error
// and grows with the length of a running sum. F(4x4) at 64 channels errs by 1.7e-6 of max |y| with sums of 64 and by
// 1.1e-6 with sums of 32, for 3 % of the time.
//
// The loop is also where memory is hidden: every 4 depths it prefetches two lines of what will be read next and two of
// what will be written, as long as there are any: each takes the loop's loads some 30 cycles.
#pragma once

#include "lines.h"
#include "tile.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

constexpr int kPrefetchEvery = 4;  // channels
constexpr int kReads = 2, kWrites = 2;  // lines each time
static_assert(kLanes<float> % kPrefetchEvery == 0);

// From one row of the tile to the next: in a packed panel, or where the values lie unpacked.
struct PackedRows {
  static constexpr int64_t step() { return kLanes<float>; }
};
struct RowsInPlace {
  int64_t stride;
  int64_t step() const { return stride; }
};

template <int Rows, int V, class RowStep>
inline void multiply_step(const float* x, RowStep row, const float* w, Vec<float> (&sum)[Rows][V]) {
  constexpr int L = kLanes<float>;
  Vec<float> values[V];
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) values[v] = load(w + v * L);
#pragma GCC unroll 14
  for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) sum[m][v] += x[m * row.step()] * values[v];
}

// At most one chunk of depths. x_block: floats from one panel of L depths to the next.
template <int Rows, int V, class RowStep>
inline void multiply_rows(const float* x, RowStep row, int64_t x_block, const float* w, int64_t depth, float* acc,
                          bool add, LineRun& reads, LineRun& writes) {
  LineRun in = reads, out = writes;  // in registers
  constexpr int L = kLanes<float>, W = kTileWidth<float>;
  Vec<float> sum[Rows][V];
#pragma GCC unroll 14
  for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) sum[m][v] = Vec<float>{};
  int64_t d = 0;
  for (; d + L <= depth; d += L) {
#pragma GCC unroll 1
    for (int l = 0; l < L; l += kPrefetchEvery) {
      if (in.count > 0) {
        for (int i = 0; i < kReads; ++i) prefetch_read(in.line + i * in.step);
        in.line += kReads * in.step;
        in.count -= kReads;
      }
      if (out.count > 0) {
        for (int i = 0; i < kWrites; ++i) prefetch_write(out.line + i * out.step);
        out.line += kWrites * out.step;
        out.count -= kWrites;
      }
#pragma GCC unroll 4
      for (int i = 0; i < kPrefetchEvery; ++i) multiply_step<Rows, V>(x + l + i, row, w + i * W, sum);
      w += kPrefetchEvery * W;
    }
    x += x_block;
  }
#pragma GCC unroll 1
  for (; d < depth; ++d, ++x, w += W) multiply_step<Rows, V>(x, row, w, sum);
  reads = in, writes = out;
#pragma GCC unroll 14
  for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      float* at = acc + m * W + v * L;
      store(at, add ? load(at) + sum[m][v] : sum[m][v]);
    }
}

// The same for a filter's gradient, summing over tiles: acc[m][filter] += sum over t of x[t][m] * w[t][filter].
template <int Rows>
inline void outer_rows(const float* x, int64_t x_step, const float* w, int64_t w_step, int64_t tiles, float* acc,
                       bool add, LineRun in, LineRun out) {
  constexpr int L = kLanes<float>, W = kTileWidth<float>;
  Vec<float> sum[Rows][kTileVectors];
#pragma GCC unroll 14
  for (int m = 0; m < Rows; ++m) sum[m][0] = sum[m][1] = Vec<float>{};
#pragma GCC unroll 1
  for (int64_t t = 0; t < tiles; ++t) {
    prefetch_read(in.line);
    prefetch_write(out.line);
    in.line += in.step;
    out.line += out.step;
    const Vec<float> w0 = load(w), w1 = load(w + L);
#pragma GCC unroll 14
    for (int m = 0; m < Rows; ++m) {
      sum[m][0] += x[m] * w0;
      sum[m][1] += x[m] * w1;
    }
    x += x_step;
    w += w_step;
  }
#pragma GCC unroll 14
  for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v) {
      float* at = acc + m * W + v * L;
      store(at, add ? load(at) + sum[m][v] : sum[m][v]);
    }
}

template <int Rows = kTileHeight>
inline void outer(int64_t rows, const float* x, int64_t x_step, const float* w, int64_t w_step, int64_t tiles,
                  float* acc, bool add, LineRun in, LineRun out) {
  if constexpr (Rows > 1) {
    if (rows != Rows) return outer<Rows - 1>(rows, x, x_step, w, w_step, tiles, acc, add, in, out);
  }
  outer_rows<Rows>(x, x_step, w, w_step, tiles, acc, add, in, out);
}

// One chunk of depths. acc is [rows][kTileWidth]; 1 <= rows <= kTileHeight. V: vectors of b that are wanted.
template <int Rows = kTileHeight, int V = kTileVectors>
inline void multiply_chunk(int64_t rows, const float* x, int64_t x_block, const float* w, int64_t depth, float* acc,
                           bool add, LineRun in, LineRun out) {
  if constexpr (Rows > 1) {
    if (rows != Rows) return multiply_chunk<Rows - 1, V>(rows, x, x_block, w, depth, acc, add, in, out);
  }
  multiply_rows<Rows, V>(x, PackedRows{}, x_block, w, depth, acc, add, in, out);
}
// The same where row m of x, its depths contiguous, begins at x + m * stride.
template <int Rows = kTileHeight, int V = kTileVectors>
inline void multiply_in_place(int64_t rows, const float* x, int64_t stride, const float* w, int64_t depth, float* acc,
                              bool add, LineRun in, LineRun out) {
  if constexpr (Rows > 1) {
    if (rows != Rows) return multiply_in_place<Rows - 1, V>(rows, x, stride, w, depth, acc, add, in, out);
  }
  multiply_rows<Rows, V>(x, RowsInPlace{stride}, kLanes<float>, w, depth, acc, add, in, out);
}

// Any depth, in chunks of `chunk`.
template <int Rows = kTileHeight>
inline void multiply(int64_t rows, const float* x, int64_t x_block, const float* w, int64_t depth, int64_t chunk,
                     float* acc, LineRun in, LineRun out) {
  if constexpr (Rows > 1) {
    if (rows != Rows) return multiply<Rows - 1>(rows, x, x_block, w, depth, chunk, acc, in, out);
  }
  for (int64_t d = 0; d < depth; d += chunk)
    multiply_rows<Rows, kTileVectors>(x + d / kLanes<float> * x_block, PackedRows{}, x_block, w + d * kTileWidth<float>,
                                      depth - d < chunk ? depth - d : chunk, acc, d > 0, in, out);
}

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
