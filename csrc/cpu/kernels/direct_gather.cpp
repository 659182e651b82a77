// Direct convolution, forward and grad_input, for every parameter, layout and dtype.
//
// Per task: pack a band of input rows to [row][channel][pixel] (zero columns for the padding, so that the inner loop has
// no bounds to check), then take some tiles of output pixels at a time: for each block of filters, and of its products a
// chunk of about 144 (a few channels with all their taps), pack the filter's chunk and add it to every tile. Chunk and
// tile stay in the first-level cache. Rows that lie in the padding are skipped.
//
// Arithmetic intensity: a tile reads (14 + 32) values per 14 * 32 multiply-adds, so the multiply-add units are the limit
// (on an Intel Xeon 83 % of their peak, with or without any other work around them). Packing the filter takes 13 cycles
// per 32 values, a tile 17: with 32 tiles at a time 2 %, with the 4 tiles of a 7 x 7 image 20 %, which is still less than
// a packed filter kept between calls would cost in reading the weight for its hash (90 cycles). The phases of a
// strided convolution's grad_input use a few taps each, and so share a filter that is packed as a whole.
#include "../../core/div_up.h"
#include "../arena.h"
#include "../direct.h"
#include "../gather.h"
#include "epilogue.h"
#include "filter_pack.h"

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

template <class T>
struct GatherRun {
  using A = Compute<T>;
  static constexpr int W = kTileWidth<A>;

  const ConvPlan& plan;
  const ConvProblem& p;
  const ConvOperands& operands;
  const Gather g;
  const A* packed;  // the whole filter, if phases share it: [group][block][chunk][tap][channel][tile width]
  const int64_t blocks = div_up(g.filters, W);
  const int64_t taps = p.r * p.s;
  const int64_t chunk = plan.detail[kChunkChannels], chunks = div_up(g.channels, chunk);
  const int64_t listed = direct::listed_channels(chunk, g.channels), products = listed * taps;

  const A* packed_at(int64_t group, int64_t block, int64_t c) const {
    return packed + ((group * blocks + block) * chunks + c / chunk) * taps * chunk * W;
  }

  struct Scratch {
    A* band;
    A* filter;          // of one block and chunk
    A* sums;            // of a group of tiles
    int64_t* slot;      // source row - first row -> packed row, or -1
    int64_t* x_offset;  // of what the walk of each row of a group of tiles lists
    int64_t* w_offset;
    int64_t* listed;    // how much that is: what lies in the padding is left out
  };

  // What a task computes: rows and columns of one image and group, and blocks of filters.
  struct Task {
    int64_t n, group, row0, row1, col0, col1, block0, block1;
  };

  // The packed band: [row][channel][column phase][position].
  struct Band {
    int64_t low_row, lowest, width, pitch;  // lowest: displacement of all columns' taps
  };

  Band pack_band(const Scratch& scratch, const Task& t) const {
    const bool forward = p.pass == Pass::forward;
    const int64_t row0 = t.row0, row1 = t.row1, col0 = t.col0, col1 = t.col1;
    const T* src = static_cast<const T*>(forward ? operands.x : operands.y) + t.n * g.src[0] +
                   t.group * g.group_src * g.src[1];
    const T* mask = forward || !p.has_aux() ? nullptr
                                            : static_cast<const T*>(operands.aux) + t.n * g.mask[0] +
                                                  t.group * g.group_src * g.mask[1];
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

    return {low_row, lowest, width, pitch};
  }

  // Where the taps of output row i lie in the band and in a packed chunk of the filter; those in the padding are left out.
  int64_t list_taps(const Scratch& scratch, const Band& band, int64_t i, int64_t* x_offset, int64_t* w_offset) const {
    int64_t count = 0, dr = 0, ds = 0;
    for (int64_t r = 0; r < p.r; ++r) {
      if (!displacement(g.rows, r, &dr)) continue;
      const int64_t row = i * g.rows.step + dr;
      if (row < 0 || row >= g.rows.src) continue;
      for (int64_t s = 0; s < p.s; ++s) {
        if (!displacement(g.cols, s, &ds)) continue;
        const int64_t x = scratch.slot[row - band.low_row] * g.channels * band.pitch +
                          (ds - band.lowest) % g.cols.step * band.width + (ds - band.lowest) / g.cols.step;
        for (int64_t c = 0; c < listed; ++c) {
          x_offset[count] = x + c * band.pitch;
          w_offset[count++] = ((r * p.s + s) * chunk + c) * W;
        }
      }
    }
    return count;
  }

  // Where the results of a task go.
  struct Target {
    Epilogue<T> epilogue;
    T* y;
    const T* residual;
    TileOutput<T> out;
  };
  Target target(const Task& t) const {
    const bool forward = p.pass == Pass::forward;
    Target to{};
    to.epilogue.activation = Activated<A>(p);
    to.y = static_cast<T*>(forward ? operands.y : operands.x) + t.n * g.dst[0] + t.group * g.group_dst * g.dst[1];
    if (p.residual && forward)
      to.residual = static_cast<const T*>(operands.aux) + t.n * g.residual[0] + t.group * g.group_dst * g.residual[1];
    to.out = {nullptr, g.cols.out_step * g.dst[3], g.dst[1], nullptr, g.residual[3], g.residual[1]};
    return to;
  }
  // The lines that write() is going to store to: they come while the tile is computed. 3 channels at 224x224 then take
  // half of the time with eight lanes; with 16 a tile has more lines, and on an Intel Xeon each costs 30 cycles.
  void prefetch_output(const Target& to, int64_t i, int64_t column, int64_t pixels, int64_t filter, int64_t filters) const {
    if (kVectorBytes > 32) return;
    const int64_t row = g.rows.out_start + i * g.rows.out_step, col = g.cols.out_start + column * g.cols.out_step;
    const T* y = to.y + filter * g.dst[1] + row * g.dst[2] + col * g.dst[3];
    const bool along_filters = g.dst[1] == 1;
    const int64_t runs = along_filters ? pixels : filters, step = along_filters ? to.out.pixel_stride : g.dst[1];
    const int64_t length = (along_filters ? filters : pixels) * static_cast<int64_t>(sizeof(T));
    for (int64_t run = 0; run < runs; ++run)
      for (int64_t byte = 0; byte < length; byte += kLineBytes)
        prefetch_write(reinterpret_cast<const char*>(y + run * step) + byte);
  }
  // Output row i of the phase, columns from `column` on, filters from `filter` on.
  void write(Target& to, A* sums, int64_t i, int64_t column, int64_t pixels, int64_t filter, int64_t filters) const {
    const int64_t row = g.rows.out_start + i * g.rows.out_step, col = g.cols.out_start + column * g.cols.out_step;
    to.out.y = to.y + filter * g.dst[1] + row * g.dst[2] + col * g.dst[3];
    if (to.residual)
      to.out.residual = to.residual + filter * g.residual[1] + row * g.residual[2] + col * g.residual[3];
    to.epilogue.write(sums, pixels, filters, to.out);
  }

  void band(const Scratch& scratch, const Task& t) const {
    const Band band = pack_band(scratch, t);
    const FilterSource<T> source(p, g, operands.weight, t.group);
    const bool far = !packed && g.filters * g.channels * taps * static_cast<int64_t>(sizeof(T)) > kNearBytes;
    Target to = target(t);
    const int64_t cols = t.col1 - t.col0, parts = tile_parts(cols);
    // A group of tiles: rows as a whole, or a part of one row.
    const int64_t group_parts = smaller(parts, direct::kGroupTiles), group_rows = direct::kGroupTiles / group_parts;
    for (int64_t i0 = t.row0; i0 < t.row1; i0 += group_rows) {
      const int64_t i1 = smaller(i0 + group_rows, t.row1);
      for (int64_t i = i0; i < i1; ++i)
        scratch.listed[i - i0] = list_taps(scratch, band, i, scratch.x_offset + (i - i0) * products,
                                           scratch.w_offset + (i - i0) * products);
      for (int64_t part0 = 0; part0 < parts; part0 += group_parts) {
        const int64_t part1 = smaller(part0 + group_parts, parts), tiles = (i1 - i0) * (part1 - part0);
        for (int64_t block = t.block0; block < t.block1; ++block) {
          const int64_t first = block * W, filters = smaller(W, g.filters - first);
          to.epilogue.set(scales_of<T>(p, operands, t.group * g.filters + first),
                           biases_of<T>(p, operands, t.group * g.filters + first), filters);
          for (int64_t c = 0; c < g.channels; c += chunk) {
            const int64_t channels = smaller(chunk, g.channels - c), next = c + chunk < g.channels ? c + chunk : 0;
            const A* filter = packed ? packed_at(t.group, block, c) : scratch.filter;
            if (!packed) pack_filter(source, first, c, channels, chunk, scratch.filter);
            TapLines<T> lines(source, first, c, chunk);
            const int64_t runs = far ? div_up(lines.runs(), tiles) : 0;
            A* sums = scratch.sums;
            for (int64_t i = i0; i < i1; ++i) {
              const TileWalk walk{scratch.listed[i - i0], scratch.x_offset + (i - i0) * products,
                                  scratch.w_offset + (i - i0) * products, listed > 1 ? 1 : channels, band.pitch, W};
              for (int64_t part = part0; part < part1; ++part, sums += kTileHeight * W) {
                const int64_t begin = tile_start(part, parts, cols), end = tile_start(part + 1, parts, cols);
                for (int64_t run = 0; run < runs; ++run) prefetch(lines.next());
                const A* x = scratch.band + c * band.pitch + begin;
                if (next == 0) prefetch_output(to, i, t.col0 + begin, end - begin, first, filters);
                if (filters > kLanes<A>)
                  tile(end - begin, x, filter, walk, sums, c > 0);
                else
                  tile<A, kTileHeight, 1>(end - begin, x, filter, walk, sums, c > 0);
                if (next == 0) write(to, sums, i, t.col0 + begin, end - begin, first, filters);
              }
            }
          }
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
  A* packed = plan.detail[kPackedFilter] > 0 ? arena.take<A>(plan.detail[kPackedFilter]) : nullptr;
  if (packed) {
    const GatherRun<T> any{plan, p, operands, gather_of(p, 0), packed};
    parallel_tasks(threads, p.groups * any.blocks * any.chunks, [&](int, int64_t task) {
      const int64_t c = task % any.chunks * any.chunk, block = task / any.chunks % any.blocks;
      pack_filter(FilterSource<T>(p, any.g, operands.weight, task / any.chunks / any.blocks), block * any.W, c,
                  smaller(any.chunk, any.g.channels - c), any.chunk, packed + task * any.taps * any.chunk * any.W);
    });
  }
  for (int64_t phase = 0; phase < gather_phases(p); ++phase) {
    const GatherRun<T> gather{plan, p, operands, gather_of(p, phase), packed};
    const Gather& g = gather.g;
    if (g.rows.out <= 0 || g.cols.out <= 0) continue;
    const int64_t band_rows = plan.detail[kBandRows], band_cols = plan.detail[kBandCols];
    const int64_t row_bands = div_up(g.rows.out, band_rows), col_bands = div_up(g.cols.out, band_cols);
    const int64_t shares = plan.detail[kFilterChunks], blocks = gather.blocks;
    const int64_t slots = source_span(g.rows, band_rows), group_rows = smaller(direct::kGroupTiles, band_rows);
    parallel_tasks(threads, p.n * p.groups * row_bands * col_bands * shares, [&](int thread, int64_t task) {
      const int64_t share = task % shares, col_band = task / shares % col_bands;
      const int64_t row_band = task / shares / col_bands % row_bands;
      const int64_t image = task / shares / col_bands / row_bands;
      Arena own = arena.slice(thread, plan.detail[kThreadBytes]);
      typename GatherRun<T>::Scratch scratch;
      scratch.band = own.take<A>(plan.detail[kBandValues]);
      scratch.filter = own.take<A>(gather.taps * plan.detail[kChunkChannels] * gather.W);
      scratch.sums = own.take<A>(direct::kGroupTiles * kTileHeight * gather.W);
      scratch.slot = own.take<int64_t>(slots);
      scratch.x_offset = own.take<int64_t>(group_rows * gather.products);
      scratch.w_offset = own.take<int64_t>(group_rows * gather.products);
      scratch.listed = own.take<int64_t>(group_rows);
      const int64_t row = row_band * band_rows, col = col_band * band_cols;
      gather.band(scratch, {image / p.groups, image % p.groups, row, smaller(row + band_rows, g.rows.out), col,
                            smaller(col + band_cols, g.cols.out), blocks * share / shares,
                            blocks * (share + 1) / shares});
    });
  }
}

}  // namespace

Status direct_gather(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  with_dtype(plan.problem.dtype, [&](auto v) { run<decltype(v)>(plan, operands, workspace, exec); });
  return {};
}

}  // namespace fastconv::cpu::FASTCONV_ISA
