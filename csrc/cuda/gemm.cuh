// The tiled matrix product that im2col and implicit_gemm share: sums[i][j] = sum over d of left[d][i] * right[d][j].
//
// A block of 256 threads makes a tile of sums. Step by step over the depth, every thread reads some values of both
// operands from global memory into registers, multiplies the step that lies in shared memory, and only then writes what
// it read into the other half of shared memory: one barrier for each step, and the multiply-adds hide the latency of
// global memory. (cp.async would spare those registers from sm_80 on; this one runs on sm_75 too.)
//
// Arithmetic intensity of the 128 x 128 tile in fp32. A step of depth 1 is 2 * 128 * 128 FLOP.
//   global: 128 + 128 values, 32 FLOP per byte. An H200 balances at 67 TFLOP/s / 4.8 TB/s = 14: memory does not bound.
//   shared: a thread reads 8 + 8 values for its 8 x 8 sums, 2 FLOP per byte; without register tiles it would be 0.25.
//   A multiprocessor makes 128 multiply-adds in a cycle and serves 16-byte reads of a quarter of a warp. A warp's
//   4 reads for 2048 multiply-adds take 16 cycles, as the multiply-adds do: tiles of 4 x 4, half as intense, are bound
//   by shared memory, those of 8 x 8 by neither alone.
// The next rung, tensor cores, makes 8 to 15 times as many multiply-adds in that time, in tf32, f16 and bf16.
#pragma once

#include "../core/problem.h"
#include "runtime.cuh"

namespace fastconv::FASTCONV_GPU {

constexpr int kGemmThreads = 256;
// Products are summed in chains of so many, and the chains then: in fp32 the rounding errors of a running sum of 4608
// (512 channels, 3x3) would be 7 times those of torch's CPU convolution, so they are about as large.
// 1/128 more additions. In fp64 a chain has any length.
constexpr int kChain = 128;
constexpr int kPiece = 4;  // sums lie in pieces of 4 x 4: as many values as one 16-byte access of shared memory

// A tile of Rows x Columns sums, Depth products at a time. A thread holds RowPieces x ColumnPieces pieces.
template <class T_, int Rows, int Columns, int Depth, int RowPieces, int ColumnPieces>
struct GemmTile {
  using T = T_;
  using Sum = Compute<T>;
  static constexpr int kRows = Rows, kColumns = Columns, kDepth = Depth;
  static constexpr int kRowPieces = RowPieces, kColumnPieces = ColumnPieces;
  // A warp's lanes lie 4 x 8: it reads 4 and 8 neighbouring pieces, at most 128 bytes in fp32, each bank once.
  static constexpr int kRowLanes = 4, kColumnLanes = 8;
  static constexpr int kRowStep = kPiece * kRowLanes, kColumnStep = kPiece * kColumnLanes;  // from piece to piece
  static constexpr int kWarpRows = kRowStep * RowPieces, kWarpColumns = kColumnStep * ColumnPieces;
  static constexpr int kWarpsAcross = Columns / kWarpColumns;
  static_assert(kRowLanes * kColumnLanes == 32);
  static_assert(Rows % kWarpRows == 0 && Columns % kWarpColumns == 0);
  static_assert(Rows / kWarpRows * kWarpsAcross * 32 == kGemmThreads && kChain % Depth == 0);
  // 4 more values per row of shared memory: values that lie along the depth spread over the banks when written.
  static constexpr int kRowPitch = Rows + 4, kColumnPitch = Columns + 4;
  // A thread has two sets of sums. 2 x 64 take 180 registers, which leaves room for one block on a multiprocessor: 8
  // warps, each with 64 independent multiply-adds. 2 x 32 fit into 128 registers, two blocks.
  static constexpr int kBlocksPerSm = RowPieces * ColumnPieces > 2 ? 1 : 2;
};

template <class Tile>
struct GemmShared {
  alignas(16) typename Tile::Sum left[2][Tile::kDepth * Tile::kRowPitch];
  alignas(16) typename Tile::Sum right[2][Tile::kDepth * Tile::kColumnPitch];
};

template <class Tile>
struct GemmSums {
  static constexpr int kRows = kPiece * Tile::kRowPieces, kColumns = kPiece * Tile::kColumnPieces;
  typename Tile::Sum v[kRows][kColumns];
};

// The first row and column of a thread's piece within the tile.
template <class Tile>
__device__ __forceinline__ int piece_row(int piece) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  return warp / Tile::kWarpsAcross * Tile::kWarpRows + piece * Tile::kRowStep + lane / Tile::kColumnLanes * kPiece;
}
template <class Tile>
__device__ __forceinline__ int piece_column(int piece) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  return warp % Tile::kWarpsAcross * Tile::kWarpColumns + piece * Tile::kColumnStep +
         lane % Tile::kColumnLanes * kPiece;
}

// How the 256 threads share the filling of one operand's step, Extent x Depth values: every thread brings kValues, as
// kGroups vectors that lie either along the depth or along the extent, whichever neighbours in global memory.
template <class Tile, int Extent>
struct Fill {
  using T = typename Tile::T;
  using Sum = typename Tile::Sum;
  static constexpr int kPitch = Extent + 4;
  static constexpr int kValues = Extent * Tile::kDepth / kGemmThreads;
  static constexpr int kMost = 16 / static_cast<int>(sizeof(T));
  static constexpr int kVector = kValues < kMost ? kValues : kMost;
  static constexpr int kGroups = kValues / kVector;
  static constexpr int kDepthGroups = Tile::kDepth / kVector, kExtentGroups = Extent / kVector;
  static_assert(kGroups * kVector * kGemmThreads == Extent * Tile::kDepth);
  static_assert(kGemmThreads % kDepthGroups == 0 && kGemmThreads % kExtentGroups == 0);
  using Values = Vector<T, kVector>;

  // Vectors along the depth; neighbouring threads go on along the depth, then along the extent.
  static __device__ __forceinline__ int depth_of_run() { return threadIdx.x % kDepthGroups * kVector; }
  static __device__ __forceinline__ int index_of_run(int group) {
    return threadIdx.x / kDepthGroups + group * (kGemmThreads / kDepthGroups);
  }
  static __device__ __forceinline__ void store_runs(Sum* shared, const Values (&values)[kGroups]) {
    for (int g = 0; g < kGroups; ++g)
      for (int i = 0; i < kVector; ++i) shared[(depth_of_run() + i) * kPitch + index_of_run(g)] = widen(values[g][i]);
  }

  // Vectors along the extent; neighbouring threads go on along the extent, then along the depth.
  static __device__ __forceinline__ int index_of_row() { return threadIdx.x % kExtentGroups * kVector; }
  static __device__ __forceinline__ int depth_of_row(int group) {
    return threadIdx.x / kExtentGroups + group * (kGemmThreads / kExtentGroups);
  }
  static __device__ __forceinline__ void store_rows(Sum* shared, const Values (&values)[kGroups]) {
    constexpr int kAtOnce = 16 / static_cast<int>(sizeof(Sum)) < kVector ? 16 / static_cast<int>(sizeof(Sum)) : kVector;
    for (int g = 0; g < kGroups; ++g)
      for (int i = 0; i < kVector; i += kAtOnce) {
        Vector<Sum, kAtOnce> wide;
        for (int j = 0; j < kAtOnce; ++j) wide[j] = widen(values[g][i + j]);
        store_vector(shared + depth_of_row(g) * kPitch + index_of_row() + i, wide);
      }
  }

  static __device__ __forceinline__ Values zero() {
    Values v;
    for (int i = 0; i < kVector; ++i) v[i] = narrow<T>(0);
    return v;
  }
};

// The four neighbouring values of a piece, from shared memory.
template <class Sum>
__device__ __forceinline__ void read_piece(const Sum* shared, Sum* piece) {
  constexpr int kAtOnce = 16 / static_cast<int>(sizeof(Sum));
  for (int i = 0; i < kPiece; i += kAtOnce) {
    const Vector<Sum, kAtOnce> v = load_vector<kAtOnce>(shared + i);
    for (int j = 0; j < kAtOnce; ++j) piece[i + j] = v[j];
  }
}

// A piece's four neighbouring results into global memory. `to` is aligned to 16 bytes, or to four values if smaller.
template <class T>
__device__ __forceinline__ void store_piece(T* to, const T (&values)[kPiece]) {
  constexpr int kMost = 16 / static_cast<int>(sizeof(T)), kAtOnce = kMost < kPiece ? kMost : kPiece;
  for (int i = 0; i < kPiece; i += kAtOnce) {
    Vector<T, kAtOnce> v;
    for (int j = 0; j < kAtOnce; ++j) v[j] = values[i + j];
    store_vector(to + i, v);
  }
}

// Multiplies over the depths first to last. Left and Right bring the operands: load(d) reads the step that starts at
// depth d into registers, with zeros beyond `last`; store(shared) writes it. All threads of the block take part.
template <class Tile, class Left, class Right>
__device__ __forceinline__ void multiply(Left& left, Right& right, int first, int last, GemmSums<Tile>& sums) {
  using Sum = typename Tile::Sum;
  constexpr int kRows = GemmSums<Tile>::kRows, kColumns = GemmSums<Tile>::kColumns;
  GemmShared<Tile>& shared = static_shared<GemmShared<Tile>>();
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kColumns; ++j) sums.v[i][j] = 0;
  if (first >= last) return;

  left.load(first);
  right.load(first);
  left.store(shared.left[0]);
  right.store(shared.right[0]);
  __syncthreads();
  const int row = piece_row<Tile>(0), column = piece_column<Tile>(0);
  int stage = 0;
  for (int d = first; d < last;) {
    Sum chain[kRows][kColumns] = {};
    const int end = std::is_same_v<Sum, float> && last - d > kChain ? d + kChain : last;
    for (; d < end; d += Tile::kDepth) {
      const bool more = d + Tile::kDepth < last;
      if (more) {
        left.load(d + Tile::kDepth);
        right.load(d + Tile::kDepth);
      }
      const Sum* l = shared.left[stage] + row;
      const Sum* r = shared.right[stage] + column;
      for (int k = 0; k < Tile::kDepth; ++k) {
        Sum a[kRows], b[kColumns];
        for (int p = 0; p < Tile::kRowPieces; ++p)
          read_piece(l + k * Tile::kRowPitch + p * Tile::kRowStep, a + p * kPiece);
        for (int p = 0; p < Tile::kColumnPieces; ++p)
          read_piece(r + k * Tile::kColumnPitch + p * Tile::kColumnStep, b + p * kPiece);
        for (int i = 0; i < kRows; ++i)
          for (int j = 0; j < kColumns; ++j) chain[i][j] += a[i] * b[j];
      }
      if (more) {
        left.store(shared.left[stage ^ 1]);
        right.store(shared.right[stage ^ 1]);
      }
      __syncthreads();
      stage ^= 1;
    }
    for (int i = 0; i < kRows; ++i)
      for (int j = 0; j < kColumns; ++j) sums.v[i][j] += chain[i][j];
  }
}

// The tiles. Where there are few pixels or filters the smaller ones waste less; the last two are for 32 and for 64
// filters. A step brings 16 bytes to a thread, where that fits. Only fp32 has all four: fp64 takes twice the registers,
// and half precision should take tensor cores anyway.
template <class T, int Which>
struct TileOf;
template <class T>
struct TileOf<T, 0> {
  using type = GemmTile<T, 128, 128, sizeof(T) == 2 ? 16 : 8, 2, 2>;
};
template <class T>
struct TileOf<T, 1> {
  using type = GemmTile<T, 64, 64, 16, 1, 1>;
};
template <class T>
struct TileOf<T, 2> {
  using type = GemmTile<T, 128, 32, 16, 1, 1>;
};
template <class T>
struct TileOf<T, 3> {
  using type = GemmTile<T, 128, 64, 8, 2, 1>;
};
template <>
struct TileOf<double, 1> {
  using type = GemmTile<double, 64, 64, 8, 1, 1>;
};
struct TileSize {
  int rows, columns;
};
constexpr int kTiles = 4;
constexpr TileSize kTileSizes[kTiles] = {{128, 128}, {64, 64}, {128, 32}, {128, 64}};

inline bool has_tile(DType dtype, int64_t tile) {
  return tile == 1 || dtype == DType::f32 || (tile == 0 && dtype != DType::f64);
}

// Calls f with a GemmTile that has_tile() knows.
template <class T, class F>
Status with_tile(int64_t tile, F&& f) {
  if constexpr (!std::is_same_v<T, double>)
    if (tile == 0) return f(typename TileOf<T, 0>::type{});
  if constexpr (std::is_same_v<T, float>) {
    if (tile == 2) return f(typename TileOf<T, 2>::type{});
    if (tile == 3) return f(typename TileOf<T, 3>::type{});
  }
  return f(typename TileOf<T, 1>::type{});
}

}  // namespace fastconv::FASTCONV_GPU
