// The filter's gradient as a matrix product: dw = dy x transposed columns, summed over the pixels of all images.
//
// Per task (some rows of the column matrix, some filters, perhaps a share of the pixels): for a block of pixels copy
// their windows to [pixel][tap and channel] and dy, masked while loading, to [pixel][filter], then run the register
// tile with pixels as the summed dimension. A block's sum is finished in registers before it joins the running sums, so
// rounding errors grow with the number of blocks, not of pixels. Arithmetic intensity and bounds are those of
// im2col.cpp: a window's value is used once per filter of the task, so copying costs 1 part in filters / 32.
#include "../im2col.h"

#include "../arena.h"
#include "filter_sums.h"
#include "unfold.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

template <class T>
struct GradWeight {
  using A = Compute<T>;
  static constexpr int W = kTileWidth<A>;

  const ConvProblem p;
  const Im2colBlocks b;
  const ConvOperands& operands;
  A* sums;       // [split][group][filter block][channel][tap][W]
  A* bias_sums;  // [split][group][filter block][W]
  const int64_t channels = p.group_c(), taps = p.r * p.s, depth = taps * channels, blocks = div_up(p.group_k(), W);
  const int64_t width = p.q(), image = p.p() * p.q();
  const bool rows_follow = p.p() == 1 || p.q() == 1 ||
                           (p.y_strides[2] == p.q() * p.y_strides[3] &&
                            (!p.has_aux() || p.aux_strides[2] == p.q() * p.aux_strides[3]));

  // columns[m - m0][k - k0], the transpose of the forward's.
  void im2col(int64_t group, int64_t k0, int64_t k1, int64_t m0, int64_t m1, A* columns) const {
    const T* x = static_cast<const T*>(operands.x) + group * channels * p.x_strides[1];
    const int64_t pitch = k1 - k0;
    for_each_tap(channels, k0, k1, [&](int64_t tap, int64_t channel, int64_t count, int64_t place) {
      for_each_run(p, tap, m0, m1, [&](const PixelRun& run) {
        A* to = columns + run.first * pitch + place;
        for (int64_t m = 0; m < run.zeros; ++m) zero(to + m * pitch, count);
        for (int64_t m = run.zeros + run.inside; m < run.count; ++m) zero(to + m * pitch, count);
        const T* from = x + run.source + channel * p.x_strides[1];
        if (run.inside > 0)
          pack(Reader<T>{from, p.x_strides[1], p.stride_w * p.x_strides[3]}, count, run.inside,
               [&](int64_t m) { return to + (run.zeros + m) * pitch; });
      });
    });
  }

  // dy[m - m0][W] of one filter block, masked; its sum joins `bias` if that is wanted.
  void pack_dy(int64_t group, int64_t block, int64_t m0, int64_t m1, A* packed, A* bias) const {
    const Strides4 &ys = p.y_strides, &ms = p.aux_strides;
    const int64_t first = group * p.group_k() + block * W, filters = smaller(W, p.group_k() - block * W);
    if (filters < W) zero(packed, (m1 - m0) * W);
    for (int64_t m = m0; m < m1;) {
      const int64_t n = m / image, i = m % image / width, j = m % width;
      const int64_t count = smaller(m1 - m, rows_follow ? image - m % image : width - j);
      Reader<T> reader{static_cast<const T*>(operands.y) + n * ys[0] + first * ys[1] + i * ys[2] + j * ys[3], ys[1],
                       width == 1 ? ys[2] : ys[3]};
      if (p.has_aux()) {
        reader.mask = static_cast<const T*>(operands.aux) + n * ms[0] + first * ms[1] + i * ms[2] + j * ms[3];
        reader.mask_si = ms[1];
        reader.mask_sj = width == 1 ? ms[2] : ms[3];
        reader.gradient = OutputGradient<A>(p);
      }
      A* to = packed + (m - m0) * W;
      pack(reader, filters, count, [&](int64_t pixel) { return to + pixel * W; });
      m += count;
    }
    if (!bias) return;
    Vec<A> sum[kTileVectors] = {};
    for (int64_t m = 0; m < m1 - m0; ++m)
      for (int v = 0; v < kTileVectors; ++v) sum[v] += load(packed + m * W + v * kLanes<A>);
    for (int v = 0; v < kTileVectors; ++v) store(bias + v * kLanes<A>, load(bias + v * kLanes<A>) + sum[v]);
  }

  struct Part {
    int64_t split, group, k0, k1, block0, block1;
  };

  void add_pixels(Arena own, const Part& part, int64_t m0, int64_t m1) const {
    A* columns = own.take<A>(b.column_values);
    A* dy = own.take<A>(b.operand_values);
    alignas(64) A tile_sums[kTileHeight * W];
    im2col(part.group, part.k0, part.k1, m0, m1, columns);
    const int64_t count = part.k1 - part.k0, parts = tile_parts(count), zero_offset = 0;
    const TileWalk walk{1, &zero_offset, &zero_offset, m1 - m0, count, W};
    for (int64_t block = part.block0; block < part.block1; ++block) {
      const int64_t index = (part.split * p.groups + part.group) * blocks + block;
      pack_dy(part.group, block, m0, m1, dy, p.bias && part.k0 == 0 ? bias_sums + index * W : nullptr);
      for (int64_t i = 0; i < parts; ++i) {
        const int64_t begin = tile_start(i, parts, count), end = tile_start(i + 1, parts, count);
        tile(end - begin, columns + begin, dy, walk, tile_sums, false);
        int64_t tap = (part.k0 + begin) / channels, channel = (part.k0 + begin) % channels;
        for (int64_t k = begin; k < end; ++k) {
          A* into = sums + ((index * channels + channel) * taps + tap) * W;
          for (int l = 0; l < W; ++l) into[l] += tile_sums[(k - begin) * W + l];
          if (++channel == channels) {
            channel = 0;
            ++tap;
          }
        }
      }
    }
  }

  // Adds the splits in their order and writes one filter block.
  void finish(int64_t group, int64_t block) const {
    const int64_t index = group * blocks + block, all = p.groups * blocks;
    A* own = sums + index * depth * W;
    A* own_bias = bias_sums + index * W;
    for (int64_t split = 1; split < b.splits; ++split) {
      for (int64_t i = 0; i < depth * W; ++i) own[i] += own[split * all * depth * W + i];
      for (int64_t l = 0; l < W; ++l) own_bias[l] += own_bias[split * all * W + l];
    }
    const int64_t first = group * p.group_k() + block * W, filters = smaller(W, p.group_k() - block * W);
    write_filter_sums(p, own, filters, static_cast<T*>(operands.weight) + first * p.weight_strides[0]);
    if (!p.bias) return;
    for (int64_t l = 0; l < filters; ++l) static_cast<T*>(operands.grad_bias)[first + l] = narrow<T>(own_bias[l]);
  }
};

template <class T>
void run(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  using A = Compute<T>;
  constexpr int W = kTileWidth<A>;
  const ConvProblem p = im2col_view(plan.problem);
  const Im2colBlocks b = im2col_blocks(plan);
  Threads threads = exec.threads;
  threads.count = static_cast<int>(smaller(threads.count, plan.threads));
  Arena arena(workspace);
  A* sums = arena.take<A>(b.sum_values);
  const int64_t all = p.groups * div_up(p.group_k(), W);
  A* bias_sums = arena.take<A>(b.splits * all * W);
  const GradWeight<T> grad{p, b, operands, sums, bias_sums};
  const int64_t depth = grad.depth, blocks = grad.blocks;
  parallel_tasks(threads, b.splits * all, [&](int, int64_t task) {
    zero(sums + task * depth * W, depth * W);
    zero(bias_sums + task * W, W);
  });

  const int64_t k_chunks = div_up(depth, b.depth), chunks = div_up(blocks, b.outputs);
  const int64_t pixels = p.n * grad.image, pixel_blocks = div_up(pixels, b.pixels);
  parallel_tasks(threads, b.splits * p.groups * k_chunks * chunks, [&](int thread, int64_t task) {
    const int64_t chunk = task % chunks, k_chunk = task / chunks % k_chunks;
    const int64_t group = task / chunks / k_chunks % p.groups, split = task / chunks / k_chunks / p.groups;
    const typename GradWeight<T>::Part part{split,
                                            group,
                                            k_chunk * b.depth,
                                            smaller((k_chunk + 1) * b.depth, depth),
                                            chunk * b.outputs,
                                            smaller((chunk + 1) * b.outputs, blocks)};
    for (int64_t i = pixel_blocks * split / b.splits; i < pixel_blocks * (split + 1) / b.splits; ++i)
      grad.add_pixels(arena.slice(thread, b.thread_bytes), part, i * b.pixels, smaller((i + 1) * b.pixels, pixels));
  });
  parallel_tasks(threads, all, [&](int, int64_t task) { grad.finish(task / blocks, task % blocks); });
}

}  // namespace

Status im2col_grad_weight(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  with_dtype(plan.problem.dtype, [&](auto v) { run<decltype(v)>(plan, operands, workspace, exec); });
  return {};
}

}  // namespace fastconv::cpu::FASTCONV_ISA
