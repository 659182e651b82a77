// Depthwise convolution with lanes along channels, forward and grad_input: the natural order of NHWC, and through
// packing the path for every other layout, dtype and multiplier.
//
// Path `channels`: a tile of 8 pixels x 1 vector of channels sums over the window's taps in registers, reading x where
// it lies, without what the padding would read. Arithmetic intensity: r s multiply-adds per value read and written (9
// per 8 bytes at 3x3 fp32), so a large map is bound by memory. A small one would be bound by loads from the first-level
// cache, one per multiply-add; rows of 3, 5 or 7 neighbouring taps load each pixel once for all 8 outputs, 10 loads in
// place of 24 for 3 taps, which leaves the multiply-add unit as the limit. Path `packed` copies a band of rows to
// [row][pixel][32 channels] before and turns the sums afterwards, which costs about as much as the sums themselves.
#include "depthwise.h"
#include "epilogue.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// [source of the sum][tap][lane], lanes rounded up to the tile's width. In grad_input an input channel sums over its
// filters; in the forward pass each lane is a filter.
template <class T>
void pack_filter(const ConvProblem& p, const T* weight, Compute<T>* packed) {
  using A = Compute<T>;
  constexpr int W = kTileWidth<A>;
  const bool forward = p.pass == Pass::forward;
  const int64_t sources = forward ? 1 : p.group_k(), lanes = forward ? p.k : p.c, taps = p.r * p.s;
  const int64_t pitch = div_up(lanes, W) * W;
  const Strides4& ws = p.weight_strides;
  for (int64_t u = 0; u < sources; ++u)
    for (int64_t r = 0; r < p.r; ++r)
      for (int64_t s = 0; s < p.s; ++s) {
        A* to = packed + ((u * taps) + r * p.s + s) * pitch;
        for (int64_t l = 0; l < lanes; ++l) to[l] = widen(weight[(l * sources + u) * ws[0] + r * ws[2] + s * ws[3]]);
        zero(to + lanes, pitch - lanes);
      }
}

constexpr int kPixels = 8;

template <class T>
struct Channels {
  using A = Compute<T>;
  static constexpr int L = kLanes<A>, W = kTileWidth<A>;

  const ConvProblem& p;
  const DepthwiseBlocks b;
  const ConvOperands& operands;
  const Gather g;
  const A* filter;
  const Taps rows, cols;
  const Inside interior = all_inside(cols, g.cols, 0, g.cols.out);
  const bool forward = p.pass == Pass::forward;
  const Activated<A> activation{p};
  const int64_t sources = forward ? 1 : p.group_k(), lanes = forward ? p.k : p.c;
  const int64_t filter_pitch = div_up(lanes, W) * W, taps = p.r * p.s;
  const bool neighbours = cols.count > 1 && cols.d[cols.count - 1] - cols.d[0] == cols.count - 1;

  // The source rows of one output row, and the filter's row for each.
  struct RowList {
    int64_t count;
    const A** x;
    const A** w;
  };
  RowList row_list(Arena& own) const {
    return {0, own.take<const A*>(b.taps * sources), own.take<const A*>(b.taps * sources)};
  }

  // acc[pixel] of one vector of channels, over the listed rows and the column taps [t0, t1). x_pixel: elements from
  // pixel to pixel of the source.
  template <int PX>
  void sum(const RowList& list, int64_t t0, int64_t t1, int64_t j, int64_t x_pixel, int64_t x_channel,
           int64_t w_channel, Vec<A> (&acc)[PX]) const {
#pragma GCC unroll 8
    for (int m = 0; m < PX; ++m) acc[m] = Vec<A>{};
    const int64_t step = g.cols.step * x_pixel;
    for (int64_t a = 0; a < list.count; ++a) {
      const A* row = list.x[a] + j * step + x_channel;
      const A* row_w = list.w[a] + w_channel;
      for (int64_t t = t0; t < t1; ++t) {
        const A* x = row + cols.d[t] * x_pixel;
        const Vec<A> w = load(row_w + cols.index[t] * filter_pitch);
#pragma GCC unroll 8
        for (int m = 0; m < PX; ++m) acc[m] += load(x + m * step) * w;
      }
    }
  }

  // The same for a row of S neighbouring taps: each pixel of the source is loaded once for all outputs that read it.
  // Edge: some of them lie outside and are left out.
  template <int PX, int S, int Step, bool Edge>
  void sum_shared(const RowList& list, int64_t j, int64_t x_pixel, int64_t x_channel, int64_t w_channel,
                  Vec<A> (&acc)[PX]) const {
#pragma GCC unroll 8
    for (int m = 0; m < PX; ++m) acc[m] = Vec<A>{};
    const int64_t first = j * Step + cols.d[0], width = g.cols.src;
    const int64_t w_offset = cols.index[0] * filter_pitch + w_channel;
    const int64_t w_step = (cols.index[1] - cols.index[0]) * filter_pitch;
    for (int64_t a = 0; a < list.count; ++a) {
      const A* x = list.x[a] + first * x_pixel + x_channel;
      Vec<A> w[S];
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) {
        w[s] = load(list.w[a] + w_offset + s * w_step);
        pin(w[s]);
      }
#pragma GCC unroll 24
      for (int i = 0; i < (PX - 1) * Step + S; ++i) {
        if (Edge && static_cast<uint64_t>(first + i) >= static_cast<uint64_t>(width)) continue;
        Vec<A> value = load(x + i * x_pixel);
        pin(value);
#pragma GCC unroll 8
        for (int m = 0; m < PX; ++m)
          if (i - m * Step >= 0 && i - m * Step < S) acc[m] += value * w[i - m * Step];
      }
    }
  }

  // Calls f(Number<pixels>, j, sum of a vector) for the tiles of an output row.
  template <class F>
  void for_each_tile(const RowList& list, int64_t x_pixel, F&& f) const {
    if (neighbours && g.cols.step == 1 && cols.count == 3) return shared_tiles<3, 1>(list, x_pixel, f);
    if (neighbours && g.cols.step == 1 && cols.count == 5) return shared_tiles<5, 1>(list, x_pixel, f);
    if (neighbours && g.cols.step == 1 && cols.count == 7) return shared_tiles<7, 1>(list, x_pixel, f);
    if (neighbours && g.cols.step == 2 && cols.count == 3) return shared_tiles<3, 2>(list, x_pixel, f);
    for_each_segment(cols, g.cols, interior, [&](int64_t j0, int64_t j1, int64_t t0, int64_t t1) {
      in_pieces<kPixels>(j0, j1, [&](auto pixels, int64_t j) {
        f(pixels, j, [&, j, t0, t1](int64_t x_channel, int64_t w_channel, auto& acc) {
          sum<decltype(pixels)::value>(list, t0, t1, j, x_pixel, x_channel, w_channel, acc);
        });
      });
    });
  }
  template <int S, int Step, class F>
  void shared_tiles(const RowList& list, int64_t x_pixel, F&& f) const {
    in_overlapping_pieces<kPixels>(0, 0, g.cols.out, [&](auto pixels, int64_t j) {
      constexpr int PX = decltype(pixels)::value;
      if (j >= interior.begin && j + PX <= interior.end)
        f(pixels, j, [&, j](int64_t x_channel, int64_t w_channel, auto& acc) {
          sum_shared<PX, S, Step, false>(list, j, x_pixel, x_channel, w_channel, acc);
        });
      else
        f(pixels, j, [&, j](int64_t x_channel, int64_t w_channel, auto& acc) {
          sum_shared<PX, S, Step, true>(list, j, x_pixel, x_channel, w_channel, acc);
        });
    });
  }

  // Path `channels`: all lanes of one output row. T is A here, both tensors' channels are neighbours.
  void direct_row(RowList& list, int64_t n, int64_t i) const {
    const Strides4 &ss = g.src, &ds = g.dst, &rs = g.residual;
    const A* x = static_cast<const A*>(forward ? operands.x : operands.y) + n * ss[0];
    A* y = static_cast<A*>(forward ? operands.y : operands.x) + n * ds[0] +
           (g.rows.out_start + i * g.rows.out_step) * ds[2] + g.cols.out_start * ds[3];
    const int64_t y_pixel = g.cols.out_step * ds[3];
    const A* scale = p.scale ? static_cast<const A*>(operands.scale) : nullptr;
    const A* bias = p.bias ? static_cast<const A*>(operands.bias) : nullptr;
    const A* residual =
        forward && p.residual ? static_cast<const A*>(operands.aux) + n * rs[0] + i * rs[2] : nullptr;
    list.count = 0;
    for (int64_t a = 0; a < rows.count; ++a) {
      const int64_t row = i * g.rows.step + rows.d[a];
      if (row < 0 || row >= g.rows.src) continue;
      list.x[list.count] = x + row * ss[2];
      list.w[list.count++] = filter + rows.index[a] * p.s * filter_pitch;
    }
    // What the next tile reads first and writes comes from afar: ask for it a tile ahead.
    const A* ahead = x + smaller(i * g.rows.step + (rows.count ? rows.d[rows.count - 1] : 0), g.rows.src - 1) * ss[2];
    const int64_t x_ahead = kPixels * g.cols.step;
    for_each_tile(list, ss[3], [&](auto pixels, int64_t j, auto&& sum_of) {
      constexpr int PX = decltype(pixels)::value;
      const auto vector = [&](int64_t channel) {
        Vec<A> acc[PX];
#pragma GCC unroll 8
        for (int m = 0; m < PX; ++m) {
          __builtin_prefetch(ahead + (j * g.cols.step + x_ahead + m * g.cols.step) * ss[3] + channel);
          __builtin_prefetch(y + (j + kPixels + m) * y_pixel + channel, 1);
        }
        sum_of(channel, channel, acc);
        const Vec<A> times = scale ? load(scale + channel) : Vec<A>{} + A(1);
        const Vec<A> add = bias ? load(bias + channel) : Vec<A>{};
#pragma GCC unroll 8
        for (int m = 0; m < PX; ++m) {
          acc[m] = acc[m] * times + add;
          if (residual) acc[m] += load(residual + (j + m) * rs[3] + channel);
          acc[m] = activation.in_registers(acc[m]);
          store(y + (j + m) * y_pixel + channel, acc[m]);
        }
      };
      int64_t channel = 0;
      for (; channel + L <= lanes; channel += L) vector(channel);
      // The rest with lanes that were just written: the same values again, and no partial vector.
      if (channel < lanes) vector(lanes - L);
    });
    if (activation.in_memory())
      for (int64_t j = 0; j < g.cols.out; ++j) activation.apply(y + j * y_pixel, lanes);
  }

  // Path `packed`: output rows [row0, row1) of the tile width of lanes from lane0 on.
  void packed_band(Arena own, int64_t n, int64_t lane0, int64_t row0, int64_t row1) const {
    A* band = own.take<A>(b.source_values);
    A* sums = own.take<A>(b.output_values);
    RowList list = row_list(own);
    const int64_t used = smaller(W, lanes - lane0), width = g.cols.src, row_values = width * W;

    const SourceRows source_rows(rows, g.rows, row0, row1, own.take<int64_t>(b.slots));
    for (int64_t u = 0; u < sources; ++u) {
      const int64_t channel = forward ? lane0 / p.group_k() : lane0 * sources + u;
      const T* source = static_cast<const T*>(forward ? operands.x : operands.y) + n * g.src[0] + channel * g.src[1];
      const T* mask = forward || !p.has_aux()
                          ? nullptr
                          : static_cast<const T*>(operands.aux) + n * g.mask[0] + channel * g.mask[1];
      Strides4 strides = g.src, mask_strides = g.mask;
      strides[1] *= sources;
      mask_strides[1] *= sources;
      const ChannelBand<T> packer{source, strides, mask, mask_strides, width, used, forward ? p.group_k() : 1, lane0,
                                   OutputGradient<A>(p)};
      source_rows.pack(packer, band + u * source_rows.count * row_values);
    }

    for (int64_t i = row0; i < row1; ++i) {
      list.count = 0;
      for (int64_t u = 0; u < sources; ++u)
        for (int64_t a = 0; a < rows.count; ++a) {
          const int64_t row = i * g.rows.step + rows.d[a];
          if (row < 0 || row >= g.rows.src) continue;
          list.x[list.count] = band + (u * source_rows.count + source_rows[row]) * row_values;
          list.w[list.count++] = filter + (u * taps + rows.index[a] * p.s) * filter_pitch;
        }
      A* row_sums = sums + (i - row0) * g.cols.out * W;
      for_each_tile(list, W, [&](auto pixels, int64_t j, auto&& sum_of) {
        constexpr int PX = decltype(pixels)::value;
        for (int v = 0; v < kTileVectors; ++v) {
          Vec<A> acc[PX];
          sum_of(v * L, lane0 + v * L, acc);
#pragma GCC unroll 8
          for (int m = 0; m < PX; ++m) store(row_sums + (j + m) * W + v * L, acc[m]);
        }
      });
    }
    write(sums, n, lane0, row0, row1);
  }

  void write(A* sums, int64_t n, int64_t lane0, int64_t row0, int64_t row1) const {
    const Strides4 &ds = g.dst, &rs = g.residual;
    const int64_t width = g.cols.out, pixels = (row1 - row0) * width, used = smaller(W, lanes - lane0);
    Epilogue<T> epilogue;
    epilogue.activation = activation;
    epilogue.set(scales_of<T>(p, operands, lane0), biases_of<T>(p, operands, lane0), used);
    T* y = static_cast<T*>(forward ? operands.y : operands.x) + n * ds[0] + lane0 * ds[1];
    const T* residual =
        forward && p.residual ? static_cast<const T*>(operands.aux) + n * rs[0] + lane0 * rs[1] : nullptr;
    TileOutput<T> out{nullptr, g.cols.out_step * ds[3], ds[1], nullptr, rs[3], rs[1]};
    // Pieces of a tile's height, across rows if those follow each other.
    const bool follow = width > 1 && g.rows.out_step == 1 && g.cols.out_step == 1 && ds[2] == width * ds[3] &&
                        (!residual || rs[2] == width * rs[3]);
    for (int64_t m = 0; m < pixels;) {
      const int64_t i = row0 + m / width, j = m % width;
      const int64_t piece = smaller(kTileHeight, follow ? pixels - m : width - j);
      out.y = y + (g.rows.out_start + i * g.rows.out_step) * ds[2] + (g.cols.out_start + j * g.cols.out_step) * ds[3];
      if (residual) out.residual = residual + i * rs[2] + j * rs[3];
      epilogue.write(sums + m * W, piece, used, out);
      m += piece;
    }
  }
};

template <class T>
void run(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  using A = Compute<T>;
  constexpr int W = kTileWidth<A>;
  const ConvProblem& p = plan.problem;
  const DepthwiseBlocks b = depthwise_blocks(plan);
  Threads threads = exec.threads;
  threads.count = static_cast<int>(smaller(threads.count, plan.threads));
  Arena arena(workspace);
  A* own_filter = arena.take<A>(b.filter_values);
  if (!exec.prepacked) pack_filter(p, static_cast<const T*>(operands.weight), own_filter);
  const A* filter = exec.prepacked ? static_cast<const A*>(exec.prepacked) : own_filter;
  const bool packed = b.path == DepthwisePath::packed;

  for (int64_t phase = 0; phase < gather_phases(p); ++phase) {
    const Gather g = depthwise_gather(p, phase);
    if (g.rows.out <= 0 || g.cols.out <= 0) continue;
    Arena phase_arena = arena;
    const Taps rows(g.rows, phase_arena), cols(g.cols, phase_arena);
    const Channels<T> channels{p, b, operands, g, filter, rows, cols};
    const int64_t bands = div_up(g.rows.out, b.rows), blocks = packed ? div_up(channels.lanes, W) : 1;
    parallel_tasks(threads, p.n * bands * blocks, [&](int thread, int64_t task) {
      const int64_t block = task % blocks, row0 = task / blocks % bands * b.rows, n = task / blocks / bands;
      const int64_t row1 = smaller(row0 + b.rows, g.rows.out);
      Arena own = phase_arena.slice(thread, b.thread_bytes);
      if (packed) return channels.packed_band(own, n, block * W, row0, row1);
      if constexpr (std::is_same_v<T, A>) {
        auto list = channels.row_list(own);
        for (int64_t i = row0; i < row1; ++i) channels.direct_row(list, n, i);
      }
    });
  }
}

}  // namespace

void depthwise_pack_filter(const ConvPlan& plan, const void* weight, void* packed) {
  with_float(plan.problem.dtype, [&](auto v) {
    using T = decltype(v);
    pack_filter(plan.problem, static_cast<const T*>(weight), static_cast<Compute<T>*>(packed));
  });
}

Status depthwise_channels(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  with_float(plan.problem.dtype, [&](auto v) { run<decltype(v)>(plan, operands, workspace, exec); });
  return {};
}

}  // namespace fastconv::cpu::FASTCONV_ISA
