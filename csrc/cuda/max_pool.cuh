// Max-pooling's own part: what "greater" means, and the two passes that read window offsets.
//
// Forward: see pool_forward.cuh. grad_input is a gather: each input element asks the windows that cover it whether
// their offset names it, so nothing is added in an order that depends on time (a scatter with atomics would). Windows
// of 3x3 and stride 2 cover an element at most 4 times: 4 comparisons for about 6 bytes moved, memory is the limit, and
// lanes lie along the memory of grad_input. `gather` is the transpose, one load at an address that the offset gives.
// Faster: offsets and grad_output of a band in shared memory, and four elements a thread.
#pragma once

#include <limits>

#include "pool_forward.cuh"
#include "pool_gradient.cuh"

namespace fastconv::FASTCONV_GPU {

// torch's order: the first of equal elements wins, any NaN wins over any number, and the last NaN over earlier ones.
// (Maximum instructions drop NaN on one side, so this is compare and select.)
template <class Storage>
struct Maximum {
  using T = Storage;
  using A = Compute<T>;
  static constexpr bool kOffsets = true, kSlidesChannels = true, kSlidesPlanes = true, kAnyInt32 = sizeof(T) >= 4;
  static constexpr A kLowest = -std::numeric_limits<A>::infinity();
  struct State {
    A value;
    int32_t code;
  };

  __device__ __forceinline__ static State begin(int32_t code) {
    return {kLowest, code};
  }
  __device__ __forceinline__ static void take(State& best, T v, int32_t code) { replace(best, widen(v), code); }
  // `lower`: of a row below, whose codes begin at `code`; -1: has none.
  __device__ __forceinline__ static void join(State& best, const State& lower, int32_t code) {
    if (lower.code < 0) return;
    if (best.code < 0)
      best = {lower.value, lower.code + code};
    else
      replace(best, lower.value, lower.code + code);
  }
  template <class Index>
  __device__ __forceinline__ static T finish(const State& best, Index, Index) {
    return narrow<T>(best.value);
  }

 private:
  __device__ __forceinline__ static void replace(State& best, A v, int32_t code) {
    const bool wins = v > best.value || v != v;
    best.value = wins ? v : best.value;
    best.code = wins ? code : best.code;
  }
};

template <class Index>
__device__ __forceinline__ uint32_t load_code(const void* offsets, int bytes, Index at) {
  if (bytes == 1) return static_cast<const uint8_t*>(offsets)[at];
  if (bytes == 2) return static_cast<const uint16_t*>(offsets)[at];
  return static_cast<const uint32_t*>(offsets)[at];
}

// dy of the windows whose offset names the element. Offsets of one byte may come in vectors.
template <class Storage, class Index>
struct MaximumGradient {
  using T = Storage;
  static constexpr bool kAnyInt32 = true;
  const void* offsets;
  int offset_bytes;
  Strides<Index> strides;
  Index width;  // of a window

  struct Covers {};
  __device__ __forceinline__ Covers covers(Index, Index, Index, Index) const { return {}; }
  template <int V>
  __device__ __forceinline__ void add(Compute<T> (&sum)[V], const Vector<T, V>& dy, Covers, Index n, Index c,
                                      Index p, Index q, Index r, Index s) const {
    const Index at = strides.at(n, c, p, q);
    if constexpr (V == 1) {
      if (load_code(offsets, offset_bytes, at) == static_cast<uint32_t>(r * width + s)) sum[0] += widen(dy[0]);
    } else {
      const auto codes = load_vector<V>(static_cast<const uint8_t*>(offsets) + at);
      for (int v = 0; v < V; ++v)
        if (codes[v] == r * width + s) sum[v] += widen(dy[v]);
    }
  }
  template <int V>
  __device__ __forceinline__ static Vector<T, V> finish(const Compute<T> (&sum)[V], Covers, Index) {
    Vector<T, V> result;
    for (int v = 0; v < V; ++v) result[v] = narrow<T>(sum[v]);
    return result;
  }
};

// y = x at the offset, 0 where there is none or it leads out of the plane. Word has the bits of an element.
template <class Word>
__global__ void __launch_bounds__(kTileThreads, kPoolBlocks)
pool_gather(PoolWindow<int64_t> g, Elements<int64_t> elements, Strides<int64_t> xs, Strides<int64_t> ys,
            Strides<int64_t> os, const Word* x, Word* y, const void* offsets, int offset_bytes) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kTileThreads + threadIdx.x;
  if (i >= elements.count) return;
  int64_t n, c, p, q;
  elements.at(i, n, c, p, q);
  const int64_t code = load_code(offsets, offset_bytes, os.at(n, c, p, q));
  const int64_t r = code / g.columns.window, s = code % g.columns.window;
  const int64_t h = g.rows.start(p) + r * g.rows.dilation, w = g.columns.start(q) + s * g.columns.dilation;
  const bool inside = r < g.rows.window && h >= 0 && h < g.rows.in && w >= 0 && w < g.columns.in;
  y[ys.at(n, c, p, q)] = inside ? x[xs.at(n, c, h, w)] : Word(0);
}

}  // namespace fastconv::FASTCONV_GPU
