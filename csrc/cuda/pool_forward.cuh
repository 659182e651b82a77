// The forward pass of pooling, for any reduction of a window: three kernels over one loop.
//
// Arithmetic intensity is about one operation per byte: bound by memory. Each input byte is fetched from global memory
// once per block (NCHW: into shared memory; NHWC: overlaps come from the first-level cache). What costs most beside is
// instructions, r * s comparisons an output: a 3x3 window of stride 1 therefore slides down, 3 new elements an output.
// A faster kernel would share the sums of columns among lanes too, and store 16 bytes at a time in NCHW.
//
// An operation Op gives T, State, begin(code), take(state, value, code), join(state, lower, code), finish(state, p, q);
// kOffsets: whether states have codes; kSlidesChannels, kSlidesPlanes: whether sliding pays in NHWC and NCHW; kAnyInt32:
// whether pool_any has an instantiation for 32-bit indices. (It serves what the others leave: odd strides and addresses,
// window offsets beyond 8 bits, and f64, whose 8-byte accesses are whole cache lines of a warp without vectors.)
#pragma once

#include "pool_window.cuh"

namespace fastconv::FASTCONV_GPU {

constexpr int kSlideRows = 3;  // window rows, stride 1, no dilation

// Window offsets in memory: 1, 2 or 4 bytes. -1: none, stored as all ones.
template <class Index>
__device__ __forceinline__ void store_code(void* offsets, int bytes, Index at, int32_t code) {
  if (bytes == 1) static_cast<uint8_t*>(offsets)[at] = static_cast<uint8_t>(code);
  if (bytes == 2) static_cast<uint16_t*>(offsets)[at] = static_cast<uint16_t>(code);
  if (bytes == 4) static_cast<uint32_t*>(offsets)[at] = static_cast<uint32_t>(code);
}

// Where a thread's windows lie: element (h, w) of its plane is x[origin + h * row + w * column].
template <class T, class Index>
struct PoolSource {
  const T* x;
  Index origin, row, column;
};

// Columns [s0, s1) of window row r of output (p, q) into V states.
template <int V, class Op, class Index, class State>
__device__ __forceinline__ void reduce_row(const Op& op, const PoolSource<typename Op::T, Index>& from,
                                           const PoolWindow<Index>& g, Index h, Index q, Index s0, Index s1,
                                           Index code, State (&state)[V]) {
  Index at = from.origin + h * from.row + (g.columns.start(q) + s0 * g.columns.dilation) * from.column;
  const Index step = g.columns.dilation * from.column;
  for (Index s = s0; s < s1; ++s, at += step) {
    const auto values = load_vector<V>(from.x + at);
    for (int v = 0; v < V; ++v) op.take(state[v], values[v], static_cast<int32_t>(code + s));
  }
}

// Outputs [p0, p1) of column q; emit(p, states) for each.
template <bool Slides, int V, class Op, class Index, class Emit>
__device__ __forceinline__ void reduce_column(const Op& op, const PoolSource<typename Op::T, Index>& from,
                                              const PoolWindow<Index>& g, Index q, Index p0, Index p1, Emit&& emit) {
  using State = typename Op::State;
  const Index s0 = g.columns.first(q), s1 = g.columns.last(q), width = g.columns.window;
  if constexpr (!Slides) {
    for (Index p = p0; p < p1; ++p) {
      const Index r0 = g.rows.first(p), r1 = g.rows.last(p), top = g.rows.start(p);
      State state[V];
      for (int v = 0; v < V; ++v) state[v] = op.begin(r0 < r1 && s0 < s1 ? static_cast<int32_t>(r0 * width + s0) : -1);
      for (Index r = r0; r < r1; ++r)
        reduce_row<V>(op, from, g, top + r * g.rows.dilation, q, s0, s1, r * width, state);
      emit(p, state);
    }
  } else {
    // A row's state is joined to the outputs at which it is the window's third, second and first row.
    State upper[V], middle[V];  // the outputs that have two rows and one row so far
    const Index top = g.rows.start(p0);
    for (int v = 0; v < V; ++v) upper[v] = middle[v] = op.begin(-1);
    for (Index h = top; h < top + (p1 - p0) + kSlideRows - 1; ++h) {
      State row[V];
      const bool inside = h >= 0 && h < g.rows.in && s0 < s1;
      for (int v = 0; v < V; ++v) row[v] = op.begin(inside ? static_cast<int32_t>(s0) : -1);
      if (inside) reduce_row<V>(op, from, g, h, q, s0, s1, Index(0), row);
      for (int v = 0; v < V; ++v) op.join(upper[v], row[v], static_cast<int32_t>(2 * width));
      if (h - top >= kSlideRows - 1) emit(p0 + (h - top) - (kSlideRows - 1), upper);
      for (int v = 0; v < V; ++v) {
        op.join(middle[v], row[v], static_cast<int32_t>(width));
        upper[v] = middle[v];
        middle[v] = row[v];
      }
    }
  }
}

template <class Op, class Index>
__global__ void __launch_bounds__(kTileThreads, kAnyBlocks<Index>)
pool_any(Op op, PoolWindow<Index> g, Elements<Index> elements, Strides<Index> xs, Strides<Index> ys,
         Strides<Index> os, const typename Op::T* x, typename Op::T* y, void* offsets, int offset_bytes) {
  const Index i = static_cast<Index>(blockIdx.x) * kTileThreads + static_cast<Index>(threadIdx.x);
  if (i >= elements.count) return;
  Index n, c, p, q;
  elements.at(i, n, c, p, q);
  const PoolSource<typename Op::T, Index> from{x, n * xs.n + c * xs.c, xs.h, xs.w};
  reduce_column<false, 1>(op, from, g, q, p, p + 1, [&](Index, const auto& state) {
    y[ys.at(n, c, p, q)] = op.finish(state[0], p, q);
    if constexpr (Op::kOffsets) {
      if (offsets) store_code(offsets, offset_bytes, os.at(n, c, p, q), state[0].code);
    }
  });
}

template <bool Slides, class Op>
__global__ void __launch_bounds__(kTileThreads, Slides ? kSlideBlocks : kPoolBlocks)
pool_channels(Op op, PoolWindow<int32_t> g, ChannelTiles tiles, Strides<int32_t> xs, Strides<int32_t> ys,
              Strides<int32_t> os, const typename Op::T* x, typename Op::T* y, uint8_t* offsets) {
  using T = typename Op::T;
  constexpr int V = kFullVector<T>;
  const auto at = tiles.place(static_cast<int32_t>(threadIdx.x), static_cast<int32_t>(blockIdx.x));
  if (!at.inside) return;
  const int32_t n = at.image, c = at.vector * V, q = at.column;
  reduce_column<Slides, V>(
      op, PoolSource<T, int32_t>{x, n * xs.n + c, xs.h, xs.w}, g, q, at.row, at.row_end,
      [&](int32_t p, const auto& state) {
        Vector<T, V> values;
        for (int v = 0; v < V; ++v) values[v] = op.finish(state[v], p, q);
        store_vector<V>(y + n * ys.n + p * ys.h + q * ys.w + c, values);
        if constexpr (Op::kOffsets) {
          if (!offsets) return;
          Vector<uint8_t, V> codes;
          for (int v = 0; v < V; ++v) codes[v] = static_cast<uint8_t>(state[v].code);
          store_vector<V>(offsets + n * os.n + p * os.h + q * os.w + c, codes);
        }
      });
}

template <bool Slides, class Op>
__global__ void __launch_bounds__(kTileThreads, kPoolBlocks)
pool_planes(Op op, PoolWindow<int32_t> g, PlaneTiles tiles, const typename Op::T* x, typename Op::T* y,
            uint8_t* offsets) {
  using T = typename Op::T;
  const auto tile = tiles.tile(static_cast<int32_t>(blockIdx.x));
  const T* const source = x + tiles.source_begin(tile);
  T* const kept = tile_memory(source);
  copy_run(source, tiles.source_count(tile), kept);
  __syncthreads();
  const int32_t items = tiles.items(tile), width = tiles.source_width;
  const int64_t result = tile.plane * tiles.rows * tiles.width;
  for (int32_t item = static_cast<int32_t>(threadIdx.x); item < items; item += kTileThreads) {
    const auto at = tiles.place(tile, item);
    const PoolSource<T, int32_t> from{kept, (at.plane * tiles.source_rows - tile.source_row) * width, width, 1};
    reduce_column<Slides, 1>(op, from, g, at.column, at.row, at.row_end, [&](int32_t p, const auto& state) {
      const int64_t to = result + (at.plane * tiles.rows + p) * tiles.width + at.column;
      y[to] = op.finish(state[0], p, at.column);
      if constexpr (Op::kOffsets) {
        if (offsets) store_code(offsets, 1, to, state[0].code);
      }
    });
  }
}

// --- the host's side -------------------------------------------------------------------------------------------------

inline bool pool_slides(const PoolProblem& p) {
  return p.r == kSlideRows && p.stride_h == 1 && p.dilation_h == 1 && !p.adaptive && p.dtype != DType::f64;
}

// Tiles of the forward's outputs, along channels and along planes.
inline ChannelTiles forward_channels(const PoolProblem& p) {
  const int64_t vector = 16 / size_of(p.dtype);
  return ChannelTiles(p.n, p.p, p.q, p.c / vector, 128 / 16, 4);
}
inline PlaneTiles forward_planes(const PoolProblem& p) {
  TileReach reach{static_cast<int32_t>(p.stride_h), static_cast<int32_t>(-p.pad_top),
                  static_cast<int32_t>((p.r - 1) * p.dilation_h + 1 - p.pad_top)};
  if (p.adaptive)
    reach = {static_cast<int32_t>(p.h), 0, 1, static_cast<int32_t>(p.h - 1), Divider<int32_t>(p.p)};
  return PlaneTiles(p.n * p.c, p.h, p.w, p.p, p.q, reach, size_of(p.dtype));
}

// Which path the shape and strides allow; addresses have their say when they are known.
inline void plan_pool_forward(const PoolProblem& p, PoolPlan& plan) {
  const bool small = fits_int32(p), bytes = p.offset_bytes <= 1;
  PoolPath path = PoolPath::any;
  int64_t threads = p.n * p.c * p.p * p.q;
  if (small && bytes && p.dtype != DType::f64 && threads * p.h * p.w > 0) {
    const int64_t vector = 16 / size_of(p.dtype);
    const bool dense = is_dense(p.x_sizes(), p.x_strides, Layout::nchw) &&
                       is_dense(p.y_sizes(), p.y_strides, Layout::nchw) &&
                       (!p.offset_bytes || p.offset_strides == p.y_strides);
    if (has_channel_vectors(p.x_sizes(), p.x_strides, vector) &&
        has_channel_vectors(p.y_sizes(), p.y_strides, vector) &&
        (!p.offset_bytes || has_channel_vectors(p.y_sizes(), p.offset_strides, vector))) {
      path = PoolPath::channels;
      const ChannelTiles tiles = forward_channels(p);
      threads = tiles.blocks * tiles.threads();
    } else if (dense) {
      const PlaneTiles tiles = forward_planes(p);
      if (tiles.blocks > 0) {
        path = PoolPath::planes;
        threads = tiles.blocks * kTileThreads;
      }
    }
  }
  plan.detail[kPoolPath] = static_cast<int64_t>(path);
  plan.detail[kPoolInt32] = small;
  plan.detail[kPoolSlides] = path != PoolPath::any && pool_slides(p);
  plan.cost = memory_seconds(p.minimum_bytes(), threads, 1);
  if (path == PoolPath::any) plan.cost *= 3;  // narrow accesses, divisions
}

// make(Index{}): the operation with that width of indices.
template <class T, class Make>
Status run_pool_forward(const char* name, const PoolPlan& plan, const PoolOperands& o, void* stream, Make&& make) {
  const PoolProblem& p = plan.problem;
  const T* x = static_cast<const T*>(o.x);
  T* y = static_cast<T*>(o.y);
  void* offsets = p.offset_bytes ? o.offsets : nullptr;
  auto path = static_cast<PoolPath>(plan.detail[kPoolPath]);
  if (path == PoolPath::channels &&
      !(is_aligned(x, 16) && is_aligned(y, 16) && is_aligned(offsets, kFullVector<T>)))
    path = PoolPath::any;
  using NarrowOp = std::decay_t<decltype(make(int32_t{}))>;
  if constexpr (!std::is_same_v<T, double>) {
    const auto op = make(int32_t{});
    const PoolWindow<int32_t> g(p);
    uint8_t* const codes = static_cast<uint8_t*>(offsets);
    const bool slides = plan.detail[kPoolSlides];
    if (path == PoolPath::channels) {
      const ChannelTiles tiles = forward_channels(p);
      const auto kernel = slides ? pool_channels<NarrowOp::kSlidesChannels, NarrowOp> : pool_channels<false, NarrowOp>;
      return launch(name, kernel, grid_of(tiles.blocks), block_of(tiles.threads()), 0, stream, op, g, tiles,
                    Strides<int32_t>(p.x_strides), Strides<int32_t>(p.y_strides), Strides<int32_t>(p.offset_strides),
                    x, y, codes);
    }
    if (path == PoolPath::planes) {
      const PlaneTiles tiles = forward_planes(p);
      const auto kernel = slides ? pool_planes<NarrowOp::kSlidesPlanes, NarrowOp> : pool_planes<false, NarrowOp>;
      return launch(name, kernel, grid_of(tiles.blocks), block_of(kTileThreads), tiles.shared_bytes, stream, op, g,
                    tiles, x, y, codes);
    }
  }
  const auto any = [&](auto index) {
    using Index = decltype(index);
    const auto op = make(index);
    using Op = std::decay_t<decltype(op)>;
    const Elements<Index> elements(p.y_sizes(), p.y_strides);
    const int64_t blocks = blocks_for(p.n * p.c * p.p * p.q);
    if (blocks > kMostBlocks) return Status::refuse("has more outputs than a grid has threads");
    return launch(name, pool_any<Op, Index>, grid_of(blocks), block_of(kTileThreads), 0, stream, op,
                  PoolWindow<Index>(p), elements, Strides<Index>(p.x_strides), Strides<Index>(p.y_strides),
                  Strides<Index>(p.offset_strides), x, y, offsets, static_cast<int>(p.offset_bytes));
  };
  if constexpr (NarrowOp::kAnyInt32)
    if (plan.detail[kPoolInt32]) return any(int32_t{});
  return any(int64_t{});
}

}  // namespace fastconv::FASTCONV_GPU
