// Average-pooling's own part: divisors, the gradient, and windows that many threads share.
//
// Forward: see pool_forward.cuh; sums are kept in Compute<T> and divided once. A global average has few outputs and
// large windows: an addition for 2 or 4 bytes, so memory bounds it, if enough threads read. There threads share a window
// (NHWC: a few vectors of channels and some of the pixels each; NCHW: a warp or a block for a plane, 16 bytes at a
// time), add in a fixed order, and if outputs are still too few, several blocks share a window and a second kernel adds
// their sums. Faster: one kernel, in which the last block to finish adds, which needs a counter.
#pragma once

#include "pool_forward.cuh"
#include "pool_gradient.cuh"

namespace fastconv::FASTCONV_GPU {

// The divisor of every window: an override, or the product of what each axis contributes.
template <class A, class Index>
struct AverageDivisor {
  PoolWindow<Index> g;
  A override_by = 0;
  bool count_pad = true;

  AverageDivisor() = default;
  explicit AverageDivisor(const PoolProblem& p)
      : g(p), override_by(static_cast<A>(p.divisor)), count_pad(p.count_include_pad) {}
  __device__ __forceinline__ A at(Index p, Index q) const {
    if (override_by != A(0)) return override_by;
    return static_cast<A>(g.rows.divisor(p, count_pad) * g.columns.divisor(q, count_pad));
  }
};

template <class Storage, class Index>
struct Average {
  using T = Storage;
  using A = Compute<T>;
  static constexpr bool kOffsets = false, kSlidesChannels = false, kSlidesPlanes = true, kAnyInt32 = sizeof(T) >= 4;
  struct State {
    A sum;
  };
  AverageDivisor<A, Index> divisor;

  __device__ __forceinline__ static State begin(int32_t) { return {A(0)}; }
  __device__ __forceinline__ static void take(State& state, T v, int32_t) { state.sum += widen(v); }
  __device__ __forceinline__ static void join(State& state, const State& lower, int32_t) { state.sum += lower.sum; }
  __device__ __forceinline__ T finish(const State& state, Index p, Index q) const {
    return narrow<T>(state.sum / divisor.at(p, q));
  }
};

template <class Storage, class Index>
struct AverageGradient {
  using T = Storage;
  using A = Compute<T>;
  static constexpr bool kAnyInt32 = true;
  AverageDivisor<A, Index> divisor;

  // Where all windows over an element have one divisor, as they do away from the border, one division serves.
  struct Covers {
    A by;
    bool alike;
  };
  __device__ __forceinline__ Covers covers(Index p0, Index p1, Index q0, Index q1) const {
    if (p0 > p1 || q0 > q1) return {A(1), true};
    bool alike = true;
    if (divisor.override_by == A(0)) {
      const auto& g = divisor.g;
      const bool count_pad = divisor.count_pad;
      const Index rows = g.rows.divisor(p0, count_pad), columns = g.columns.divisor(q0, count_pad);
      for (Index p = p0 + 1; p <= p1; ++p) alike = alike && g.rows.divisor(p, count_pad) == rows;
      for (Index q = q0 + 1; q <= q1; ++q) alike = alike && g.columns.divisor(q, count_pad) == columns;
    }
    return {divisor.at(p0, q0), alike};
  }
  template <int V>
  __device__ __forceinline__ void add(A (&sum)[V], const Vector<T, V>& dy, Covers covers, Index, Index, Index p,
                                      Index q, Index, Index) const {
    const A by = covers.alike ? A(1) : divisor.at(p, q);
    for (int v = 0; v < V; ++v) sum[v] += covers.alike ? widen(dy[v]) : widen(dy[v]) / by;
  }
  template <int V>
  __device__ __forceinline__ static Vector<T, V> finish(const A (&sum)[V], Covers covers, Index) {
    Vector<T, V> result;
    for (int v = 0; v < V; ++v) result[v] = narrow<T>(covers.alike ? sum[v] / covers.by : sum[v]);
    return result;
  }
};

// --- threads that share a window -------------------------------------------------------------------------------------

// `splits` blocks share a window's rows.
template <class T>
struct WindowShare {
  AverageDivisor<Compute<T>, int32_t> divisor;
  Elements<int32_t> outputs;  // NHWC: pixels, with vectors of channels in place of channels; NCHW: all
  int32_t splits = 1, threads = 32;  // threads that share a window (NCHW), or the pixels of one (NHWC)
  Divider<int32_t> lanes, blocks;    // NHWC: vectors of a block, and blocks of a pixel
  Strides<int32_t> xs, ys;
  const T* x = nullptr;
  T* y = nullptr;
  Compute<T>* partials = nullptr;  // [split][output], null: one split
  int64_t all_outputs = 0;

  struct Rows {
    int32_t first, last, column, columns;  // of the input
  };
  __device__ __forceinline__ Rows rows(int32_t p, int32_t q, int32_t split) const {
    const auto& v = divisor.g.rows;
    const auto& h = divisor.g.columns;
    const int32_t r0 = v.first(p), count = v.last(p) - r0 > 0 ? v.last(p) - r0 : 0;
    const int32_t s0 = h.first(q), columns = h.last(q) - s0 > 0 ? h.last(q) - s0 : 0;
    const int32_t share = (count + splits - 1) / splits, first = split * share, last = first + share;
    const int32_t top = v.start(p) + r0;
    return {top + (first < count ? first : count), top + (last < count ? last : count), h.start(q) + s0, columns};
  }
};

template <class A, int V>
struct WindowSums {
  alignas(16) A sums[kTileThreads][V];
};

// NHWC: blockIdx.x: pixels and blocks of channels, blockIdx.y: splits. Threads: lanes, then shares of the pixels.
template <class T>
__global__ void __launch_bounds__(kTileThreads)
average_channels(WindowShare<T> w) {
  using A = Compute<T>;
  constexpr int V = kFullVector<T>;
  auto& shared = static_shared<WindowSums<A, V>>();
  const int32_t thread = static_cast<int32_t>(threadIdx.x), lanes = static_cast<int32_t>(w.lanes.divisor);
  int32_t lane, block, n, c, p, q;
  const int32_t share = w.lanes.quotient(thread, lane);
  const int32_t pixel = w.blocks.quotient(static_cast<int32_t>(blockIdx.x), block);
  const int32_t vectors = static_cast<int32_t>(w.outputs.d3.divisor), vector = block * lanes + lane;
  w.outputs.at(pixel * vectors + (vector < vectors ? vector : 0), n, c, p, q);
  const auto rows = w.rows(p, q, static_cast<int32_t>(blockIdx.y));
  A sums[V] = {};
  if (vector < vectors) {
    const T* const from = w.x + n * w.xs.n + c * V;
    int32_t row = rows.first, column = rows.column + share;
    const int32_t end = rows.column + rows.columns;
    while (row < rows.last && rows.columns > 0) {
      while (column >= end && row < rows.last) {
        column -= rows.columns;
        ++row;
      }
      if (row >= rows.last) break;
      const auto values = load_vector<V>(from + row * w.xs.h + column * w.xs.w);
      for (int v = 0; v < V; ++v) sums[v] += widen(values[v]);
      column += w.threads;
    }
  }
  for (int v = 0; v < V; ++v) shared.sums[thread][v] = sums[v];
  __syncthreads();
  if (thread >= lanes || vector >= vectors) return;
  for (int32_t s = 1; s < w.threads; ++s)
    for (int v = 0; v < V; ++v) sums[v] += shared.sums[s * lanes + lane][v];
  if (w.partials) {
    A* const to = w.partials + blockIdx.y * w.all_outputs + (static_cast<int64_t>(pixel) * vectors + vector) * V;
    for (int v = 0; v < V; ++v) to[v] = sums[v];
    return;
  }
  const A by = w.divisor.at(p, q);
  Vector<T, V> result;
  for (int v = 0; v < V; ++v) result[v] = narrow<T>(sums[v] / by);
  store_vector<V>(w.y + n * w.ys.n + c * V + p * w.ys.h + q * w.ys.w, result);
}

template <class T>
struct RunSums {
  Compute<T> warps[kTileThreads / 32];
};

// NCHW: w.threads threads for a window, 32 or all of the block; blockIdx.y: splits.
template <class T>
__global__ void __launch_bounds__(kTileThreads)
average_runs(WindowShare<T> w) {
  using A = Compute<T>;
  constexpr int N = kFullVector<T>;
  auto& shared = static_shared<RunSums<T>>();
  const int32_t thread = static_cast<int32_t>(threadIdx.x), own = thread % w.threads;
  const int32_t output = static_cast<int32_t>(blockIdx.x) * (kTileThreads / w.threads) + thread / w.threads;
  const bool inside = output < w.outputs.count;
  int32_t n, c, p, q;
  w.outputs.at(inside ? output : 0, n, c, p, q);
  const auto rows = w.rows(p, q, static_cast<int32_t>(blockIdx.y));
  A sum = 0;
  if (inside && rows.columns > 0) {
    const T* const from = w.x + n * w.xs.n + c * w.xs.c + rows.first * w.xs.h + rows.column;
    const int32_t height = rows.last - rows.first;
    if (height == 1 || w.xs.h == rows.columns) {  // one run of memory
      const int32_t count = height * rows.columns, lead = lead_of(from);
      const int32_t head = lead ? (N - lead < count ? N - lead : count) : 0, whole = (count - head) / N;
      if (own < head) sum += widen(from[own]);
      for (int32_t v = own; v < whole; v += w.threads) {
        const auto values = load_vector<N>(from + head + v * N);
        for (int i = 0; i < N; ++i) sum += widen(values[i]);
      }
      if (own < count - head - whole * N) sum += widen(from[head + whole * N + own]);
    } else {
      for (int32_t row = own / 32; row < height; row += w.threads / 32)
        for (int32_t s = own % 32; s < rows.columns; s += 32) sum += widen(from[row * w.xs.h + s]);
    }
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
  if (w.threads > 32) {
    if (thread % 32 == 0) shared.warps[thread / 32] = sum;
    __syncthreads();
    if (thread > 0) return;
    sum = 0;
    for (A warp : shared.warps) sum += warp;
  }
  if (own > 0 || !inside) return;
  if (w.partials)
    w.partials[blockIdx.y * w.all_outputs + output] = sum;
  else
    w.y[w.ys.at(n, c, p, q)] = narrow<T>(sum / w.divisor.at(p, q));
}

// Adds the splits' sums. `outputs` counts single channels here.
template <class T>
__global__ void __launch_bounds__(kTileThreads)
average_splits(WindowShare<T> w) {
  const int32_t i = static_cast<int32_t>(blockIdx.x) * kTileThreads + static_cast<int32_t>(threadIdx.x);
  if (i >= w.outputs.count) return;
  int32_t n, c, p, q;
  w.outputs.at(i, n, c, p, q);
  Compute<T> sum = 0;
  for (int32_t split = 0; split < w.splits; ++split) sum += w.partials[split * w.all_outputs + i];
  w.y[w.ys.at(n, c, p, q)] = narrow<T>(sum / w.divisor.at(p, q));
}

}  // namespace fastconv::FASTCONV_GPU
