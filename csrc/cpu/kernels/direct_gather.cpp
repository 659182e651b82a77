// Direct convolution, forward and grad_input, for every parameter, layout and dtype.
//
// Per task: pack a band of input rows to [row][channel][pixel] (zero columns for the padding, so that the inner loop has
// no bounds to check), then for each block of filters and each tile of output pixels sum over taps and channels in
// registers. Rows that lie in the padding are skipped. Arithmetic intensity: a tile reads (14 + 32) values per 14 * 32
// multiply-adds, so the multiply-add units are the limit; what keeps it from the peak is streaming the packed filter
// from the second-level cache, 128 bytes per 28 vector operations.
#include "../../core/div_up.h"
#include "../arena.h"
#include "../direct.h"
#include "../gather.h"
#include "epilogue.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// The source displacement of tap t, if this phase has it.
inline bool displacement(const GatherAxis& a, int64_t t, int64_t* d) {
  const int64_t value = a.tap_origin + t * a.tap_step;
  if (value % a.tap_divisor != 0) return false;
  *d = value / a.tap_divisor;
  return true;
}

// Filter values in the order of use: [group][filter block][tap][channel][tile width].
template <class T>
void pack_filter(const ConvProblem& p, const Gather& g, const T* weight, Compute<T>* packed, const Threads& threads) {
  using A = Compute<T>;
  constexpr int W = kTileWidth<A>;
  const int64_t blocks = div_up(g.filters, W), taps = p.r * p.s, channels = g.channels;
  const Strides4& ws = p.weight_strides;
  // Consecutive taps of one channel are consecutive in memory, and channels follow each other: [.., c, r, s] dense.
  const bool taps_dense = (p.s == 1 || ws[3] == 1) && (p.r == 1 || ws[2] == p.s);
  const bool channels_follow = taps_dense && taps > 1 && (channels == 1 || g.channel_stride == taps);
  const bool filters_follow = taps_dense && taps > 1 && g.filter_stride == taps;
  parallel_tasks(threads, p.groups * blocks, [&](int, int64_t task) {
    const int64_t group = task / blocks, block = task % blocks;
    const int64_t filters = smaller(W, g.filters - block * W);
    A* dst = packed + task * taps * channels * W;
    const T* src = weight + group * p.group_k() * ws[0] + block * W * g.filter_stride;
    if (filters < W) zero(dst, taps * channels * W);
    if (channels_follow) {
      pack(Reader<T>{src, g.filter_stride, 1}, filters, channels * taps,
           [&](int64_t j) { return dst + ((j % taps) * channels + j / taps) * W; });
    } else if (filters_follow) {  // grad_input on a dense filter: channel by channel, [filter][tap] turns
      for (int64_t c = 0; c < channels; ++c)
        pack(Reader<T>{src + c * g.channel_stride, taps, 1}, filters, taps,
             [&](int64_t t) { return dst + (t * channels + c) * W; });
    } else {
      for (int64_t t = 0; t < taps; ++t)
        pack(Reader<T>{src + t / p.s * ws[2] + t % p.s * ws[3], g.filter_stride, g.channel_stride}, filters, channels,
             [&](int64_t c) { return dst + (t * channels + c) * W; });
    }
  });
}

template <class T>
struct GatherRun {
  using A = Compute<T>;
  static constexpr int W = kTileWidth<A>;

  const ConvPlan& plan;
  const ConvProblem& p;
  const ConvOperands& operands;
  const Gather g;
  const A* filter;
  const int64_t blocks = div_up(g.filters, W);
  const int64_t taps = p.r * p.s;

  struct Scratch {
    A* band;
    int64_t* slot;      // source row - first row -> packed row, or -1
    int64_t* x_offset;  // of the taps of one output row
    int64_t* w_offset;
  };

  void band(const Scratch& scratch, int64_t n, int64_t group, int64_t row0, int64_t row1, int64_t col0, int64_t col1,
            int64_t block0, int64_t block1) const {
    const bool forward = p.pass == Pass::forward;
    const T* src = static_cast<const T*>(forward ? operands.x : operands.y) + n * g.src[0] +
                   group * g.group_src * g.src[1];
    const T* mask = forward || !p.has_aux() ? nullptr
                                            : static_cast<const T*>(operands.aux) + n * g.mask[0] +
                                                  group * g.group_src * g.mask[1];
    // Columns: those displacements that this phase has, grouped by their remainder modulo the step.
    int64_t lowest = 0, highest = 0, d = 0, column_taps = 0;
    for (int64_t s = 0; s < p.s; ++s)
      if (displacement(g.cols, s, &d)) {
        lowest = column_taps ? smaller(lowest, d) : d;
        highest = column_taps ? larger(highest, d) : d;
        ++column_taps;
      }
    const int64_t cols = col1 - col0, step = g.cols.step;
    const int64_t width = cols + (highest - lowest) / step;
    const int64_t phases = smaller(step, highest - lowest + 1);
    int64_t pitch = phases * width;
    if (pitch * static_cast<int64_t>(sizeof(A)) % 256 == 0) pitch += kLanes<A>;  // keeps channels off one cache set

    // Rows: mark those that some tap of some output row reads, then pack them in order.
    int64_t low_row = 0, high_row = -1, row_taps = 0;
    for (int64_t r = 0; r < p.r; ++r)
      if (displacement(g.rows, r, &d)) {
        const int64_t lo = row0 * g.rows.step + d, hi = (row1 - 1) * g.rows.step + d;
        low_row = row_taps ? smaller(low_row, lo) : lo;
        high_row = row_taps ? larger(high_row, hi) : hi;
        ++row_taps;
      }
    for (int64_t i = low_row; i <= high_row; ++i) scratch.slot[i - low_row] = -1;
    for (int64_t r = 0; r < p.r; ++r)
      if (displacement(g.rows, r, &d))
        for (int64_t i = row0; i < row1; ++i) {
          const int64_t row = i * g.rows.step + d;
          if (row >= 0 && row < g.rows.src) scratch.slot[row - low_row] = 0;
        }
    int64_t slots = 0;
    for (int64_t row = low_row; row <= high_row && column_taps; ++row) {
      if (scratch.slot[row - low_row] < 0) continue;
      scratch.slot[row - low_row] = slots;
      A* packed_row = scratch.band + slots++ * g.channels * pitch;
      for (int64_t phase = 0; phase < phases; ++phase) {
        const int64_t first = col0 * step + lowest + phase;  // source column of packed position 0
        const int64_t begin = smaller(width, first >= 0 ? 0 : div_up(-first, step));
        const int64_t end = larger(begin, smaller(width, first < g.cols.src ? div_up(g.cols.src - first, step) : 0));
        A* packed = packed_row + phase * width;
        if (begin > 0 || end < width)
          for (int64_t c = 0; c < g.channels; ++c) {
            zero(packed + c * pitch, begin);
            zero(packed + c * pitch + end, width - end);
          }
        const int64_t column = first + begin * step;
        Reader<T> reader{src + row * g.src[2] + column * g.src[3], step * g.src[3], g.src[1]};
        if (mask) {
          reader.mask = mask + row * g.mask[2] + column * g.mask[3];
          reader.mask_si = step * g.mask[3];
          reader.mask_sj = g.mask[1];
          reader.gradient = OutputGradient<A>(p);
        }
        if (end > begin)
          pack(reader, end - begin, g.channels, [&](int64_t c) { return packed + c * pitch + begin; });
      }
    }

    Epilogue<T> epilogue;
    epilogue.activation = Activated<A>(p);
    T* dst = static_cast<T*>(forward ? operands.y : operands.x) + n * g.dst[0] + group * g.group_dst * g.dst[1];
    const T* residual = p.residual && forward ? static_cast<const T*>(operands.aux) + n * g.residual[0] +
                                                    group * g.group_dst * g.residual[1]
                                              : nullptr;
    TileOutput<T> out{nullptr, g.cols.out_step * g.dst[3], g.dst[1], nullptr, g.residual[3], g.residual[1]};
    const int64_t parts = tile_parts(cols);
    alignas(64) A sums[kTileHeight * W];
    for (int64_t block = block0; block < block1; ++block) {
      const int64_t filters = smaller(W, g.filters - block * W);
      const A* w = filter + (group * blocks + block) * taps * g.channels * W;
      if (p.bias)
        epilogue.load_bias(static_cast<const T*>(operands.bias) + group * g.filters + block * W, filters);
      for (int64_t i = row0; i < row1; ++i) {
        TileWalk walk{0, scratch.x_offset, scratch.w_offset, g.channels, pitch, W};
        int64_t dr = 0, ds = 0;
        for (int64_t r = 0; r < p.r; ++r) {
          if (!displacement(g.rows, r, &dr)) continue;
          const int64_t row = i * g.rows.step + dr;
          if (row < 0 || row >= g.rows.src) continue;
          for (int64_t s = 0; s < p.s; ++s) {
            if (!displacement(g.cols, s, &ds)) continue;
            scratch.x_offset[walk.outer] = scratch.slot[row - low_row] * g.channels * pitch +
                                           (ds - lowest) % step * width + (ds - lowest) / step;
            scratch.w_offset[walk.outer++] = (r * p.s + s) * g.channels * W;
          }
        }
        const int64_t out_row = g.rows.out_start + i * g.rows.out_step;
        for (int64_t part = 0; part < parts; ++part) {
          const int64_t begin = tile_start(part, parts, cols), end = tile_start(part + 1, parts, cols);
          const int64_t out_col = g.cols.out_start + (col0 + begin) * g.cols.out_step;
          out.y = dst + block * W * g.dst[1] + out_row * g.dst[2] + out_col * g.dst[3];
          tile(end - begin, scratch.band + begin, w, walk, sums, false);
          if (residual)
            out.residual =
                residual + block * W * g.residual[1] + out_row * g.residual[2] + out_col * g.residual[3];
          epilogue.write(sums, end - begin, filters, out);
        }
      }
    }
  }
};

template <class T>
void run(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  using A = Compute<T>;
  const ConvProblem& p = plan.problem;
  Threads threads = exec.threads;
  threads.count = static_cast<int>(smaller(threads.count, plan.threads));
  Arena arena(workspace);
  A* own_filter = arena.take<A>(plan.detail[kPackedFilter]);
  if (!exec.prepacked) pack_filter(p, gather_of(p, 0), static_cast<const T*>(operands.weight), own_filter, threads);
  const A* filter = exec.prepacked ? static_cast<const A*>(exec.prepacked) : own_filter;

  for (int64_t phase = 0; phase < gather_phases(p); ++phase) {
    const GatherRun<T> gather{plan, p, operands, gather_of(p, phase), filter};
    const Gather& g = gather.g;
    if (g.rows.out <= 0 || g.cols.out <= 0) continue;
    const int64_t band_rows = plan.detail[kBandRows], band_cols = plan.detail[kBandCols];
    const int64_t row_bands = div_up(g.rows.out, band_rows), col_bands = div_up(g.cols.out, band_cols);
    const int64_t chunks = plan.detail[kFilterChunks], blocks = gather.blocks;
    const int64_t slots = source_span(g.rows, band_rows);
    parallel_tasks(threads, p.n * p.groups * row_bands * col_bands * chunks, [&](int thread, int64_t task) {
      const int64_t chunk = task % chunks, col_band = task / chunks % col_bands;
      const int64_t row_band = task / chunks / col_bands % row_bands;
      const int64_t image = task / chunks / col_bands / row_bands;
      Arena own = arena.slice(thread, plan.detail[kThreadBytes]);
      typename GatherRun<T>::Scratch scratch;
      scratch.band = own.take<A>(plan.detail[kBandValues]);
      scratch.slot = own.take<int64_t>(slots);
      scratch.x_offset = own.take<int64_t>(gather.taps);
      scratch.w_offset = own.take<int64_t>(gather.taps);
      const int64_t row = row_band * band_rows, col = col_band * band_cols;
      gather.band(scratch, image / p.groups, image % p.groups, row, smaller(row + band_rows, g.rows.out), col,
                  smaller(col + band_cols, g.cols.out), blocks * chunk / chunks, blocks * (chunk + 1) / chunks);
    });
  }
}

}  // namespace

void direct_pack_filter(const ConvPlan& plan, const void* weight, void* packed, const Threads& available) {
  Threads threads = available;
  threads.count = static_cast<int>(smaller(threads.count, plan.threads));
  with_dtype(plan.problem.dtype, [&](auto v) {
    using T = decltype(v);
    pack_filter(plan.problem, gather_of(plan.problem, 0), static_cast<const T*>(weight),
                static_cast<Compute<T>*>(packed), threads);
  });
}

TileShape kernel_tile_shape(DType dtype) {
  return with_dtype(dtype, [](auto v) { return TileShape{kTileHeight, kTileWidth<Compute<decltype(v)>>}; });
}

Status direct_gather(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  with_dtype(plan.problem.dtype, [&](auto v) { run<decltype(v)>(plan, operands, workspace, exec); });
  return {};
}

}  // namespace fastconv::cpu::FASTCONV_ISA
