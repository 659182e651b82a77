// The filter's gradient of 1x1 convolutions: w[filter][channel] = sum over pixels of dy[filter][pixel] * x[channel][pixel].
//
// Filters are the register tile's rows, channels its lanes. As many pixels as fit into half of the second-level cache
// have their grad_output packed (NCHW: copied, NHWC: turned); then for each 32 channels and 128 pixels the input is packed
// next to each other (NCHW: turned, NHWC: copied) and multiplied with every 14 filters. One task sums
// over all pixels in their order, so that results do not depend on the number of threads.
//
// Arithmetic intensity: filters * channels / (2 (filters + channels)) FLOP per byte, as the forward pass has.
#include "../../core/div_up.h"
#include "../arena.h"
#include "../pointwise.h"
#include "pack.h"
#include "panel_multiply.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <class T>
struct PointwiseWeight {
  static constexpr int L = kLanes<float>, W = kTileWidth<float>, H = kTileHeight;

  const ConvPlan& plan;
  const ConvProblem& p;
  const ConvOperands& operands;
  const pointwise::View view = pointwise::weight_view_of(p);
  const Gather& g = view.g;
  const int64_t depth = view.images * view.pixels;

  struct Scratch {
    float *panel, *piece, *sums, *bias;
  };

  // Calls f(first, count, image, row, column) for the pixels [begin, end), counted through all images, row by row.
  template <class F>
  void for_runs(int64_t begin, int64_t end, F&& f) const {
    for (int64_t d = begin; d < end;) {
      const int64_t col = d % g.cols.out, row = d / g.cols.out % g.rows.out, image = d / view.pixels;
      const int64_t count = smaller(g.cols.out - col, end - d);
      f(d - begin, count, image, row, col);
      d += count;
    }
  }

  // grad_output of `rows` filters and the pixels [begin, end) as [pixel / L][row][L].
  void pack_gradient(int64_t group, int64_t filter, int64_t rows, int64_t begin, int64_t end, float* tile) const {
    if ((end - begin) % L) zero(tile + (end - begin) / L * rows * L, rows * L);
    for_runs(begin, end, [&](int64_t first, int64_t count, int64_t image, int64_t row, int64_t col) {
      const int64_t at = image * g.dst[0] + (group * g.group_dst + filter) * g.dst[1] + row * g.dst[2] + col * g.dst[3];
      Reader<T> reader{static_cast<const T*>(operands.y) + at, g.dst[3], g.dst[1]};
      if (p.has_aux()) {
        reader.mask = static_cast<const T*>(operands.aux) + at;
        reader.mask_si = g.dst[3];
        reader.mask_sj = g.dst[1];
        reader.gradient = OutputGradient<float>(p);
      }
      for (int64_t i = 0; i < count;) {
        const int64_t place = first + i, lane = place % L, some = smaller(L - lane, count - i);
        pack(reader.from(i, 0), some, rows, [&](int64_t j) { return tile + (place / L * rows + j) * L + lane; });
        i += some;
      }
    });
  }

  // The input of `channels` channels as [pixel][W].
  void pack_input(int64_t group, int64_t channel, int64_t channels, int64_t begin, int64_t end, float* piece) const {
    for_runs(begin, end, [&](int64_t first, int64_t count, int64_t image, int64_t row, int64_t col) {
      const T* at = static_cast<const T*>(operands.x) + image * g.src[0] +
                    (group * g.group_src + channel) * g.src[1] + row * g.rows.step * g.src[2] +
                    col * g.cols.step * g.src[3];
      pack(Reader<T>{at, g.src[1], g.cols.step * g.src[3]}, channels, count,
           [&](int64_t j) { return piece + (first + j) * W; });
    });
  }

  // The lines of the input that are packed next, as far as they are in one row of pixels.
  RowLines input_lines(int64_t group, int64_t channel, int64_t begin, int64_t end) const {
    RowLines lines;
    if (begin >= end || channel >= g.channels || g.cols.step != 1) return lines;
    for_runs(begin, end, [&](int64_t first, int64_t count, int64_t image, int64_t row, int64_t col) {
      if (first > 0) return;
      const T* at = static_cast<const T*>(operands.x) + image * g.src[0] +
                    (group * g.group_src + channel) * g.src[1] + row * g.rows.step * g.src[2] + col * g.src[3];
      const auto address = reinterpret_cast<uintptr_t>(at);
      const auto before = static_cast<int64_t>(address % kLineBytes), bytes = static_cast<int64_t>(sizeof(T));
      const int64_t channels = smaller(W, g.channels - channel);
      const bool planes = g.src[3] == 1;
      lines = {reinterpret_cast<const char*>(address) - before, (planes ? g.src[1] : g.src[3]) * bytes,
               planes ? channels : count, div_up(before + (planes ? count : channels) * bytes, kLineBytes)};
    });
    return lines;
  }

  // Finished sums of `filters` filters and one block of channels.
  void write(const float* sums, int64_t filter, int64_t filters, int64_t block) const {
    const int64_t channels = smaller(W, g.channels - block * W), step = p.weight_strides[1];
    for (int64_t k = 0; k < filters; ++k, sums += W) {
      T* to = static_cast<T*>(operands.weight) + (filter + k) * p.weight_strides[0] + block * W * step;
      if constexpr (std::is_same_v<T, float>) {
        if (step == 1) {
          for (int64_t c = 0; c < channels; c += L)
            if (channels - c >= L)
              store(to + c, load(sums + c));
            else
              store_part(to + c, load(sums + c), channels - c);
          continue;
        }
      }
      for (int64_t c = 0; c < channels; ++c) to[c * step] = narrow<T>(sums[c]);
    }
  }

  // By chunks, whose bounds do not depend on how much of grad_output is packed at a time.
  void add_bias(const float* panel, int64_t rows, int64_t count, float* bias) const {
    const int64_t chunk = plan.detail[pointwise::kPixelChunk];
    for (int64_t m = 0; m < rows; ++m)
      for (int64_t begin = 0; begin < count; begin += chunk) {
        Vec<float> sum{};
        for (int64_t d = begin; d < smaller(begin + chunk, count); d += L) sum += load(panel + (d / L * rows + m) * L);
        for (int l = 0; l < L; ++l) bias[m] += sum[l];
      }
  }

  // Filters [filter0, filter1) and the channels of blocks [block0, block1).
  void task(const Scratch& s, int64_t group, int64_t filter0, int64_t filter1, int64_t block0, int64_t block1) const {
    const int64_t filters = filter1 - filter0, parts = tile_parts(filters), chunk = plan.detail[pointwise::kPixelChunk];
    const bool wants_bias = p.bias && block0 == 0, in_one = depth <= chunk;
    zero(s.piece, chunk * W);
    zero(s.bias, filters);
    for (int64_t d0 = 0; d0 < depth; d0 += plan.detail[pointwise::kDepth]) {
      const int64_t d1 = smaller(d0 + plan.detail[pointwise::kDepth], depth), pitch = div_up(d1 - d0, L) * L;
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t begin = tile_start(part, parts, filters), rows = tile_start(part + 1, parts, filters) - begin;
        float* tile = s.panel + begin * pitch;
        pack_gradient(group, filter0 + begin, rows, d0, d1, tile);
        if (wants_bias) add_bias(tile, rows, pitch, s.bias + begin);
      }
      for (int64_t block = block0; block < block1; ++block) {
        const int64_t channels = smaller(W, g.channels - block * W);
        for (int64_t d = d0; d < d1; d += chunk) {
          const int64_t count = smaller(chunk, d1 - d);
          pack_input(group, block * W, channels, d, d + count, s.piece);
          RowLines next = d + count < d1 ? input_lines(group, block * W, d + count, smaller(d + count + chunk, d1))
                                         : input_lines(group, (block + 1) * W, d0, smaller(d0 + chunk, d1));
          const int64_t most = div_up(next.count(), parts);
          for (int64_t part = 0; part < parts; ++part) {
            const int64_t begin = tile_start(part, parts, filters), rows = tile_start(part + 1, parts, filters) - begin;
            const float* a = s.panel + begin * pitch + (d - d0) * rows;
            float* sums = s.sums + (in_one ? 0 : ((block - block0) * parts + part) * H * W);
            if (channels > L)
              multiply_chunk(rows, a, rows * L, s.piece, count, sums, d > 0, next.down(most), {});
            else
              multiply_chunk<H, 1>(rows, a, rows * L, s.piece, count, sums, d > 0, next.down(most), {});
            if (d + count == depth) write(sums, group * g.filters + filter0 + begin, rows, block);
          }
        }
      }
    }
    if (!wants_bias) return;
    T* grad_bias = static_cast<T*>(operands.grad_bias) + group * g.filters + filter0;
    for (int64_t k = 0; k < filters; ++k) grad_bias[k] = narrow<T>(s.bias[k]);
  }
};

template <class T>
void run(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  using namespace pointwise;
  const ConvProblem& p = plan.problem;
  Threads threads = exec.threads;
  threads.count = static_cast<int>(smaller(threads.count, plan.threads));
  const Arena arena(workspace);
  const PointwiseWeight<T> form{plan, p, operands};
  const int64_t filter_tasks = plan.detail[kFilterTasks], channel_tasks = plan.detail[kChannelTasks];
  const int64_t filters = form.g.filters, blocks = div_up(form.g.channels, kTileWidth<float>);
  const int64_t share = div_up(filters, filter_tasks), block_share = div_up(blocks, channel_tasks);
  parallel_tasks(threads, p.groups * filter_tasks * channel_tasks, [&](int thread, int64_t task) {
    Arena own = arena.slice(thread, plan.detail[kWeightBytes]);
    typename PointwiseWeight<T>::Scratch scratch;
    scratch.panel = own.take<float>(plan.detail[kDepthValues]);
    scratch.piece = own.take<float>(plan.detail[kPixelChunk] * kTileWidth<float>);
    scratch.sums = own.take<float>(plan.detail[kWeightSums]);
    scratch.bias = own.take<float>(share);
    const int64_t c = task % channel_tasks, f = task / channel_tasks % filter_tasks;
    const int64_t filter0 = f * share, filter1 = smaller(filter0 + share, filters);
    const int64_t block0 = c * block_share, block1 = smaller(block0 + block_share, blocks);
    if (filter0 < filter1 && block0 < block1)
      form.task(scratch, task / channel_tasks / filter_tasks, filter0, filter1, block0, block1);
  });
}

}  // namespace

Status direct_pointwise_weight(const ConvPlan& plan, const ConvOperands& operands, void* workspace,
                               const Execution& exec) {
  switch (plan.problem.dtype) {
    case DType::f16: run<f16>(plan, operands, workspace, exec); break;
    case DType::bf16: run<bf16>(plan, operands, workspace, exec); break;
    default: run<float>(plan, operands, workspace, exec);
  }
  return {};
}

}  // namespace fastconv::cpu::FASTCONV_ISA
