// The filter's gradient by Winograd's algorithm: F(r x r, m x m), where tiles of m x m grad_outputs play the filter and
// the r x r taps are the outputs. For every frequency a matrix product sums over all tiles,
//
//     sums[f][c][k] = sum over tiles of X[f][tile][c] * Y[f][tile][k],      dw = A^T sums A at the very end.
//
// A task owns some channels and filters (64 x 64: 590 KB of sums at 36 frequencies, in the second-level cache) and goes
// through the tiles block by block: transform x and grad_output, multiply, add. A block's sum is finished before it is
// added, so that rounding errors grow with the number of blocks, not of tiles.
#include "../arena.h"
#include "../winograd.h"
#include "filter_sums.h"
#include "winograd_input.h"
#include "panel_multiply.h"
#include "winograd_output.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

template <int Tile, int Taps, class T>
struct WinogradWeight {
  using X = Form<Tile, Taps>;  // its B^T transforms x
  using Y = Form<Taps, Tile>;  // its G transforms grad_output, its A^T the sums
  static constexpr int N = X::size, L = kLanes<float>, W = kTileWidth<float>;
  static constexpr int kMostTiles = winograd::segment_tiles(Tile, Taps);

  const ConvPlan& plan;
  const ConvProblem& p;
  const ConvOperands& operands;
  float* sums;       // [split][group][filter block][channel][tap][W]
  float* bias_sums;  // [split][group][filter block][W]
  const TileGrid grid{div_up(p.p(), Tile), div_up(p.q(), Tile)};
  const int64_t tiles = p.n * grid.rows * grid.cols;
  const int64_t channels = p.group_c(), filters = p.group_k(), blocks = div_up(filters, W);
  const int64_t task_channels = plan.detail[winograd::kTaskChannels];
  const int64_t task_filters = plan.detail[winograd::kTaskFilters];
  const int64_t splits = plan.detail[winograd::kTileSplits];
  const int64_t x_stride = plan.detail[winograd::kXStride], y_stride = plan.detail[winograd::kYStride];
  const int64_t product_stride = plan.detail[winograd::kProductStride];
  const int64_t x_step = div_up(task_channels, L) * L, y_step = task_filters * W;

  struct Part {
    int64_t group, channel0, channel1, block0, block1;
  };

  TileSource<T> source_x(const Part& part) const {
    return {static_cast<const T*>(operands.x) + (part.group * channels + part.channel0) * p.x_strides[1],
            p.x_strides, nullptr, {}, p.h, p.w, -p.pad_top, -p.pad_left, part.channel1 - part.channel0};
  }
  TileSource<T> source_y(const Part& part) const {
    const int64_t first = part.group * filters + part.block0 * W;
    return {static_cast<const T*>(operands.y) + first * p.y_strides[1],
            p.y_strides,
            p.has_aux() ? static_cast<const T*>(operands.aux) + first * p.aux_strides[1] : nullptr,
            p.aux_strides,
            p.p(),
            p.q(),
            0,
            0,
            smaller(filters, part.block1 * W) - part.block0 * W,
            OutputGradient<float>(p)};
  }
  static TiledTensor tiled_source(const TileSource<T>& s, int64_t extent) {
    TiledTensor t = tiled(s.p, s.strides);
    t.height = s.height, t.width = s.width;
    t.row_low = s.row_low, t.col_low = s.col_low;
    t.step = Tile, t.extent = extent;
    return t;
  }

  void task(Arena own, const Part& part, int64_t split) const {
    float* xs = own.take<float>(N * N * x_stride);
    float* ys = own.take<float>(N * N * y_stride);
    float* products = own.take<float>(N * N * product_stride);
    float* staged = own.take<float>(winograd::segment_floats(N, L));
    float* columns = own.take<float>(winograd::segment_floats(N, L));
    const TileSource<T> x = source_x(part), y = source_y(part);
    const TiledTensor x_lines = tiled_source(x, N), y_lines = tiled_source(y, Tile);
    const int64_t first = tiles * split / splits, total = tiles * (split + 1) / splits - first;
    const int64_t rounds = larger(1, div_up(total, plan.detail[winograd::kTaskTiles]));
    const auto start = [&](int64_t round) { return first + total * smaller(round, rounds) / rounds; };
    const int64_t parts = tile_parts(x.channels), kbs = part.block1 - part.block0;
    const bool wants_bias = p.bias && part.channel0 == 0;
    if (div_up(y.channels, L) * L < kbs * W) zero(ys, N * N * y_stride);

    for (int64_t round = 0; round < rounds; ++round) {
      const int64_t begin = start(round), end = start(round + 1), next_end = start(round + 2);
      for (int64_t c = 0; c < x.channels; c += L)
        for_segments(begin, end, [&](const Segment& s, int64_t tile) {
          transform_tiles<typename X::B, Tile>(x, s, c, staged, columns,
                                               TransformedRows{xs + tile * x_step + c, x_stride, x_step});
        });
      for (int64_t k = 0; k < y.channels; k += L) {
        PixelSums pixels{};
        for_segments(begin, end, [&](const Segment& s, int64_t tile) {
          transform_tiles<typename Y::G, Tile>(y, s, k, staged, columns,
                                               TransformedRows{ys + tile * y_step + k, y_stride, y_step},
                                               wants_bias ? &pixels : nullptr);
        });
        if (wants_bias) add_bias(pixels, bias_sums + ((split * p.groups + part.group) * blocks + part.block0) * W + k);
      }
      LineWalk reads_x(x_lines, grid, end, next_end, 0, x.channels);
      LineWalk reads_y(y_lines, grid, end, next_end, 0, y.channels);
      for (int f = 0; f < N * N; ++f)
        for (int64_t kb = 0; kb < kbs; ++kb)
          for (int64_t i = 0; i < parts; ++i) {
            const int64_t c = tile_start(i, parts, x.channels), c_end = tile_start(i + 1, parts, x.channels);
            float* acc = products + f * product_stride + (kb * x.channels + c) * W;
            // The sums that come next: at least as many lines as tiles are wanted for each of 2 x 14 vectors.
            const LineRun sums_next{reinterpret_cast<const char*>(acc + (c_end - c) * W), kLineBytes, end - begin};
            const LineRun next = (f + kb + i) % 2 ? reads_x.next(end - begin) : reads_y.next(end - begin);
            outer(c_end - c, xs + f * x_stride + c, x_step, ys + f * y_stride + kb * W, y_step, end - begin, acc,
                  round > 0, next, sums_next);
          }
    }
    for (int64_t kb = 0; kb < kbs; ++kb)
      for (int64_t c = 0; c < x.channels; ++c) {
        const int64_t block = (split * p.groups + part.group) * blocks + part.block0 + kb;
        float* to = sums + (block * channels + part.channel0 + c) * Taps * Taps * W;
        for (int v = 0; v < kTileVectors; ++v) {
          Lanes taps[Taps][Taps];
          inverse<Y>(products + (kb * x.channels + c) * W + v * L, product_stride, taps);
#pragma GCC unroll 8
          for (int r = 0; r < Taps; ++r)
#pragma GCC unroll 8
            for (int s = 0; s < Taps; ++s) store(to + (r * Taps + s) * W + v * L, taps[r][s]);
        }
      }
  }

  // Calls f(segment, its first tile's place in the block).
  template <class Body>
  void for_segments(int64_t begin, int64_t end, Body&& body) const {
    for (int64_t tile = begin; tile < end;) {
      const Segment segment = segment_at(grid, tile, end, kMostTiles);
      body(segment, tile - begin);
      tile += segment.count;
    }
  }

  static void add_bias(const PixelSums& pixels, float* to) {
    for (int l = 0; l < L; ++l) {
      float sum = pixels.channels[l];
      for (int i = 0; i < L; ++i) sum += pixels.pixels[l][i];
      to[l] += sum;
    }
  }

  // Adds the splits in their order and turns one filter block's sums into the weight tensor's layout.
  void finish(int64_t group, int64_t block) const {
    const int64_t stride = plan.detail[winograd::kSumValues], per_block = channels * Taps * Taps * W;
    const int64_t index = group * blocks + block, count = smaller(W, filters - block * W);
    float* own = sums + index * per_block;
    for (int64_t split = 1; split < splits; ++split)
      for (int64_t i = 0; i < per_block; ++i) own[i] += own[split * stride + i];
    const int64_t first = group * filters + block * W;
    write_filter_sums(p, own, count, static_cast<T*>(operands.weight) + first * p.weight_strides[0]);
    if (!p.bias) return;
    T* grad_bias = static_cast<T*>(operands.grad_bias) + first;
    for (int64_t l = 0; l < count; ++l) {
      float total = 0;
      for (int64_t split = 0; split < splits; ++split)
        total += bias_sums[(split * p.groups * blocks + index) * W + l];
      grad_bias[l] = narrow<T>(total);
    }
  }
};

template <int Tile, int Taps, class T>
void run_form(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  const ConvProblem& p = plan.problem;
  Threads threads = exec.threads;
  threads.count = static_cast<int>(smaller(threads.count, plan.threads));
  const int64_t splits = plan.detail[winograd::kTileSplits];
  const int64_t bias_values = splits * p.groups * div_up(p.group_k(), kTileWidth<float>) * kTileWidth<float>;
  Arena arena(workspace);
  float* sums = arena.take<float>(splits * plan.detail[winograd::kSumValues]);
  float* bias_sums = arena.take<float>(bias_values);
  zero(bias_sums, bias_values);
  const WinogradWeight<Tile, Taps, T> run{plan, p, operands, sums, bias_sums};
  const int64_t channel_tasks = div_up(run.channels, run.task_channels);
  const int64_t filter_tasks = div_up(run.blocks, run.task_filters);
  parallel_tasks(threads, splits * p.groups * channel_tasks * filter_tasks, [&](int thread, int64_t task) {
    const int64_t k = task % filter_tasks, c = task / filter_tasks % channel_tasks;
    const int64_t group = task / filter_tasks / channel_tasks % p.groups;
    run.task(arena.slice(thread, plan.detail[winograd::kWeightThreadBytes]),
             {group, c * run.task_channels, smaller((c + 1) * run.task_channels, run.channels), k * run.task_filters,
              smaller((k + 1) * run.task_filters, run.blocks)},
             task / filter_tasks / channel_tasks / p.groups);
  });
  parallel_tasks(threads, p.groups * run.blocks,
                 [&](int, int64_t task) { run.finish(task / run.blocks, task % run.blocks); });
}

template <class T>
void run(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  if (plan.problem.r == 5)
    run_form<2, 5, T>(plan, operands, workspace, exec);
  else if (plan.detail[winograd::kWeightOutputs] == 4)
    run_form<4, 3, T>(plan, operands, workspace, exec);
  else
    run_form<2, 3, T>(plan, operands, workspace, exec);
}

}  // namespace

Status winograd_weight(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  switch (plan.problem.dtype) {
    case DType::f16: run<f16>(plan, operands, workspace, exec); break;
    case DType::bf16: run<bf16>(plan, operands, workspace, exec); break;
    default: run<float>(plan, operands, workspace, exec);
  }
  return {};
}

}  // namespace fastconv::cpu::FASTCONV_ISA
