// The products of Winograd's algorithm: for one frequency, sums[tile][filter] = sum over c of x[c][tile] * w[c][filter].
//
// x is [c / L][tile][L]: a tile's L channels share a cache line, so that one line of 14 tiles feeds L steps of the
// register tile. Per step 2 loads, 14 broadcasts, 28 multiply-adds: the multiply-add units are the limit.
// Sums start from zero every kFlush channels and are then added to memory: their rounding is most of the algorithm's
// error and grows with the length of a running sum. F(4x4) at 64 channels errs by 1.7e-6 of max |y| with sums of 64 and
// by 1.1e-6 with sums of 32, for 3 % of the time.
//
// The loop is also where memory is hidden: every 4 channels it prefetches two lines of the input that the next block
// will read and two of the output that this block will write, as long as there are any: each takes the loop's loads some
// 30 cycles. Filters stream by in order, which the processor prefetches by itself.
#pragma once

#include "../winograd.h"
#include "lines.h"
#include "tile.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

constexpr int kFlush = winograd::kChunkChannels;
constexpr int kPrefetchEvery = 4;  // channels
constexpr int kReads = 2, kWrites = 2;  // lines each time
static_assert(kFlush % kLanes<float> == 0 && kLanes<float> % kPrefetchEvery == 0);

template <int Rows>
inline void multiply_step(const float* x, const float* w, Vec<float> (&sum)[Rows][kTileVectors]) {
  constexpr int L = kLanes<float>;
  const Vec<float> w0 = load(w), w1 = load(w + L);
#pragma GCC unroll 14
  for (int m = 0; m < Rows; ++m) {
    sum[m][0] += x[m * L] * w0;
    sum[m][1] += x[m * L] * w1;
  }
}

// At most kFlush channels.
template <int Rows>
inline void multiply_rows(const float* x, int64_t x_block, const float* w, int64_t channels, float* acc, bool add,
                          LineRun& reads, LineRun& writes) {
  LineRun in = reads, out = writes;  // in registers
  constexpr int L = kLanes<float>, W = kTileWidth<float>;
  Vec<float> sum[Rows][kTileVectors];
#pragma GCC unroll 14
  for (int m = 0; m < Rows; ++m) sum[m][0] = sum[m][1] = Vec<float>{};
  int64_t c = 0;
  for (; c + L <= channels; c += L) {
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
      for (int i = 0; i < kPrefetchEvery; ++i) multiply_step<Rows>(x + l + i, w + i * W, sum);
      w += kPrefetchEvery * W;
    }
    x += x_block;
  }
#pragma GCC unroll 1
  for (; c < channels; ++c, ++x, w += W) multiply_step<Rows>(x, w, sum);
  reads = in, writes = out;
#pragma GCC unroll 14
  for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v) {
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

// One chunk of at most kFlush channels. acc is [rows][kTileWidth]; 1 <= rows <= kTileHeight.
template <int Rows = kTileHeight>
inline void multiply_chunk(int64_t rows, const float* x, int64_t x_block, const float* w, int64_t channels, float* acc,
                           bool add, LineRun in, LineRun out) {
  if constexpr (Rows > 1) {
    if (rows != Rows) return multiply_chunk<Rows - 1>(rows, x, x_block, w, channels, acc, add, in, out);
  }
  multiply_rows<Rows>(x, x_block, w, channels, acc, add, in, out);
}

// Any number of channels.
template <int Rows = kTileHeight>
inline void multiply(int64_t rows, const float* x, int64_t x_block, const float* w, int64_t channels, float* acc,
                     LineRun in, LineRun out) {
  if constexpr (Rows > 1) {
    if (rows != Rows) return multiply<Rows - 1>(rows, x, x_block, w, channels, acc, in, out);
  }
  for (int64_t c = 0; c < channels; c += kFlush) {
    const int64_t count = channels - c < kFlush ? channels - c : kFlush;
    multiply_rows<Rows>(x + c / kLanes<float> * x_block, x_block, w + c * kTileWidth<float>, count, acc, c > 0, in,
                        out);
  }
}

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
