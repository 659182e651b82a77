// The filters' gradient of a depthwise convolution: dw[filter][tap] = sum over pixels of dy[filter] x[channel], shifted
// by the tap. As many multiply-adds as the forward pass and nearly no output: bound by reading x and dy once.
//
// Lanes along channels (NHWC): sums of a row of taps for 2 vectors of channels stay in registers over 32 pixels. Lanes
// along a row (NCHW): sums of up to 9 taps stay in registers for a band of rows, each lane its own; lanes are added at
// the end. In both the sums of a block or band are finished before they join the running ones, so chains of roundings stay
// short.
#include "depthwise_plane.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// Shares of the work that add up: bands of rows of all images.
struct Units {
  int64_t bands, count;
  int64_t begin(int64_t split, int64_t splits) const { return count * split / splits; }
};

// sums: [split][tap, or taps for the bias][lanes]; lane_of(filter) says where a filter is.
template <class T, class LaneOf>
void finish(const ConvProblem& p, const ConvOperands& operands, const Compute<T>* sums, int64_t splits, int64_t pitch,
            LaneOf&& lane_of) {
  using A = Compute<T>;
  const int64_t taps = p.r * p.s;
  const Strides4& ws = p.weight_strides;
  for (int64_t f = 0; f < p.k; ++f)
    for (int64_t tap = 0; tap <= taps; ++tap) {
      if (tap == taps && !p.bias) continue;
      A total = 0;
      for (int64_t split = 0; split < splits; ++split) total += sums[(split * (taps + 1) + tap) * pitch + lane_of(f)];
      if (tap == taps)
        static_cast<T*>(operands.grad_bias)[f] = narrow<T>(total);
      else
        static_cast<T*>(operands.weight)[f * ws[0] + tap / p.s * ws[2] + tap % p.s * ws[3]] = narrow<T>(total);
    }
}

constexpr int64_t kPixelBlock = 32;

template <class T>
struct ByChannels {
  using A = Compute<T>;
  static constexpr int L = kLanes<A>, W = kTileWidth<A>;

  const ConvProblem& p;
  const DepthwiseBlocks b;
  const ConvOperands& operands;
  const Gather g;
  const Taps rows, cols;
  const bool packed = b.path == DepthwisePath::packed;
  const int64_t taps = p.r * p.s, pitch = div_up(p.k, W) * W;

  // Part of a band: output rows [i0, i1) and columns [j0, j1), x rows listed as [output row][row tap], null for
  // padding.
  struct Block {
    const A* const* x;
    const A* dy;  // row 0
    int64_t x_pixel, y_pixel, y_row, i0, i1, j0, j1;
  };

  // sums[tap][vector] += dy * x for the row tap `a` and NS column taps from t on.
  template <int NS, int V>
  void add(const Block& block, int64_t a, int64_t t, int64_t x_channel, int64_t y_channel, A* sums,
           int64_t sums_pitch) const {
    int64_t begin[NS], end[NS], all_begin = block.j0, all_end = block.j1, shift[NS];
    Vec<A> acc[NS][V];
    sums += rows.index[a] * p.s * sums_pitch;
#pragma GCC unroll 4
    for (int s = 0; s < NS; ++s) {
      const Inside in(cols.d[t + s], g.cols.step, g.cols.src, block.j0, block.j1);
      begin[s] = in.begin;
      end[s] = in.end;
      all_begin = larger(all_begin, in.begin);
      all_end = smaller(all_end, in.end);
      shift[s] = cols.d[t + s] * block.x_pixel + x_channel;
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) acc[s][v] = Vec<A>{};
    }
    if (all_end <= all_begin) all_begin = all_end = block.j1;
    const int64_t step = g.cols.step * block.x_pixel, y_step = block.y_pixel;
    for (int64_t i = block.i0; i < block.i1; ++i) {
      const A* x = block.x[i * rows.count + a];
      if (!x) continue;
      const A* dy = block.dy + i * block.y_row + y_channel;
      for (int64_t j = all_begin; j < all_end; ++j) {
        Vec<A> value[V];
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) value[v] = load(dy + j * y_step + v * L);
#pragma GCC unroll 4
        for (int s = 0; s < NS; ++s)
#pragma GCC unroll 2
          for (int v = 0; v < V; ++v) acc[s][v] += load(x + j * step + shift[s] + v * L) * value[v];
      }
#pragma GCC unroll 4
      for (int s = 0; s < NS; ++s) {  // pixels that only some of the taps have
        const auto one = [&](int64_t j) __attribute__((always_inline)) {
#pragma GCC unroll 2
          for (int v = 0; v < V; ++v)
            acc[s][v] += load(x + j * step + shift[s] + v * L) * load(dy + j * y_step + v * L);
        };
        for (int64_t j = begin[s]; j < smaller(end[s], all_begin); ++j) one(j);
        for (int64_t j = larger(begin[s], all_end); j < end[s]; ++j) one(j);
      }
    }
#pragma GCC unroll 4
    for (int s = 0; s < NS; ++s)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        A* to = sums + cols.index[t + s] * sums_pitch + v * L;
        store(to, load(to) + acc[s][v]);
      }
  }

  // All taps of V vectors of channels.
  template <int V>
  void add_block(const Block& block, int64_t x_channel, int64_t y_channel, A* sums, int64_t sums_pitch) const {
    for (int64_t a = 0; a < rows.count; ++a)
      in_pieces<3>(0, cols.count, [&](auto piece, int64_t t) {
        add<decltype(piece)::value, V>(block, a, t, x_channel, y_channel, sums, sums_pitch);
      });
    if (!p.bias) return;
    for (int v = 0; v < V; ++v) {
      Vec<A> total = {};
      for (int64_t i = block.i0; i < block.i1; ++i)
        for (int64_t j = block.j0; j < block.j1; ++j)
          total += load(block.dy + i * block.y_row + j * block.y_pixel + y_channel + v * L);
      A* to = sums + taps * sums_pitch + v * L;
      store(to, load(to) + total);
    }
  }

  // Lanes [lane0, lane1) of the output rows [row0, row1) of one image, added to sums[tap][pitch].
  void band(Arena own, int64_t n, int64_t lane0, int64_t lane1, int64_t row0, int64_t row1, A* sums) const {
    A* x_band = own.take<A>(b.source_values);
    A* y_band = own.take<A>(b.output_values);
    const int64_t own_pitch = div_up(lane1 - lane0, W) * W;
    A* own_sums = own.take<A>((taps + 1) * div_up(b.channels, W) * W);
    const A** x_rows = own.take<const A*>(b.rows * p.r);
    const SourceRows source_rows(rows, g.rows, row0, row1, own.take<int64_t>(b.slots));
    zero(own_sums, (taps + 1) * own_pitch);

    const T* x = static_cast<const T*>(operands.x) + n * g.src[0] + lane0 / p.group_k() * g.src[1];
    const T* dy = static_cast<const T*>(operands.y) + n * g.dst[0] + lane0 * g.dst[1];
    if (packed) {
      const T* mask = p.has_aux() ? static_cast<const T*>(operands.aux) + n * g.residual[0] + lane0 * g.residual[1]
                                  : nullptr;
      source_rows.pack(ChannelBand<T>{x, g.src, nullptr, {}, g.cols.src, lane1 - lane0, p.group_k(), lane0}, x_band);
      ChannelBand<T>{dy, g.dst, mask, g.residual, g.cols.out, lane1 - lane0, 1, lane0, OutputGradient<A>(p)}
          .pack_rows(row0, row1 - row0, y_band);
    }
    Block block{x_rows, y_band, W, W, g.cols.out * W, 0, 0, 0, 0};
    if constexpr (std::is_same_v<T, A>) {
      if (!packed) block = {x_rows, dy + row0 * g.dst[2], g.src[3], g.dst[3], g.dst[2], 0, 0, 0, 0};
    }
    for (int64_t i = row0; i < row1; ++i)
      for (int64_t a = 0; a < rows.count; ++a) {
        const int64_t row = i * g.rows.step + rows.d[a];
        const A*& to = x_rows[(i - row0) * rows.count + a];
        to = nullptr;
        if (row < 0 || row >= g.rows.src) continue;
        to = x_band + source_rows[row] * g.cols.src * W;
        if constexpr (std::is_same_v<T, A>) {
          if (!packed) to = x + row * g.src[2];
        }
      }
    // Pieces of a row, or some short rows, whose x and dy stay in the first-level cache while channels go by.
    const int64_t rows_at_once = larger(1, kPixelBlock / g.cols.out), lanes = packed ? W : lane1 - lane0;
    for (block.i0 = 0; block.i0 < row1 - row0; block.i0 = block.i1) {
      block.i1 = smaller(block.i0 + rows_at_once, row1 - row0);
      for (block.j0 = 0; block.j0 < g.cols.out; block.j0 = block.j1) {
        block.j1 = smaller(block.j0 + kPixelBlock, g.cols.out);
        int64_t lane = 0;
        for (; lane + W <= lanes; lane += W) add_block<2>(block, lane, lane, own_sums + lane, own_pitch);
        for (; lane + L <= lanes; lane += L) add_block<1>(block, lane, lane, own_sums + lane, own_pitch);
        // The rest in a vector that ends with it, see lane_of().
        if (lane < lanes) add_block<1>(block, lanes - L, lanes - L, own_sums + lane, own_pitch);
      }
    }
    for (int64_t tap = 0; tap <= taps; ++tap)
      for (int64_t l = 0; l < own_pitch; ++l) sums[tap * pitch + lane0 + l] += own_sums[tap * own_pitch + l];
  }

  int64_t lane_of(int64_t f) const { return packed || f < p.k / L * L ? f : p.k / L * L + f - (p.k - L); }
};

template <class T>
void run_channels(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  using A = Compute<T>;
  const ConvProblem& p = plan.problem;
  const DepthwiseBlocks b = depthwise_blocks(plan);
  Threads threads = exec.threads;
  threads.count = static_cast<int>(smaller(threads.count, plan.threads));
  Arena arena(workspace);
  A* sums = arena.take<A>(b.filter_values);
  zero(sums, b.filter_values);
  const Gather g = depthwise_gather(p, 0);
  const Taps rows(g.rows, arena), cols(g.cols, arena);
  const ByChannels<T> grad{p, b, operands, g, rows, cols};
  const int64_t blocks = div_up(p.k, b.channels), bands = div_up(g.rows.out, b.rows);
  const Units units{bands, p.n * bands};
  parallel_tasks(threads, blocks * b.splits, [&](int thread, int64_t task) {
    const int64_t block = task % blocks, split = task / blocks;
    for (int64_t i = units.begin(split, b.splits); i < units.begin(split + 1, b.splits); ++i) {
      const int64_t row0 = i % bands * b.rows;
      grad.band(arena.slice(thread, b.thread_bytes), i / bands, block * b.channels,
                smaller((block + 1) * b.channels, p.k), row0, smaller(row0 + b.rows, g.rows.out),
                sums + split * (grad.taps + 1) * grad.pitch);
    }
  });
  finish<T>(p, operands, sums, b.splits, grad.pitch, [&](int64_t f) { return grad.lane_of(f); });
}

template <class T>
struct ByPlanes {
  using A = Compute<T>;
  static constexpr int L = kLanes<A>;

  const ConvProblem& p;
  const DepthwiseBlocks b;
  const ConvOperands& operands;
  const Gather g;
  const Taps rows, cols;
  const int64_t* offset;  // of each tap in the buffer
  const PlaneBuffer shape = plane_buffer(g, b.rows, 1, L);
  const PlaneColumns columns{g.cols, cols, shape, L};
  const int64_t taps = p.r * p.s, multiplier = p.group_k(), width = div_up(g.cols.out, L) * L;
  const T* x = static_cast<const T*>(operands.x);
  const T* x_last = last_of<T>(x, p.x_sizes(), p.x_strides);
  const T* dy = static_cast<const T*>(operands.y);
  const T* dy_last = last_of<T>(dy, p.y_sizes(), p.y_strides);
  const T* mask = p.has_aux() ? static_cast<const T*>(operands.aux) : nullptr;
  const T* mask_last = mask ? last_of<T>(mask, p.y_sizes(), p.aux_strides) : nullptr;

  template <int NT>
  void add_taps(const A* x_band, const int64_t* offset, const A* y_band, int64_t count, A* lane_sums) const {
    Vec<A> acc[NT];
#pragma GCC unroll 9
    for (int t = 0; t < NT; ++t) acc[t] = Vec<A>{};
    const int64_t whole = g.cols.out / L * L;
    Vec<A> used{};  // in the last vector: beyond the row dy is zero, but x may be NaN
    for (int l = 0; l < L; ++l) used[l] = whole + l < g.cols.out ? A(1) : A(0);
    for (int64_t i = 0; i < count; ++i) {
      const A* dy_row = y_band + i * width;
      const A* x_row = x_band + i * g.rows.step * shape.pitch;
      for (int64_t j = 0; j < whole; j += L) {
        const Vec<A> value = load(dy_row + j);
#pragma GCC unroll 9
        for (int t = 0; t < NT; ++t) acc[t] += load(x_row + j + offset[t]) * value;
      }
      if (whole == width) continue;
      const Vec<A> value = load(dy_row + whole);
#pragma GCC unroll 9
      for (int t = 0; t < NT; ++t) {
        const Vec<A> shifted = load(x_row + whole + offset[t]);
        acc[t] += (used == A(0) ? Vec<A>{} : shifted) * value;
      }
    }
#pragma GCC unroll 9
    for (int t = 0; t < NT; ++t) store(lane_sums + t * L, load(lane_sums + t * L) + acc[t]);
  }

  // One channel's filters, summed over the units [begin, end), to sums[tap][k].
  void channel(Arena own, int64_t channel, int64_t begin, int64_t end, const Units& units, A* sums) const {
    A* x_band = own.take<A>(b.source_values);
    A* y_band = own.take<A>(b.output_values);
    A* lane_sums = own.take<A>(multiplier * (taps + 1) * L);
    zero(lane_sums, multiplier * (taps + 1) * L);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit / units.bands, row0 = unit % units.bands * b.rows;
      const int64_t row1 = smaller(row0 + b.rows, g.rows.out), low = row0 * g.rows.step + rows.d[0];
      const int64_t count = (row1 - 1 - row0) * g.rows.step + rows.d[rows.count - 1] - rows.d[0] + 1;
      fill_plane<T>(g.rows.src, columns, low, count, x_band,
                    PlaneRows<T>{x + n * g.src[0] + channel * g.src[1], g.src[2], g.src[3], x_last});
      for (int64_t f = 0; f < multiplier; ++f) {
        const int64_t filter = channel * multiplier + f;
        PlaneRows<T> from{dy + n * g.dst[0] + filter * g.dst[1], g.dst[2], g.dst[3], dy_last};
        if (mask) {
          from.mask = mask + n * g.residual[0] + filter * g.residual[1];
          from.mask_row_stride = g.residual[2];
          from.mask_stride = g.residual[3];
          from.mask_last = mask_last;
          from.gradient = OutputGradient<A>(p);
        }
        for (int64_t i = row0; i < row1; ++i)
          for (int64_t j = 0; j < width; j += L)
            store(y_band + (i - row0) * width + j, from.up_to(i, j, g.cols.out - j));
        A* filter_sums = lane_sums + f * (taps + 1) * L;
        in_pieces<9>(0, taps, [&](auto piece, int64_t t) {
          add_taps<decltype(piece)::value>(x_band, offset + t, y_band, row1 - row0, filter_sums + t * L);
        });
        if (p.bias) {
          Vec<A> total = {};
          for (int64_t i = 0; i < (row1 - row0) * width; i += L) total += load(y_band + i);
          store(filter_sums + taps * L, load(filter_sums + taps * L) + total);
        }
      }
    }
    // A vector's lanes added up, L vectors at once: turned, they are L vectors to add, in pairs for fewer roundings.
    for (int64_t f = 0; f < multiplier; ++f)
      for (int64_t tap = 0; tap <= taps; tap += L) {
        const int64_t count = smaller(L, taps + 1 - tap);
        Vec<A> turned[L];
        for (int64_t t = 0; t < L; ++t)
          turned[t] = t < count ? load(lane_sums + (f * (taps + 1) + tap + t) * L) : Vec<A>{};
        transpose_registers<A>(turned);
#pragma GCC unroll 4
        for (int step = 1; step < L; step *= 2)
#pragma GCC unroll 8
          for (int l = 0; l < L; l += 2 * step) turned[l] += turned[l + step];
        alignas(kVectorBytes) A totals[L];
        store(totals, turned[0]);
        for (int64_t t = 0; t < count; ++t) sums[(tap + t) * p.k + channel * multiplier + f] = totals[t];
      }
  }
};

template <class T>
void run_planes(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  using A = Compute<T>;
  const ConvProblem& p = plan.problem;
  const DepthwiseBlocks b = depthwise_blocks(plan);
  Threads threads = exec.threads;
  threads.count = static_cast<int>(smaller(threads.count, plan.threads));
  Arena arena(workspace);
  A* sums = arena.take<A>(b.filter_values);
  const Gather g = depthwise_gather(p, 0);
  const Taps rows(g.rows, arena), cols(g.cols, arena);
  int64_t* offset = arena.take<int64_t>(p.r * p.s);
  const ByPlanes<T> grad{p, b, operands, g, rows, cols, offset};
  plane_offsets(rows, cols, grad.columns, offset);
  const int64_t bands = div_up(g.rows.out, b.rows);
  const Units units{bands, p.n * bands};
  for (int thread = 0; thread < threads.count; ++thread)  // the buffers' padding, see fill_plane()
    zero(arena.slice(thread, b.thread_bytes).take<A>(b.source_values), b.source_values);
  parallel_tasks(threads, p.c * b.splits, [&](int thread, int64_t task) {
    const int64_t channel = task % p.c, split = task / p.c;
    grad.channel(arena.slice(thread, b.thread_bytes), channel, units.begin(split, b.splits),
                 units.begin(split + 1, b.splits), units, sums + split * (grad.taps + 1) * p.k);
  });
  finish<T>(p, operands, sums, b.splits, p.k, [](int64_t f) { return f; });
}

}  // namespace

Status depthwise_weight_channels(const ConvPlan& plan, const ConvOperands& operands, void* workspace,
                                 const Execution& exec) {
  with_float(plan.problem.dtype, [&](auto v) { run_channels<decltype(v)>(plan, operands, workspace, exec); });
  return {};
}

Status depthwise_weight_planes(const ConvPlan& plan, const ConvOperands& operands, void* workspace,
                               const Execution& exec) {
  with_float(plan.problem.dtype, [&](auto v) { run_planes<decltype(v)>(plan, operands, workspace, exec); });
  return {};
}

}  // namespace fastconv::cpu::FASTCONV_ISA
