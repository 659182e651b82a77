// Winograd's algorithm, forward and grad_input.
//
// A block of tiles goes through all its steps: transform the input of all channels, then for each 32 filters (16 with
// AVX2) multiply at every frequency and transform the sums back to pixels.
// The transformed filter, n^2 / r^2 times as large as the filter, is read from memory that keeps it between calls; where
// that would take longer than the products, every block transforms the filter anew, 32 channels at a time. With AVX2 the
// products of one frequency prefetch the next one's filter: without, an AMD EPYC spends half of the time waiting for it.
// Multiplications per output fall from r^2 to (n / m)^2: 4 times fewer for F(4x4,3x3). Per tile and 16 channels the
// transforms take about 150 cycles for the input and 120 for the output, against n^2 * filters for the products.
#include "../arena.h"
#include "../gather.h"
#include "../winograd.h"
#include "winograd_input.h"
#include "panel_multiply.h"
#include "winograd_output.h"
#include "winograd_taps.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

inline int64_t lowest_displacement(const GatherAxis& a) {
  return a.tap_step > 0 ? a.tap_origin : a.tap_origin - (a.taps - 1);
}

template <class F, class T>
struct WinogradRun {
  static constexpr int N = F::size, M = F::outputs, L = kLanes<float>, W = kTileWidth<float>;
  static constexpr int kFlush = winograd::kChunkChannels;
  static_assert(kFlush % L == 0);
  static constexpr int kMostTiles = winograd::segment_tiles(F::outputs, F::taps);

  const ConvPlan& plan;
  const ConvProblem& p;
  const ConvOperands& operands;
  const Gather g;
  const float* filter;  // null: blocks transform it for themselves
  const TileGrid grid{div_up(g.rows.out, M), div_up(g.cols.out, M)};
  const int64_t tiles = p.n * grid.rows * grid.cols;
  const int64_t block_count = plan.detail[winograd::kBlocks];
  const int64_t block_tiles = plan.detail[winograd::kBlockTiles];
  const int64_t splits = plan.detail[winograd::kSplits];
  const int64_t input_stride = plan.detail[winograd::kInputStride];
  const int64_t sum_stride = plan.detail[winograd::kSumStride];
  const int64_t filter_blocks = div_up(g.filters, W);
  const int pooled = p.max_pool ? 2 : 1;  // outputs along each side that become one

  TileSource<T> source(int64_t group) const {
    const bool forward = p.pass == Pass::forward;
    TileSource<T> s{};
    s.p = static_cast<const T*>(forward ? operands.x : operands.y) + group * g.group_src * g.src[1];
    s.strides = g.src;
    if (!forward && p.has_aux()) s.mask = static_cast<const T*>(operands.aux) + group * g.group_src * g.mask[1];
    s.mask_strides = g.mask;
    s.gradient = OutputGradient<float>(p);
    s.height = g.rows.src;
    s.width = g.cols.src;
    s.row_low = lowest_displacement(g.rows);
    s.col_low = lowest_displacement(g.cols);
    s.channels = g.channels;
    return s;
  }

  TileTarget<T> target(int64_t group) const {
    const bool forward = p.pass == Pass::forward;
    TileTarget<T> t{};
    t.p = static_cast<T*>(forward ? operands.y : operands.x) + group * g.group_dst * g.dst[1];
    t.strides = g.dst;
    if (forward && p.residual)
      t.residual = static_cast<const T*>(operands.aux) + group * g.group_dst * g.residual[1];
    t.residual_strides = g.residual;
    if (p.scale) t.scale = static_cast<const float*>(operands.scale) + group * g.filters;
    if (p.bias) t.bias = static_cast<const T*>(operands.bias) + group * g.filters;
    t.activation = Activated<float>(p);
    t.height = g.rows.out / pooled;
    t.width = g.cols.out / pooled;
    t.filters = g.filters;
    return t;
  }

  int64_t block_start(int64_t block) const { return tiles * block / block_count; }

  // A part of a block: the tiles of one register tile.
  struct Part {
    int64_t first, rows;
    float* sums(float* all) const { return all + first * W; }
  };
  Part part_at(int64_t part, int64_t parts, int64_t count) const {
    const int64_t first = tile_start(part, parts, count);
    return {first, tile_start(part + 1, parts, count) - first};
  }
  // The transformed input, for every frequency: groups of as many channels as a product goes through (all of them with a
  // kept filter), of each group the parts one after the other, of each part [channels / L][rows][L]. So a product reads
  // one run of memory, and the products of a frequency the next ones.
  const int64_t depth = div_up(g.channels, L) * L, group_depth = filter ? depth : smaller(kFlush, depth);
  int64_t group_at(int64_t channel, int64_t count) const { return channel / group_depth * group_depth * count; }
  int64_t depth_at(int64_t channel) const { return smaller(group_depth, depth - channel / group_depth * group_depth); }
  struct Place {
    int64_t first, row, rows;  // of a tile: its part's first tile, its row in the part, the part's rows
  };
  static_assert(sizeof(Place) == winograd::kPlaceBytes);
  void place_tiles(int64_t count, Place* places) const {
    for (int64_t i = 0, parts = tile_parts(count); i < parts; ++i) {
      const Part part = part_at(i, parts, count);
      for (int64_t row = 0; row < part.rows; ++row) places[part.first + row] = {part.first, row, part.rows};
    }
  }
  struct Panels {
    float* v;  // the group's
    int64_t frequency;
    const Place* places;
    int64_t depth, channel;  // of the group, and in it
    float* at(int64_t t) const {
      return v + places[t].first * depth + channel * places[t].rows + places[t].row * L;
    }
  };

  // Sums of one filter block, its filters transformed already. The next frequency's filters, which follow in memory, are
  // prefetched meanwhile, and with what room is left the lines of `reads`.
  void multiply_kept(int64_t filter_block, int64_t count, const float* input, float* sums, LineWalk& reads,
                     LineWalk& writes) const {
    const int64_t parts = tile_parts(count), lines = larger(1, g.channels / kPrefetchEvery), panel = g.channels * W;
    const bool ahead = plan.detail[winograd::kPrefetch] & winograd::kPrefetchFilters;
    const float* w = filter + filter_block * N * N * panel;
    for (int f = 0; f < N * N; ++f, w += panel) {
      RowLines next_filters{reinterpret_cast<const char*>(w + panel), 0, ahead ? 1 : 0, panel * 4 / kLineBytes};
      for (int64_t i = 0; i < parts; ++i) {
        const Part part = part_at(i, parts, count);
        const LineRun run = next_filters.along(kReads * lines);
        multiply(part.rows, input + f * input_stride + part.first * depth, part.rows * L, w, g.channels,
                 plan.detail[winograd::kChunk], part.sums(sums) + f * sum_stride,
                 run.count > 0 ? run : reads.next(kReads * lines), writes.next(kWrites * lines));
      }
    }
  }

  // The same, transforming them here, kFlush channels and one row of frequencies at a time: `chunk` holds their
  // taps and the transformed row, 37 and 25 KB for 3x3 by F(4x4) with AVX-512, where all frequencies would take 150.
  void multiply_fresh(int64_t group, int64_t k0, int64_t count, const float* input, float* sums, float* chunk,
                      LineWalk& writes) const {
    constexpr int64_t kStride = winograd::chunk_stride(W), kLines = kFlush / kPrefetchEvery;
    float* transformed = chunk + winograd::chunk_floats(F::taps, W);
    const FilterSource<T> taps(p, g, operands.weight, group);
    const int64_t parts = tile_parts(count);
    for (int64_t c0 = 0; c0 < g.channels; c0 += kFlush) {
      const int64_t channels = smaller(kFlush, g.channels - c0);
      stage_taps<F::taps>(taps, k0, c0, channels, kStride, chunk);
      TapLines<T> reads(taps, k0, c0, kFlush);
      const int64_t early = div_up(reads.runs(), N * N * parts) - 1;  // runs before a product, beside the one within
      transform_rows_of_taps<F>(chunk, channels, kStride, transformed, kStride, [&](int row) {
        for (int s = 0, f = row * N; s < N; ++s, ++f)
          for (int64_t i = 0; i < parts; ++i) {
            const Part part = part_at(i, parts, count);
            for (int64_t run = 0; run < early; ++run) prefetch(reads.next());
            multiply_chunk(part.rows, input + f * input_stride + group_at(c0, count) + part.first * depth_at(c0), part.rows * L,
                           transformed + s * kStride, channels, part.sums(sums) + f * sum_stride, c0 > 0, reads.next(),
                           writes.next(kWrites * kLines));
          }
      });
    }
  }

  // Filter blocks [kb0, kb1) for one block of tiles.
  void block(Arena own, int64_t group, int64_t block, int64_t kb0, int64_t kb1, int64_t next_block) const {
    float* input = own.take<float>(N * N * input_stride);
    float* sums = own.take<float>(N * N * sum_stride);
    float* staged = own.take<float>(winograd::segment_floats(N, L));
    float* columns = own.take<float>(winograd::segment_floats(N, L));
    float* chunk = filter ? nullptr : own.take<float>(winograd::chunk_floats(F::taps, W) + N * winograd::chunk_stride(W));
    const TileSource<T> from = source(group);
    const TileTarget<T> to = target(group);
    Place* places = own.take<Place>(block_tiles);
    const int64_t begin = block_start(block), end = block_start(block + 1), count = end - begin;
    place_tiles(count, places);

    for (int64_t c = 0; c < g.channels; c += L)
      for (int64_t tile = begin; tile < end;) {
        const Segment segment = segment_at(grid, tile, end, kMostTiles);
        transform_tiles<typename F::B, M>(from, segment, c, staged, columns,
                                          Panels{input + group_at(c, count), input_stride, places + (tile - begin), depth_at(c),
                                                 c % group_depth});
        tile += segment.count;
      }

    TiledTensor in = tiled(from.p, from.strides), out = tiled(to.p, to.strides);
    in.height = from.height, in.width = from.width;
    in.row_low = from.row_low, in.col_low = from.col_low;
    in.step = M, in.extent = N;
    out.height = to.height, out.width = to.width;
    out.step = out.extent = M / pooled;
    const bool prefetch = plan.detail[winograd::kPrefetch] & winograd::kPrefetchPixels, more = prefetch && next_block < block_count;
    LineWalk reads(in, grid, more ? block_start(next_block) : 0, more ? block_start(next_block + 1) : 0, 0, g.channels);

    for (int64_t kb = kb0; kb < kb1; ++kb) {
      const int64_t k0 = kb * W, filters = smaller(W, g.filters - k0);
      LineWalk writes(out, grid, prefetch ? begin : end, end, k0, filters);
      if (filter)
        multiply_kept(group * filter_blocks + kb, count, input, sums, reads, writes);
      else
        multiply_fresh(group, k0, count, input, sums, chunk, writes);
      for (int64_t tile = begin; tile < end;) {
        const Segment segment = segment_at(grid, tile, end, kMostTiles);
        for (int64_t k = 0; k < filters; k += L)
          if (pooled == 2)
            transform_output<F, M / 2>(to, segment, k0 + k, sums + (tile - begin) * W + k, sum_stride, W, staged);
          else
            transform_output<F, M>(to, segment, k0 + k, sums + (tile - begin) * W + k, sum_stride, W, staged);
        tile += segment.count;
      }
    }
  }
};

template <class F, class T>
void run_form(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  Threads threads = exec.threads;
  threads.count = static_cast<int>(smaller(threads.count, plan.threads));
  Arena arena(workspace);
  const float* filter = static_cast<const float*>(exec.prepacked);
  if (!filter && plan.prepack_bytes > 0) {
    float* own_filter = arena.take<float>(plan.detail[winograd::kFilterValues]);
    winograd_filter(plan, operands.weight, own_filter, threads);
    filter = own_filter;
  }
  const ConvProblem& p = plan.problem;
  const WinogradRun<F, T> run{plan, p, operands, gather_of(p, 0), filter};
  parallel_tasks(threads, p.groups * run.block_count * run.splits, [&](int thread, int64_t task) {
    const int64_t split = task % run.splits, block = task / run.splits % run.block_count;
    run.block(arena.slice(thread, plan.detail[winograd::kThreadBytes]), task / run.splits / run.block_count, block,
              run.filter_blocks * split / run.splits, run.filter_blocks * (split + 1) / run.splits,
              block + div_up(threads.count, run.splits));
  });
}

template <class T>
void run(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  const int64_t m = plan.detail[winograd::kOutputs];
  if (plan.problem.r == 5) {
    if (m == 4)
      run_form<Form<4, 5>, T>(plan, operands, workspace, exec);
    else
      run_form<Form<2, 5>, T>(plan, operands, workspace, exec);
  } else if (m == 6) {
    run_form<Form<6, 3>, T>(plan, operands, workspace, exec);
  } else if (m == 4) {
    run_form<Form<4, 3>, T>(plan, operands, workspace, exec);
  } else {
    run_form<Form<2, 3>, T>(plan, operands, workspace, exec);
  }
}

}  // namespace

Status winograd_gather(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  switch (plan.problem.dtype) {
    case DType::f16: run<f16>(plan, operands, workspace, exec); break;
    case DType::bf16: run<bf16>(plan, operands, workspace, exec); break;
    default: run<float>(plan, operands, workspace, exec);
  }
  return {};
}

}  // namespace fastconv::cpu::FASTCONV_ISA
