// The filter's gradient, directly: dw[k][c][r][s] = sum over images and output pixels of dy[k][p][q] * x[c][h][w].
//
// Per task (some channels, some filter blocks, some bands of output rows): pack the band of x to [row][column][channel]
// and of dy (masked by the activation's output while loading) to [row][pixel][filter]; then for each tap and tile of
// channels run the register tile over all pixels of the band. A band's sum is finished before it is added to the running
// sums, so rounding errors grow with the number of bands, not of pixels. grad_bias falls out of packing dy.
// What -O3 does and -O2 does not: the inner loops here have strides and masks that the loops around them fix. Without it
// the filter's gradient of 1x1 layers in NCHW takes 1.2 times as long.
#pragma GCC optimize("unswitch-loops", "peel-loops", "version-loops-for-strides")

#include "../../core/div_up.h"
#include "../arena.h"
#include "../direct.h"
#include "filter_sums.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

template <class T>
struct WeightRun {
  using A = Compute<T>;
  static constexpr int W = kTileWidth<A>;

  const ConvPlan& plan;
  const ConvProblem& p;
  const ConvOperands& operands;
  A* sums;       // [split][group][filter block][channel][tap][W]
  A* bias_sums;  // [split][group][filter block][W]
  const int64_t blocks = div_up(p.group_k(), W);
  const int64_t taps = p.r * p.s, rows = p.p(), cols = p.q(), channels = p.group_c();
  const int64_t merged = merged_columns(p, kTileHeight);
  const int64_t packed_columns = merged ? merged : p.w;
  const int64_t first_column = merged ? -p.pad_left : 0;  // input column of packed column 0

  struct Scratch {
    A* x;
    A* y;
    int64_t* slot;
    int64_t* x_offset;
    int64_t* y_offset;
  };
  struct Part {
    int64_t group, channel0, channel1, block0, block1;
  };

  // Packs input rows that the output rows [row0, row1) touch; slot[row - low] is a row's place. Returns low.
  int64_t pack_input(const Scratch& scratch, const Part& part, int64_t n, int64_t row0, int64_t row1) const {
    const int64_t low = row0 * p.stride_h - p.pad_top;
    const int64_t high = (row1 - 1) * p.stride_h - p.pad_top + (p.r - 1) * p.dilation_h;
    for (int64_t i = low; i <= high; ++i) scratch.slot[i - low] = -1;
    for (int64_t i = row0; i < row1; ++i)
      for (int64_t r = 0; r < p.r; ++r) {
        const int64_t row = i * p.stride_h - p.pad_top + r * p.dilation_h;
        if (row >= 0 && row < p.h) scratch.slot[row - low] = 0;
      }
    const int64_t count = part.channel1 - part.channel0;
    const T* x = static_cast<const T*>(operands.x) + n * p.x_strides[0] +
                 (part.group * channels + part.channel0) * p.x_strides[1];
    int64_t slots = 0;
    for (int64_t row = low; row <= high; ++row) {
      if (scratch.slot[row - low] < 0) continue;
      scratch.slot[row - low] = slots;
      A* dst = scratch.x + slots++ * packed_columns * count;
      const int64_t begin = smaller(packed_columns, -first_column);
      const int64_t end = larger(begin, smaller(packed_columns, p.w - first_column));
      zero(dst, begin * count);
      zero(dst + end * count, (packed_columns - end) * count);
      pack(Reader<T>{x + row * p.x_strides[2] + (begin + first_column) * p.x_strides[3], p.x_strides[1], p.x_strides[3]},
           count, end - begin, [&](int64_t column) { return dst + (begin + column) * count; });
    }
    return low;
  }

  // Packs dy rows of one filter block to [row][pixel][W] and adds them to the bias' sums if asked.
  void pack_output(A* dst, int64_t n, int64_t group, int64_t block, int64_t row0, int64_t row1, A* bias) const {
    const int64_t first = group * p.group_k() + block * W, filters = smaller(W, p.group_k() - block * W);
    const T* y = static_cast<const T*>(operands.y) + n * p.y_strides[0] + first * p.y_strides[1];
    const T* mask = p.has_aux() ? static_cast<const T*>(operands.aux) + n * p.aux_strides[0] + first * p.aux_strides[1]
                                : nullptr;
    if (filters < W) zero(dst, (row1 - row0) * cols * W);
    for (int64_t row = row0; row < row1; ++row) {
      A* packed = dst + (row - row0) * cols * W;
      Reader<T> reader{y + row * p.y_strides[2], p.y_strides[1], p.y_strides[3]};
      if (mask) {
        reader.mask = mask + row * p.aux_strides[2];
        reader.mask_si = p.aux_strides[1];
        reader.mask_sj = p.aux_strides[3];
        reader.gradient = OutputGradient<A>(p);
      }
      pack(reader, filters, cols, [&](int64_t q) { return packed + q * W; });
      if (bias) {  // a row's sum first: fewer roundings against a large running sum
        Vec<A> sum[kTileVectors] = {};
        for (int64_t q = 0; q < cols; ++q)
          for (int v = 0; v < kTileVectors; ++v) sum[v] += load(packed + q * W + v * kLanes<A>);
        for (int v = 0; v < kTileVectors; ++v)
          store(bias + v * kLanes<A>, load(bias + v * kLanes<A>) + sum[v]);
      }
    }
  }

  void band(const Scratch& scratch, const Part& part, int64_t split, int64_t n, int64_t row0, int64_t row1) const {
    const int64_t low = pack_input(scratch, part, n, row0, row1);
    const int64_t count = part.channel1 - part.channel0;
    for (int64_t block = part.block0; block < part.block1; ++block) {
      const int64_t filter_block = (split * p.groups + part.group) * blocks + block;
      pack_output(scratch.y, n, part.group, block, row0, row1,
                  p.bias && part.channel0 == 0 ? bias_sums + filter_block * W : nullptr);
      A* into = sums + (filter_block * channels + part.channel0) * taps * W;
      if (merged) {
        for (int64_t r = 0; r < p.r; ++r)
          multiply(scratch, r, 0, 0, cols, low, row0, row1, p.s * count, count, [&](int64_t m) {
            return into + (m % count * taps + r * p.s + m / count) * W;
          });
        continue;
      }
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t column = tap % p.s * p.dilation_w - p.pad_left;  // of output pixel 0
        const int64_t q0 = column >= 0 ? 0 : div_up(-column, p.stride_w);
        const int64_t q1 = column < p.w ? smaller(cols, div_up(p.w - column, p.stride_w)) : 0;
        multiply(scratch, tap / p.s, column, q0, q1, low, row0, row1, count, count,
                 [&](int64_t m) { return into + (m * taps + tap) * W; });
      }
    }
  }

  // Adds to sum_of(m) the sum over the band's pixels [q0, q1) of x value m, counted from the packed column that output
  // pixel 0 meets, times dy; `values` of them.
  template <class SumOf>
  void multiply(const Scratch& scratch, int64_t r, int64_t column, int64_t q0, int64_t q1, int64_t low, int64_t row0,
                int64_t row1, int64_t values, int64_t count, SumOf&& sum_of) const {
    if (q1 <= q0) return;
    TileWalk walk{0, scratch.x_offset, scratch.y_offset, q1 - q0, p.stride_w * count, W};
    for (int64_t row = row0; row < row1; ++row) {
      const int64_t source = row * p.stride_h - p.pad_top + r * p.dilation_h;
      if (source < 0 || source >= p.h) continue;
      scratch.x_offset[walk.outer] =
          (scratch.slot[source - low] * packed_columns + q0 * p.stride_w + column) * count;
      scratch.y_offset[walk.outer++] = ((row - row0) * cols + q0) * W;
    }
    if (walk.outer == 0) return;
    alignas(64) A tile_sums[kTileHeight * W];
    const int64_t parts = tile_parts(values);
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t begin = tile_start(i, parts, values), end = tile_start(i + 1, parts, values);
      tile(end - begin, scratch.x + begin, scratch.y, walk, tile_sums, false);
      for (int64_t m = begin; m < end; ++m) {
        A* sum = sum_of(m);
        for (int l = 0; l < W; ++l) sum[l] += tile_sums[(m - begin) * W + l];
      }
    }
  }

  // Adds the splits in their order and turns one filter block's sums into the weight tensor's layout.
  void finish(int64_t group, int64_t block) const {
    const int64_t splits = plan.detail[kSplits], stride = plan.detail[kSumValues];
    const int64_t index = group * blocks + block, per_block = taps * channels * W;
    A* own = sums + index * per_block;
    for (int64_t split = 1; split < splits; ++split)
      for (int64_t i = 0; i < per_block; ++i) own[i] += own[split * stride + i];
    const int64_t filters = smaller(W, p.group_k() - block * W);
    const int64_t first = group * p.group_k() + block * W;
    write_filter_sums(p, own, filters, static_cast<T*>(operands.weight) + first * p.weight_strides[0]);
    if (!p.bias) return;
    const int64_t bias_stride = p.groups * blocks * W;
    T* grad_bias = static_cast<T*>(operands.grad_bias) + first;
    for (int64_t l = 0; l < filters; ++l) {
      A total = bias_sums[index * W + l];
      for (int64_t split = 1; split < splits; ++split) total += bias_sums[split * bias_stride + index * W + l];
      grad_bias[l] = narrow<T>(total);
    }
  }
};

template <class T>
void run(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  using A = Compute<T>;
  const ConvProblem& p = plan.problem;
  Threads threads = exec.threads;
  threads.count = static_cast<int>(smaller(threads.count, plan.threads));
  const int64_t splits = plan.detail[kSplits], sum_values = plan.detail[kSumValues];
  Arena arena(workspace);
  const int64_t blocks = div_up(p.group_k(), kTileWidth<A>);
  const int64_t bias_values = p.groups * blocks * kTileWidth<A>;
  A* sums = arena.take<A>(splits * sum_values);
  A* bias_sums = arena.take<A>(splits * bias_values);
  const WeightRun<T> weight{plan, p, operands, sums, bias_sums};

  const int64_t per_block = sum_values / (p.groups * blocks);
  parallel_tasks(threads, splits * p.groups * blocks,
                 [&](int, int64_t task) { zero(sums + task * per_block, per_block); });
  zero(bias_sums, splits * bias_values);

  const int64_t channel_chunk = plan.detail[kChannelChunk], filter_chunk = plan.detail[kFilterChunk];
  const int64_t channel_chunks = div_up(weight.channels, channel_chunk), filter_chunks = div_up(blocks, filter_chunk);
  const int64_t band_rows = plan.detail[kWeightBandRows], bands = div_up(weight.rows, band_rows);
  parallel_tasks(threads, splits * p.groups * channel_chunks * filter_chunks, [&](int thread, int64_t task) {
    const int64_t filters = task % filter_chunks, channels = task / filter_chunks % channel_chunks;
    const int64_t group = task / filter_chunks / channel_chunks % p.groups;
    const int64_t split = task / filter_chunks / channel_chunks / p.groups;
    Arena own = arena.slice(thread, plan.detail[kWeightThreadBytes]);
    typename WeightRun<T>::Scratch scratch;
    scratch.x = own.take<A>(plan.detail[kBandXValues]);
    scratch.y = own.take<A>(plan.detail[kBandYValues]);
    scratch.slot = own.take<int64_t>((band_rows - 1) * p.stride_h + (p.r - 1) * p.dilation_h + 1);
    scratch.x_offset = own.take<int64_t>(band_rows);
    scratch.y_offset = own.take<int64_t>(band_rows);
    const typename WeightRun<T>::Part part{
        group, channels * channel_chunk, smaller((channels + 1) * channel_chunk, weight.channels),
        filters * filter_chunk, smaller((filters + 1) * filter_chunk, blocks)};
    const int64_t all = p.n * bands;
    for (int64_t i = all * split / splits; i < all * (split + 1) / splits; ++i) {
      const int64_t row = i % bands * band_rows;
      weight.band(scratch, part, split, i / bands, row, smaller(row + band_rows, weight.rows));
    }
  });
  parallel_tasks(threads, p.groups * blocks,
                 [&](int, int64_t task) { weight.finish(task / blocks, task % blocks); });
}

}  // namespace

Status direct_weight(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  with_dtype(plan.problem.dtype, [&](auto v) { run<decltype(v)>(plan, operands, workspace, exec); });
  return {};
}

}  // namespace fastconv::cpu::FASTCONV_ISA
