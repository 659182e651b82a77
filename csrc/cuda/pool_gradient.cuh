// grad_input of pooling: each input element gathers from the windows that cover it, so every element is written by one
// thread, in a fixed order. Bound by memory and, for overlapping windows, by the instructions of the covers.
//
// An Op of gradients gives T, covers(p0, p1, q0, q1), add(sums, dy, covers, n, c, p, q, r, s), finish(sums, covers, at):
// the result, which goes to offset `at`; kAnyInt32: whether pool_gradient_any has an instantiation for 32-bit indices.
#pragma once

#include "pool_window.cuh"

namespace fastconv::FASTCONV_GPU {

// V elements of grad_input at (n, c, h, w), offset `at`, which are neighbours along channels.
template <int V, class Op, class Index>
__device__ __forceinline__ Vector<typename Op::T, V> gather_covers(const Op& op, const PoolWindow<Index>& g,
                                                                   const typename Op::T* dy, const Strides<Index>& ys,
                                                                   Index n, Index c, Index h, Index w, Index at) {
  using T = typename Op::T;
  const Index p0 = g.rows.first_cover(h), p1 = g.rows.last_cover(h);
  const Index q0 = g.columns.first_cover(w), q1 = g.columns.last_cover(w);
  const auto covers = op.covers(p0, p1, q0, q1);
  Compute<T> sum[V] = {};
  for (Index p = p0; p <= p1; ++p) {
    const Index r = g.rows.tap(h, p);
    for (Index q = q0; q <= q1; ++q) {
      const Index s = g.columns.tap(w, q);
      if (r >= 0 && s >= 0) op.add(sum, load_vector<V>(dy + ys.at(n, c, p, q)), covers, n, c, p, q, r, s);
    }
  }
  return op.finish(sum, covers, at);
}

template <class Op, class Index>
__global__ void __launch_bounds__(kTileThreads, kAnyBlocks<Index>)
pool_gradient_any(Op op, PoolWindow<Index> g, Elements<Index> elements, Strides<Index> xs, Strides<Index> ys,
                  typename Op::T* dx, const typename Op::T* dy) {
  const Index i = static_cast<Index>(blockIdx.x) * kTileThreads + static_cast<Index>(threadIdx.x);
  if (i >= elements.count) return;
  Index n, c, h, w;
  elements.at(i, n, c, h, w);
  const Index at = xs.at(n, c, h, w);
  dx[at] = gather_covers<1>(op, g, dy, ys, n, c, h, w, at)[0];
}

template <class Op>
__global__ void __launch_bounds__(kTileThreads, kPoolBlocks)
pool_gradient_channels(Op op, PoolWindow<int32_t> g, ChannelTiles tiles, Strides<int32_t> xs, Strides<int32_t> ys,
                       typename Op::T* dx, const typename Op::T* dy) {
  constexpr int V = kFullVector<typename Op::T>;
  const auto at = tiles.place(static_cast<int32_t>(threadIdx.x), static_cast<int32_t>(blockIdx.x));
  if (!at.inside) return;
  const int32_t n = at.image, c = at.vector * V, w = at.column;
  for (int32_t h = at.row; h < at.row_end; ++h) {
    const int32_t to = n * xs.n + h * xs.h + w * xs.w + c;
    store_vector<V>(dx + to, gather_covers<V>(op, g, dy, ys, n, c, h, w, to));
  }
}

inline ChannelTiles gradient_channels(const PoolProblem& p) {
  return ChannelTiles(p.n, p.h, p.w, p.c / (16 / size_of(p.dtype)), 128 / 16, 1);
}

inline void plan_pool_gradient(const PoolProblem& p, PoolPlan& plan) {
  const bool small = fits_int32(p);
  const int64_t vector = 16 / size_of(p.dtype);
  PoolPath path = PoolPath::any;
  int64_t threads = p.n * p.c * p.h * p.w;
  if (small && p.dtype != DType::f64 && threads > 0 && p.offset_bytes <= 1 && has_channel_vectors(p.x_sizes(), p.x_strides, vector) &&
      has_channel_vectors(p.y_sizes(), p.y_strides, vector) &&
      (!p.offset_bytes || has_channel_vectors(p.y_sizes(), p.offset_strides, vector))) {
    path = PoolPath::channels;
    const ChannelTiles tiles = gradient_channels(p);
    threads = tiles.blocks * tiles.threads();
  }
  plan.detail[kPoolPath] = static_cast<int64_t>(path);
  plan.detail[kPoolInt32] = small;
  plan.cost = memory_seconds(p.minimum_bytes(), threads, 1);
  if (path == PoolPath::any) plan.cost *= 2;  // narrow accesses
}

// make(Index{}): the operation with that width of indices. `aligned`: offsets allow vectors.
template <class T, class Make>
Status run_pool_gradient(const char* name, const PoolPlan& plan, const PoolOperands& o, void* stream, bool aligned,
                         Make&& make) {
  const PoolProblem& p = plan.problem;
  T* dx = static_cast<T*>(o.x);
  const T* dy = static_cast<const T*>(o.y);
  const bool vectors = aligned && is_aligned(dx, 16) && is_aligned(dy, 16);
  using NarrowOp = std::decay_t<decltype(make(int32_t{}))>;
  if constexpr (!std::is_same_v<T, double>)
    if (vectors && static_cast<PoolPath>(plan.detail[kPoolPath]) == PoolPath::channels) {
      const ChannelTiles tiles = gradient_channels(p);
      return launch(name, pool_gradient_channels<NarrowOp>, grid_of(tiles.blocks), block_of(tiles.threads()), 0,
                    stream, make(int32_t{}), PoolWindow<int32_t>(p), tiles, Strides<int32_t>(p.x_strides),
                    Strides<int32_t>(p.y_strides), dx, dy);
    }
  const auto any = [&](auto index) {
    using Index = decltype(index);
    const auto op = make(index);
    const Elements<Index> elements(p.x_sizes(), p.x_strides);
    const int64_t blocks = blocks_for(p.n * p.c * p.h * p.w);
    if (blocks > kMostBlocks) return Status::refuse("has more elements than a grid has threads");
    return launch(name, pool_gradient_any<std::decay_t<decltype(op)>, Index>, grid_of(blocks), block_of(kTileThreads),
                  0, stream, op, PoolWindow<Index>(p), elements, Strides<Index>(p.x_strides),
                  Strides<Index>(p.y_strides), dx, dy);
  };
  if constexpr (NarrowOp::kAnyInt32)
    if (plan.detail[kPoolInt32]) return any(int32_t{});
  return any(int64_t{});
}

}  // namespace fastconv::FASTCONV_GPU
