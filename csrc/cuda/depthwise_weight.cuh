// Depthwise convolution, grad_weight and grad_bias: dw[k][r][s] = sum over n, p, q of dy[n][k][p][q] * x[n][c][..][..].
//
// As many bytes and multiply-adds as the forward, so memory bounds it too; but r * s sums over everything have to come
// together. Each thread walks down columns with its own r * s sums in registers: a row of x meets the dy of all outputs
// it belongs to, so both are read once for each column. A block adds its threads' sums in shared memory and writes them
// to the workspace; a second kernel adds those of all blocks. Both orders are fixed: the result is the same each time.
// Faster: neighbouring columns of x by shuffles instead of from the first-level cache.
#pragma once

#include "epilogue.cuh"
#include "tiles.cuh"

namespace fastconv::FASTCONV_GPU {

constexpr int kWeightThreads = 128;
constexpr int kMostPartials = 256;  // sums of blocks for one filter

// R x R taps, no dilation, strides Step, V channels a thread (NHWC; V = 1: any strides, a block has one channel).
// R = 1: one tap at a time of any window, at any stride; blockIdx.y is the tap.
template <class Storage, int R_, int Step_, int V_, class Index_>
struct WeightTraits {
  using T = Storage;
  using A = Compute<T>;
  using Index = Index_;
  static constexpr int R = R_, Step = Step_, V = V_;
  static constexpr int kTaps = R * R + 1;  // the last sum is the bias'
  static constexpr int kLive = (R + Step - 1) / Step;
  static constexpr int kWarps = kWeightThreads / 32;
  static_assert(R > 1 || V == 1);
};

template <class Index>
struct WeightShape {
  Index h = 0, w = 0, p = 0, pad_top = 0, pad_left = 0, stride_h = 1, stride_w = 1, dilation_h = 1, dilation_w = 1;
  Index filter_w = 1, taps = 1;  // of the whole filter
  Divider<Index> multiplier;
  Strides<Index> xs;
  int32_t filters = 0;

  explicit WeightShape(const ConvProblem& c)
      : h(static_cast<Index>(c.h)),
        w(static_cast<Index>(c.w)),
        p(static_cast<Index>(c.p())),
        pad_top(static_cast<Index>(c.pad_top)),
        pad_left(static_cast<Index>(c.pad_left)),
        stride_h(static_cast<Index>(c.stride_h)),
        stride_w(static_cast<Index>(c.stride_w)),
        dilation_h(static_cast<Index>(c.dilation_h)),
        dilation_w(static_cast<Index>(c.dilation_w)),
        filter_w(static_cast<Index>(c.s)),
        taps(static_cast<Index>(c.r * c.s)),
        multiplier(c.group_k()),
        xs(c.x_strides),
        filters(static_cast<int32_t>(c.k)) {}
};

template <class Traits>
struct WeightShared {
  // V > 1: of every thread. V = 1: of every warp.
  alignas(16) typename Traits::A sums[Traits::kTaps][Traits::V > 1 ? kWeightThreads : Traits::kWarps][Traits::V];
};

// Adds dy * x of one column of a strip to the sums.
template <class Traits, class Dy, class X>
__device__ __forceinline__ void add_column(int32_t first, int32_t last, const Dy& dy_at, const X& x_at,
                                           typename Traits::A (&sums)[Traits::kTaps][Traits::V]) {
  using A = typename Traits::A;
  constexpr int R = Traits::R, V = Traits::V, kLive = Traits::kLive;
  A dy[kLive][V] = {};
  for (int32_t step = first; step < last + kLive - 1; ++step) {
    for (int a = kLive - 1; a > 0; --a)
      for (int v = 0; v < V; ++v) dy[a][v] = dy[a - 1][v];
    if (step < last) {
      dy_at(step, dy[0]);
      for (int v = 0; v < V; ++v) sums[R * R][v] += dy[0][v];
    }
    for (int i = 0; i < Traits::Step; ++i) {
      const bool unused = (kLive - 1) * Traits::Step + i >= R;  // by the oldest output, the only one after the others
      if (unused && step == last + kLive - 2) continue;
      A x[R][V];
      if (!x_at(step, i, x)) continue;
      for (int a = 0; a < kLive; ++a) {
        const int r = a * Traits::Step + i;
        // Outputs beyond the strip are another thread's; x may be infinite there, so zero for dy would not do.
        if (r >= R || step - a < first || step - a >= last) continue;
        for (int s = 0; s < R; ++s)
          for (int v = 0; v < V; ++v) sums[r * R + s][v] += x[s][v] * dy[a][v];
      }
    }
  }
}

// partials[sum_block][tap][filter], tap taps is the bias'.
template <class Traits>
__global__ void __launch_bounds__(kWeightThreads, 4)
depthwise_weight(WeightShape<typename Traits::Index> g, ChannelTiles tiles,
                 GradOutput<typename Traits::T, typename Traits::Index> grad, const typename Traits::T* x,
                 typename Traits::A* partials) {
  using T = typename Traits::T;
  using A = typename Traits::A;
  using Index = typename Traits::Index;
  constexpr int R = Traits::R, V = Traits::V;
  auto& shared = static_shared<WeightShared<Traits>>();
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  auto at = tiles.place(thread, static_cast<int32_t>(blockIdx.x));
  if (thread >= tiles.threads()) tiles.set_unit(at, tiles.units);  // V = 1: makes up whole warps
  const Index k = at.vector * V, channel = V > 1 ? k : g.multiplier.quotient(k), q = at.column;
  const Index all_taps = g.taps + 1;
  for (Index tap = R > 1 ? 0 : static_cast<Index>(blockIdx.y); tap < (R > 1 ? 1 : g.taps); tap += gridDim.y) {
    const Index shift_h = R > 1 ? 0 : tap / g.filter_w * g.dilation_h - g.pad_top;
    const Index shift_w = R > 1 ? 0 : tap % g.filter_w * g.dilation_w - g.pad_left;
    A sums[Traits::kTaps][V] = {};
    const int32_t further = tiles.unit_blocks * tiles.units_per_block;
    for (auto unit = at; unit.inside; tiles.set_unit(unit, unit.unit + further)) {
      const Index n = unit.image;
      const auto dy_at = [&](Index p, A(&dy)[V]) {
        if constexpr (V == 1) {
          dy[0] = grad.read(n, k, p, q);
        } else {
          const auto values = load_vector<V>(grad.dy + grad.strides.at(n, k, p, q));
          for (int v = 0; v < V; ++v) dy[v] = widen(values[v]);
          if (!grad.output) return;
          const auto outputs = load_vector<V>(grad.output + grad.output_strides.at(n, k, p, q));
          for (int v = 0; v < V; ++v) dy[v] = grad.masked(dy[v], outputs[v]);
        }
      };
      const auto x_at = [&](Index step, int i, A(&values)[R][V]) {
        const Index row = R > 1 ? step * Traits::Step - g.pad_top + i : step * g.stride_h + shift_h;
        if (row < 0 || row >= g.h) return false;
        const Index base = g.xs.at(n, channel, row, 0);
        for (int s = 0; s < R; ++s) {
          const Index column = R > 1 ? q * Traits::Step - g.pad_left + s : q * g.stride_w + shift_w;
          Vector<T, V> loaded{};
          if (column >= 0 && column < g.w) loaded = load_vector<V>(x + base + column * g.xs.w);
          for (int v = 0; v < V; ++v) values[s][v] = widen(loaded[v]);
        }
        return true;
      };
      add_column<Traits>(unit.row, unit.row_end, dy_at, x_at, sums);
    }

    // The block's sums. Which partial: columns and units of the block together.
    A* const to = partials + static_cast<int64_t>(at.sum_block) * all_taps * g.filters;
    if constexpr (V == 1) {
      for (int t = 0; t < Traits::kTaps; ++t)
        for (int lanes = 16; lanes > 0; lanes /= 2) sums[t][0] += __shfl_xor_sync(~0u, sums[t][0], lanes);
      if (thread % 32 == 0)
        for (int t = 0; t < Traits::kTaps; ++t) shared.sums[t][thread / 32][0] = sums[t][0];
      __syncthreads();
      if (thread < Traits::kTaps) {
        A sum = 0;
        for (int warp = 0; warp < Traits::kWarps; ++warp) sum += shared.sums[thread][warp][0];
        // R = 1: every tap's blocks make the bias' sum; the first tap's write it.
        const Index place = R > 1 ? Index(thread) : thread == 0 ? tap : tap == 0 ? g.taps : -1;
        if (place >= 0) to[place * g.filters + k] = sum;
      }
      __syncthreads();
    } else {
      for (int t = 0; t < Traits::kTaps; ++t) {
        Vector<A, V> own;
        for (int v = 0; v < V; ++v) own[v] = sums[t][v];
        store_vector<V>(shared.sums[t][thread], own);
      }
      __syncthreads();
      const int32_t lanes = static_cast<int32_t>(tiles.lanes.divisor), channels = lanes * V;
      const int32_t rest = static_cast<int32_t>(k) - at.lane * V;  // the block's first filter
      const int32_t groups = static_cast<int32_t>(blockDim.x) / lanes;
      for (int32_t i = thread; i < Traits::kTaps * channels; i += static_cast<int32_t>(blockDim.x)) {
        const int32_t t = i / channels, c = i % channels;
        if (rest + c >= g.filters) continue;
        A sum = 0;
        for (int32_t group = 0; group < groups; ++group) sum += shared.sums[t][group * lanes + c / V][c % V];
        to[static_cast<Index>(t) * g.filters + rest + c] = sum;
      }
    }
  }
}

// Adds the partial sums of all blocks: 32 neighbouring values and 8 slices of the partials for each block.
constexpr int kSumValues = 32, kSumSlices = 8;

template <class A>
struct SumShared {
  A slices[kSumSlices][kSumValues];
};

template <class T>
__global__ void __launch_bounds__(kSumValues * kSumSlices)
sum_partials(const Compute<T>* partials, int32_t count, int64_t values, Divider<int64_t> filters, int64_t taps,
             int64_t filter_w, Strides<int64_t> ws, T* dw, T* grad_bias) {
  using A = Compute<T>;
  auto& shared = static_shared<SumShared<A>>();
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % kSumValues;
  const int32_t slice = static_cast<int32_t>(threadIdx.x) / kSumValues;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kSumValues + lane;
  A sum = 0;
  if (i < values)
    for (int32_t b = slice; b < count; b += kSumSlices) sum += partials[b * values + i];
  shared.slices[slice][lane] = sum;
  __syncthreads();
  if (slice > 0 || i >= values) return;
  sum = 0;
  for (int s = 0; s < kSumSlices; ++s) sum += shared.slices[s][lane];
  int64_t k;
  const int64_t tap = filters.quotient(i, k);
  if (tap < taps)
    dw[k * ws.n + tap / filter_w * ws.h + tap % filter_w * ws.w] = narrow<T>(sum);
  else if (grad_bias)
    grad_bias[k] = narrow<T>(sum);
}

}  // namespace fastconv::FASTCONV_GPU
