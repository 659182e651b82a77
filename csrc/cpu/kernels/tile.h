// The register tile: the one inner loop under every convolution on the CPU.
//
//     acc[m][v] += x[x_offset[o] + i * x_step + m] * w[w_offset[o] + i * w_step + v]     over all o and i
//
// m runs over neighbouring values of x (output pixels, or input channels for the filter's gradient), v over two vectors
// of w. Per step: 2 loads, M broadcasts, 2 M fused multiply-adds; with M = 14 on AVX-512 that fills 28 of 32 registers
// with sums and leaves the loop bound by the multiply-add units (28 of them per 16 loads).
#pragma once

#include "../isa.h"
#include "numeric.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

template <class A>
constexpr int kTileWidth = kTileVectors * kLanes<A>;  // values of w per step, "the filter block"

// Registers: 2 M sums, 2 of w, 1 broadcast (and 1 product where there is no fused multiply-add).
#if defined(__AVX512F__)
constexpr int kTileHeight = 14;
#elif defined(__AVX2__)
constexpr int kTileHeight = 6;
#else
constexpr int kTileHeight = 5;
#endif
static_assert(kTileHeight == tile_height(Isa::FASTCONV_ISA) && kVectorBytes == vector_bytes(Isa::FASTCONV_ISA),
              "kernels are compiled once per ISA, each with its own flags: leave -m options out of CXXFLAGS");

// A sum's operands, as two nested loops: `outer` pairs of offsets, each followed for `inner` steps.
struct TileWalk {
  int64_t outer;
  const int64_t* x_offset;
  const int64_t* w_offset;
  int64_t inner, x_step, w_step;
};

// Products summed in registers before they join the running sum in memory. One long chain of 4608 products has an error
// of 2e-6 of the largest output, chains of 144 have 4e-7, near torch's; adding them up costs about 2 %. A 7 x 7 window of
// 3 channels has 147.
constexpr int64_t kChain = 147;

// V vectors of w: 2, or 1 where there are no more filters.
template <class A, int M, int V>
inline void tile_rows(const A* x, const A* w, const TileWalk& walk, A* acc, bool accumulate) {
  constexpr int L = kLanes<A>;
  Vec<A> sum[M][V] = {};
  const auto flush = [&]() __attribute__((always_inline)) {
#pragma GCC unroll 14
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        A* at = acc + m * kTileWidth<A> + v * L;
        store(at, accumulate ? load(at) + sum[m][v] : sum[m][v]);
      }
    accumulate = true;
  };
  const auto step = [&](const A* px, const A* pw) __attribute__((always_inline)) {
    Vec<A> values[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) values[v] = load(pw + v * L);
#pragma GCC unroll 14
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sum[m][v] += px[m] * values[v];
  };
  if (walk.inner == 1 && walk.outer <= kChain) {  // few channels: one flat loop
    for (int64_t o = 0; o < walk.outer; ++o) step(x + walk.x_offset[o], w + walk.w_offset[o]);
    return flush();
  }
  int64_t room = kChain;
  for (int64_t o = 0; o < walk.outer; ++o) {
    const A* px = x + walk.x_offset[o];
    const A* pw = w + walk.w_offset[o];
    for (int64_t left = walk.inner; left > 0;) {
      if (room == 0) {
        flush();
#pragma GCC unroll 14
        for (int m = 0; m < M; ++m)
          for (int v = 0; v < V; ++v) sum[m][v] = Vec<A>{};
        room = kChain;
      }
      const int64_t steps = left < room ? left : room;
      for (int64_t i = 0; i < steps; ++i) {
        step(px, pw);
        px += walk.x_step;
        pw += walk.w_step;
      }
      left -= steps;
      room -= steps;
    }
  }
  flush();
}

// acc is [rows][kTileWidth]; 1 <= rows <= kTileHeight.
template <class A, int M = kTileHeight, int V = kTileVectors>
inline void tile(int64_t rows, const A* x, const A* w, const TileWalk& walk, A* acc, bool accumulate) {
  if constexpr (M > 1) {
    if (rows != M) return tile<A, M - 1, V>(rows, x, w, walk, acc, accumulate);
  }
  tile_rows<A, M, V>(x, w, walk, acc, accumulate);
}

// Splits `count` into the fewest parts of at most kTileHeight, as even as can be: part i starts at tile_start(i).
inline int64_t tile_parts(int64_t count) { return (count + kTileHeight - 1) / kTileHeight; }
inline int64_t tile_start(int64_t part, int64_t parts, int64_t count) { return part * count / parts; }

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
