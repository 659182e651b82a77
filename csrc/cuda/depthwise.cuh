// Depthwise convolution, forward and grad_input: a channel's filter meets that channel alone.
//
// Arithmetic intensity: r * s multiply-adds for an input and an output, 9 / 8 per byte for 3x3 in fp32 and 9 / 4 in
// 16 bits; an H200 balances at 7. Memory bounds 3x3, instructions begin to bound 5x5 in 16 bits. So what counts is that
// each input byte comes from global memory once and to a register as few times as possible: a thread walks down one
// column and adds each row it reads to every output the row belongs to, s reads an output in place of r * s.
// NHWC: a thread has a vector of channels; the columns beside come from the first-level cache; the next row is read
// ahead. NCHW: a run of rows is copied to shared memory with accesses of 16 bytes and walked there.
// Faster still: two columns a thread (fewer reads of shared memory), packed 16-bit arithmetic, copies by the TMA.
#pragma once

#include "depthwise_plan.cuh"
#include "epilogue.cuh"

namespace fastconv::FASTCONV_GPU {

// How a thread walks over R x R taps with one stride.
//   gather: output o reads source o * Step - pad + tap. Forward, and grad_input of stride 1 with the filter turned.
//   spread: the transpose for Step = 2. Outputs come in pairs, 2 o - pad and the next one; pair o reads sources o - b.
//           OddColumns: pairs along the row begin one earlier, so that with odd padding they too begin at even columns.
template <int R_, int Step_, bool Spread_, bool OddColumns = false>
struct Walk {
  static constexpr int R = R_, Step = Step_;
  static constexpr bool kSpread = Spread_;
  static constexpr int kOdd = OddColumns;
  static_assert(Spread_ ? Step == 2 : !OddColumns);
  static constexpr int kLive = (R + Step - 1) / Step;   // outputs (pairs) along an axis that a source row belongs to
  static constexpr int kRows = kSpread ? 1 : Step;      // source rows of a step of the walk
  static constexpr int kColumns = kSpread ? kLive : R;  // source columns of a thread
  static constexpr int kPerStep = kSpread ? Step : 1;   // result rows, and columns, of a step
  // Which passes walk so: forward has an activation and no mask, grad_input a mask and at most a bias.
  static constexpr bool kInForward = !kSpread, kInGradient = kSpread || Step == 1;
  static constexpr bool kReadsAhead = kRows * kColumns < 10;  // the next rows, if registers can hold them
};

// Channels of a thread in NHWC: filter, sums and two rows are to fit into 128 registers. 3x3 in fp32: 16 bytes.
template <class T, class W>
constexpr int kDepthwiseVector = W::R == 3 ? 4 : 2;

struct DepthwiseShape {
  int32_t source_rows = 0, source_columns = 0, result_rows = 0, result_columns = 0;
  int32_t pad_top = 0, pad_left = 0;
  int32_t first_row = 0, first_column = 0;  // spread: the first pairs that hold results; that of columns begins at 0
  int32_t rows = 0, columns = 0;            // to walk over: results, or pairs
  bool turned = false;                      // the filter is read from its last tap to its first
};

// Steps [first, last) of a column. load(row, column tap): V values, 0 outside. emit(step, i, sums): row i of the step's
// results.
template <class W, int V, class T, class Load, class Emit>
__device__ __forceinline__ void walk_column(const DepthwiseShape& shape, const Compute<T> (&filter)[W::R][W::R][V],
                                            int32_t first, int32_t last, const Load& load, Emit&& emit) {
  using A = Compute<T>;
  constexpr int kAhead = W::kLive - 1;
  const int32_t begin = W::kSpread ? first - kAhead : first, end = W::kSpread ? last : last + kAhead;
  const int32_t source_end = W::kSpread ? last : (last - 1) * W::Step - shape.pad_top + W::R;
  const int32_t row_end = source_end < shape.source_rows ? source_end : shape.source_rows;
  const auto fetch = [&](int32_t step, Vector<T, V> (&to)[W::kRows][W::kColumns]) {
    FASTCONV_UNROLL
    for (int i = 0; i < W::kRows; ++i) {
      const int32_t row = W::kSpread ? step : step * W::Step - shape.pad_top + i;
      const bool inside = row >= 0 && row < row_end;
      FASTCONV_UNROLL
      for (int s = 0; s < W::kColumns; ++s) to[i][s] = inside ? load(row, s) : Vector<T, V>{};
    }
  };
  A sums[W::kLive][W::kPerStep][W::kPerStep][V] = {};
  Vector<T, V> now[W::kRows][W::kColumns], next[W::kRows][W::kColumns];
  if (W::kReadsAhead) fetch(begin, next);
  for (int32_t step = begin; step < end; ++step) {
    if constexpr (W::kReadsAhead) {
      for (int i = 0; i < W::kRows; ++i)
        for (int s = 0; s < W::kColumns; ++s) now[i][s] = next[i][s];
      if (step + 1 < end) fetch(step + 1, next);
    } else {
      fetch(step, now);
    }

    for (int i = 0; i < W::kRows; ++i)
      for (int s = 0; s < W::kColumns; ++s) {
        A value[V];
        for (int v = 0; v < V; ++v) value[v] = widen(now[i][s][v]);
        for (int a = 0; a < W::kLive; ++a)
          for (int y = 0; y < W::kPerStep; ++y)
            for (int x = 0; x < W::kPerStep; ++x) {
              const int r = a * W::Step + (W::kSpread ? y : i), t = W::kSpread ? s * W::Step + x - W::kOdd : s;
              if (r < W::R && t >= 0 && t < W::R)
                for (int v = 0; v < V; ++v) sums[a][y][x][v] += value[v] * filter[r][t][v];
            }
      }

    // gather: the oldest output has the last of its rows; spread: the newest pair will see no more rows.
    constexpr int kDone = W::kSpread ? 0 : W::kLive - 1;
    const int32_t done = W::kSpread ? step : step - kAhead;
    if (done >= first)
      FASTCONV_UNROLL
      for (int y = 0; y < W::kPerStep; ++y) emit(done, y, sums[kDone][y]);
    for (int a = 0; a < W::kLive; ++a) {
      const int to = W::kSpread ? a : W::kLive - 1 - a, from = W::kSpread ? a + 1 : W::kLive - 2 - a;
      for (int y = 0; y < W::kPerStep; ++y)
        for (int x = 0; x < W::kPerStep; ++x)
          for (int v = 0; v < V; ++v)
            sums[to][y][x][v] = a == W::kLive - 1 ? A(0) : sums[from < 0 || from >= W::kLive ? to : from][y][x][v];
    }
  }
}

// The source column of column tap s.
template <class W>
__device__ __forceinline__ int32_t source_column(const DepthwiseShape& shape, int32_t column, int s) {
  return W::kSpread ? column - s : column * W::Step - shape.pad_left + s;
}

// What is read: x in the forward, grad_output (perhaps masked by the forward's output) in grad_input.
template <class T>
struct DepthwiseSource {
  const T* values = nullptr;
  const T* mask = nullptr;
  Strides<int32_t> strides, mask_strides;
  Compute<T> parameter = 0;  // of the activation
  Activation activation = Activation::none;

  DepthwiseSource(const ConvProblem& p, const ConvOperands& o)
      : parameter(static_cast<Compute<T>>(p.activation_parameter.value())), activation(p.activation) {
    const bool forward = p.pass == Pass::forward;
    values = static_cast<const T*>(forward ? o.x : o.y);
    strides = Strides<int32_t>(forward ? p.x_strides : p.y_strides);
    if (forward || p.activation == Activation::none) return;
    mask = static_cast<const T*>(o.aux);
    mask_strides = Strides<int32_t>(p.aux_strides);
  }
  template <class Values>
  __device__ __forceinline__ Values masked(Values v, const Values& by) const {
    if constexpr (std::is_same_v<Values, T>) {
      return masked_value(v, by);
    } else {
      FASTCONV_UNROLL
      for (int i = 0; i < static_cast<int>(sizeof v / sizeof(T)); ++i)
        v[i] = masked_value(v[i], by[i]);
      return v;
    }
  }

 private:
  __device__ __forceinline__ T masked_value(T v, T by) const {
    return narrow<T>(activation_gradient(activation, parameter, widen(v), widen(by)));
  }
};

// Strides of a filter k 1 r s.
struct FilterStrides {
  int32_t k = 0, r = 0, s = 0;
  FilterStrides() = default;
  explicit FilterStrides(const ConvProblem& p)
      : k(static_cast<int32_t>(p.weight_strides[0])),
        r(static_cast<int32_t>(p.weight_strides[2])),
        s(static_cast<int32_t>(p.weight_strides[3])) {}
};

template <class T, class W>
struct DepthwiseFilters {  // of a block's channels, in shared memory: read in the order of memory, kept by taps
  static constexpr int kChannels = 128 / static_cast<int>(sizeof(T));
  static constexpr int kPitch = kChannels + 4;  // a channel's taps lie in different banks
  alignas(16) Compute<T> taps[W::R * W::R][kPitch];
};

template <class T, class W>
__global__ void __launch_bounds__(kTileThreads, 2)
depthwise_channels(DepthwiseShape shape, ChannelTiles tiles, DepthwiseSource<T> source, FilterStrides fs,
                   const T* filter, Strides<int32_t> ds, T* result, Epilogue<T, int32_t> epilogue) {
  using A = Compute<T>;
  constexpr int V = kDepthwiseVector<T, W>, R = W::R;
  auto& filters = static_shared<DepthwiseFilters<T, W>>();
  const auto at = tiles.place(static_cast<int32_t>(threadIdx.x), static_cast<int32_t>(blockIdx.x));
  const int32_t block_channels = static_cast<int32_t>(tiles.lanes.divisor) * V;
  const int32_t first_channel = (at.vector - at.lane) * V;
  const int32_t thread = static_cast<int32_t>(threadIdx.x), threads = static_cast<int32_t>(blockDim.x);
  for (int32_t i = thread; i < block_channels * R * R; i += threads) {
    const int32_t c = i / (R * R), tap = i % (R * R);
    const bool inside = first_channel + c < tiles.vectors * V;
    const int32_t place = (first_channel + c) * fs.k + tap / R * fs.r + tap % R * fs.s;
    filters.taps[shape.turned ? R * R - 1 - tap : tap][c] = inside ? widen(filter[place]) : A(0);
  }
  __syncthreads();
  if (!at.inside) return;

  A weights[R][R][V];
  for (int r = 0; r < R; ++r)
    for (int s = 0; s < R; ++s) {
      const auto tap = load_vector<V>(&filters.taps[r * R + s][at.lane * V]);
      for (int v = 0; v < V; ++v) weights[r][s][v] = tap[v];
    }
  const int32_t c = at.vector * V, column = at.column + shape.first_column;
  A scale[V], bias[V];
  for (int v = 0; v < V; ++v) {
    scale[v] = W::kInForward && epilogue.scale ? epilogue.scale[c + v] : A(1);
    bias[v] = epilogue.bias ? widen(epilogue.bias[c + v]) : A(0);
  }

  const T* const values = source.values + at.image * source.strides.n + c;
  const T* const mask = W::kInGradient && source.mask ? source.mask + at.image * source.mask_strides.n + c : nullptr;
  const auto load = [&](int32_t row, int s) {
    const int32_t w = source_column<W>(shape, column, s);
    if (w < 0 || w >= shape.source_columns) return Vector<T, V>{};
    const auto loaded = load_vector<V>(values + row * source.strides.h + w * source.strides.w);
    if (!mask) return loaded;
    return source.masked(loaded, load_vector<V>(mask + row * source.mask_strides.h + w * source.mask_strides.w));
  };
  const auto emit = [&](int32_t step, int y, const A(&sums)[W::kPerStep][V]) {
    const int32_t row = W::kSpread ? step * W::Step - shape.pad_top + y : step;
    if (W::kSpread && (row < 0 || row >= shape.result_rows)) return;
    FASTCONV_UNROLL
    for (int x = 0; x < W::kPerStep; ++x) {
      const int32_t w = at.column * W::kPerStep + x;
      if (W::kSpread && w >= shape.result_columns) return;
      Vector<T, V> residual{}, out;
      const int32_t residual_at = epilogue.residual_strides.at(at.image, c, row, w);
      if (W::kInForward && epilogue.residual) residual = load_vector<V>(epilogue.residual + residual_at);
      FASTCONV_UNROLL
      for (int v = 0; v < V; ++v) {
        A sum = (W::kInForward ? sums[x][v] * scale[v] : sums[x][v]) + bias[v];
        if constexpr (W::kInForward) {
          if (epilogue.residual) sum += widen(residual[v]);
          sum = activate(epilogue.activation, epilogue.parameter, sum);
        }
        out[v] = narrow<T>(sum);
      }
      store_vector<V>(result + at.image * ds.n + row * ds.h + w * ds.w + c, out);
    }
  };
  walk_column<W, V, T>(shape, weights, at.row + shape.first_row, at.row_end + shape.first_row, load, emit);
}

template <class T, class W>
__global__ void __launch_bounds__(kTileThreads, W::R == 3 ? 4 : 3)
depthwise_planes(DepthwiseShape shape, PlaneTiles tiles, Divider<int32_t> channels, DepthwiseSource<T> source,
                 FilterStrides fs, const T* filter, T* result, Epilogue<T, int32_t> epilogue) {
  using A = Compute<T>;
  constexpr int R = W::R;
  const auto tile = tiles.tile(static_cast<int32_t>(blockIdx.x));
  const int64_t begin = tiles.source_begin(tile);
  const T* const from = source.values + begin;
  const T* const mask = W::kInGradient && source.mask ? source.mask + begin : nullptr;
  T* const kept = tile_memory(from);
  if (mask) {
    copy_run(from, tiles.source_count(tile), kept, [&](const auto& v, int32_t i) {
      if constexpr (std::is_same_v<std::decay_t<decltype(v)>, T>) {
        return source.masked(v, mask[i]);
      } else {
        return source.masked(v, load_vector<kFullVector<T>>(mask + i));
      }
    });
  } else {
    copy_run(from, tiles.source_count(tile), kept);
  }
  __syncthreads();

  // Two columns by one store: every second one begins at a multiple of its size.
  const bool pairs = shape.result_columns % 2 == 0 && reinterpret_cast<uintptr_t>(result) % (2 * sizeof(T)) == 0;
  const int32_t items = tiles.items(tile);
  for (int32_t item = static_cast<int32_t>(threadIdx.x); item < items; item += kTileThreads) {
    const auto at = tiles.place(tile, item);
    const int32_t plane = static_cast<int32_t>(tile.plane) + at.plane, column = at.column + shape.first_column;
    int32_t c;
    channels.quotient(plane, c);
    A weights[R][R][1];
    for (int r = 0; r < R; ++r)
      for (int s = 0; s < R; ++s) {
        const int tap_r = shape.turned ? R - 1 - r : r, tap_s = shape.turned ? R - 1 - s : s;
        weights[r][s][0] = widen(filter[c * fs.k + tap_r * fs.r + tap_s * fs.s]);
      }
    const int32_t origin = (at.plane * shape.source_rows - tile.source_row) * shape.source_columns;
    const auto load = [&](int32_t row, int s) {
      const int32_t w = source_column<W>(shape, column, s);
      Vector<T, 1> value{};
      if (w >= 0 && w < shape.source_columns) value[0] = kept[origin + row * shape.source_columns + w];
      return value;
    };
    const auto emit = [&](int32_t step, int y, const A(&sums)[W::kPerStep][1]) {
      const int32_t row = W::kSpread ? step * W::Step - shape.pad_top + y : step, w = at.column * W::kPerStep;
      if (W::kSpread && (row < 0 || row >= shape.result_rows)) return;
      const int32_t to = (plane * shape.result_rows + row) * shape.result_columns + w;
      const auto finished = [&](int x) {
        if constexpr (W::kInForward)
          return epilogue.finish(sums[x][0], c, to + x);
        else
          return biased(sums[x][0], epilogue.bias, c);
      };
      if (W::kSpread && pairs) {
        Vector<T, W::kPerStep> pair;
        FASTCONV_UNROLL
        for (int x = 0; x < W::kPerStep; ++x) pair[x] = finished(x);
        store_vector<W::kPerStep>(result + to, pair);
      } else {
        FASTCONV_UNROLL
        for (int x = 0; x < W::kPerStep; ++x)
          if (w + x < shape.result_columns) result[to + x] = finished(x);
      }
    };
    walk_column<W, 1, T>(shape, weights, at.row + shape.first_row, at.row_end + shape.first_row, load, emit);
  }
}

// Any strides, window and multiplier: a thread for each element written.
template <class Index>
struct DepthwiseAny {
  Elements<Index> elements;  // of what is written
  Divider<Index> multiplier, stride_h, stride_w;
  Index h = 0, w = 0, p = 0, q = 0, r = 0, s = 0, pad_top = 0, pad_left = 0, dilation_h = 1, dilation_w = 1;
  Strides<Index> xs, ws, ys;

  explicit DepthwiseAny(const ConvProblem& c)
      : elements(c.pass == Pass::forward ? Elements<Index>(c.y_sizes(), c.y_strides)
                                         : Elements<Index>(c.x_sizes(), c.x_strides)),
        multiplier(c.group_k()),
        stride_h(c.stride_h),
        stride_w(c.stride_w),
        h(static_cast<Index>(c.h)),
        w(static_cast<Index>(c.w)),
        p(static_cast<Index>(c.p())),
        q(static_cast<Index>(c.q())),
        r(static_cast<Index>(c.r)),
        s(static_cast<Index>(c.s)),
        pad_top(static_cast<Index>(c.pad_top)),
        pad_left(static_cast<Index>(c.pad_left)),
        dilation_h(static_cast<Index>(c.dilation_h)),
        dilation_w(static_cast<Index>(c.dilation_w)),
        xs(c.x_strides),
        ws(c.weight_strides),
        ys(c.y_strides) {}
};

template <class T, class Index>
__global__ void __launch_bounds__(kTileThreads, 2)
depthwise_any(DepthwiseAny<Index> g, const T* x, const T* filter, T* y, Epilogue<T, Index> epilogue) {
  const Index i = static_cast<Index>(blockIdx.x) * kTileThreads + static_cast<Index>(threadIdx.x);
  if (i >= g.elements.count) return;
  Index n, k, p, q;
  g.elements.at(i, n, k, p, q);
  const Index plane = n * g.xs.n + g.multiplier.quotient(k) * g.xs.c;
  const Index top = p * static_cast<Index>(g.stride_h.divisor) - g.pad_top;
  const Index left = q * static_cast<Index>(g.stride_w.divisor) - g.pad_left;
  Compute<T> sum = 0;
  for (Index r = 0; r < g.r; ++r) {
    const Index h = top + r * g.dilation_h;
    if (h < 0 || h >= g.h) continue;
    for (Index s = 0; s < g.s; ++s) {
      const Index w = left + s * g.dilation_w;
      if (w >= 0 && w < g.w)
        sum += widen(x[plane + h * g.xs.h + w * g.xs.w]) * widen(filter[k * g.ws.n + r * g.ws.h + s * g.ws.w]);
    }
  }
  y[g.ys.at(n, k, p, q)] = epilogue.finish(sum, k, epilogue.residual_strides.at(n, k, p, q));
}

template <class T, class Index>
__global__ void __launch_bounds__(kTileThreads, 2)
depthwise_any_gradient(DepthwiseAny<Index> g, T* dx, const T* filter, GradOutput<T, Index> dy, const T* bias) {
  const Index i = static_cast<Index>(blockIdx.x) * kTileThreads + static_cast<Index>(threadIdx.x);
  if (i >= g.elements.count) return;
  Index n, c, h, w;
  g.elements.at(i, n, c, h, w);
  const Index filters = static_cast<Index>(g.multiplier.divisor);
  Compute<T> sum = 0;
  for (Index k = c * filters; k < (c + 1) * filters; ++k) {
    for (Index r = 0; r < g.r; ++r) {
      const Index reach_h = h + g.pad_top - r * g.dilation_h;
      if (reach_h < 0) break;
      Index rest;
      const Index p = g.stride_h.quotient(reach_h, rest);
      if (rest || p >= g.p) continue;
      for (Index s = 0; s < g.s; ++s) {
        const Index reach_w = w + g.pad_left - s * g.dilation_w;
        if (reach_w < 0) break;
        const Index q = g.stride_w.quotient(reach_w, rest);
        if (rest || q >= g.q) continue;
        sum += dy.read(n, k, p, q) * widen(filter[k * g.ws.n + r * g.ws.h + s * g.ws.w]);
      }
    }
  }
  dx[g.xs.at(n, c, h, w)] = biased(sum, bias, c);
}

// --- the host's side -------------------------------------------------------------------------------------------------

// f(Walk) of the problem.
template <class F>
Status with_walk(const ConvProblem& p, F&& f) {
  if (p.r == 5) return f(Walk<5, 1, false>{});
  if (!gathers(p)) return p.pad_left % 2 ? f(Walk<3, 2, true, true>{}) : f(Walk<3, 2, true>{});
  return p.stride_h == 1 ? f(Walk<3, 1, false>{}) : f(Walk<3, 2, false>{});
}

inline DepthwiseShape shape_of(const ConvProblem& p) {
  DepthwiseShape s;
  const int32_t h = static_cast<int32_t>(p.h), w = static_cast<int32_t>(p.w);
  const int32_t out_h = static_cast<int32_t>(p.p()), out_w = static_cast<int32_t>(p.q());
  s.pad_top = static_cast<int32_t>(p.pad_top);
  s.pad_left = static_cast<int32_t>(p.pad_left);
  const bool forward = p.pass == Pass::forward;
  s.source_rows = forward ? h : out_h;
  s.source_columns = forward ? w : out_w;
  s.result_rows = s.rows = forward ? out_h : h;
  s.result_columns = s.columns = forward ? out_w : w;
  if (forward) return s;
  if (gathers(p)) {
    s.turned = true;
    s.pad_top = static_cast<int32_t>(p.r) - 1 - s.pad_top;
    s.pad_left = static_cast<int32_t>(p.s) - 1 - s.pad_left;
    return s;
  }
  s.first_row = s.pad_top / 2;
  s.first_column = (s.pad_left + 1) / 2;
  s.rows = (s.pad_top + h - 1) / 2 - s.first_row + 1;
  s.columns = (w + 1) / 2;
  return s;
}

inline PlaneTiles plane_tiles(const ConvProblem& p) {
  const DepthwiseShape s = shape_of(p);
  const int32_t step = static_cast<int32_t>(p.stride_h), taps = static_cast<int32_t>(p.r);
  TileReach reach{step, -s.pad_top, taps - s.pad_top};
  if (!gathers(p)) reach = {1, s.first_row - ((taps + 1) / 2 - 1), s.first_row + 1};
  return PlaneTiles(p.n * p.c, s.source_rows, s.source_columns, s.rows, s.columns, reach, size_of(p.dtype));
}

}  // namespace fastconv::FASTCONV_GPU
