// 1x1 convolutions, forward and grad_input: y[filter][pixel] = sum over c of w[filter][c] * x[c][pixel].
//
// In NCHW lanes are pixels: the filters of a task are packed once (lines of 16 channels, copied as they lie), then up to
// 512 pixels at a time the input's planes are copied into pieces of 32 pixels, and every two tiles of 14 filters go over
// them in order, so that few planes are written at once; results are stored as they are. In NHWC lanes are filters and
// pixels the rows: filters are turned once, if they stay in the second-level cache, then the pixels of four tiles are
// packed (copied as they lie) and multiplied with every 32 filters, while the lines of the next four, residuals included,
// are on their way. Larger filters are turned piece by piece for up to 32 tiles. Nothing is kept between calls.
//
// Arithmetic intensity: channels * filters / (2 (channels + filters)) FLOP per byte, 16 for 64 and 64. Two cores of an
// Intel Xeon balance at 8 (387 GFLOP/s, 46 GB/s), so the multiply-adds are the limit; with few filters packing is, too.
#include "../pointwise.h"

#include "../../core/div_up.h"
#include "../arena.h"
#include "epilogue.h"
#include "filter_source.h"
#include "panel_multiply.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <class T>
struct Pointwise {
  static constexpr int L = kLanes<float>, W = kTileWidth<float>, H = kTileHeight;

  const ConvPlan& plan;
  const ConvProblem& p;
  const ConvOperands& operands;
  const pointwise::View view = pointwise::view_of(p);
  const Gather& g = view.g;
  const int64_t chunk = plan.detail[pointwise::kChunk];
  const bool forward = p.pass == Pass::forward;

  struct Scratch {
    float *panel, *pieces, *sums;
  };

  // Calls f(pixel, reader) for runs of pixels of one row; the reader's (i, j) is pixel i of the run and channel j.
  template <class F>
  void for_runs(int64_t image, int64_t group, int64_t begin, int64_t end, F&& f) const {
    const T* src = static_cast<const T*>(forward ? operands.x : operands.y) + image * g.src[0] +
                   group * g.group_src * g.src[1];
    const T* mask = forward || !p.has_aux() ? nullptr
                                            : static_cast<const T*>(operands.aux) + image * g.mask[0] +
                                                  group * g.group_src * g.mask[1];
    for (int64_t pixel = begin; pixel < end;) {
      const int64_t row = pixel / g.cols.out, col = pixel % g.cols.out;
      const int64_t count = smaller(g.cols.out - col, end - pixel);
      Reader<T> reader{src + row * g.rows.step * g.src[2] + col * g.cols.step * g.src[3], g.cols.step * g.src[3],
                       g.src[1]};
      if (mask) {
        reader.mask = mask + row * g.mask[2] + col * g.mask[3];
        reader.mask_si = g.mask[3];
        reader.mask_sj = g.mask[1];
        reader.gradient = OutputGradient<float>(p);
      }
      f(pixel, count, reader);
      pixel += count;
    }
  }

  // A panel: for each tile, one after the other, [channels / L][rows of the tile][L].
  const int64_t depth_pitch = div_up(g.channels, L) * L;
  // `count` rows of a tile of `rows`, from `row` on. The reader's (i, j) is channel i, row j.
  void pack_rows(const Reader<T>& reader, int64_t row, int64_t count, int64_t rows, float* tile) const {
    for (int64_t c = 0; c < g.channels; c += L)
      pack(reader.from(c, 0), smaller(L, g.channels - c), count,
           [&](int64_t j) { return tile + c * rows + (row + j) * L; });
  }
  static Reader<T> turned(const Reader<T>& r) {
    Reader<T> t = r;
    t.si = r.sj, t.sj = r.si;
    t.mask_si = r.mask_sj, t.mask_sj = r.mask_si;
    return t;
  }

  const T* filters_at(int64_t group, int64_t filter) const {
    return static_cast<const T*>(operands.weight) + group * p.group_k() * p.weight_strides[0] +
           filter * g.filter_stride;
  }

  // The lines of `across` contiguous values at each of `rows` places from `p` on.
  static RowLines lines_of(const T* p, int64_t stride, int64_t rows, int64_t across) {
    constexpr int64_t bytes = sizeof(T);
    const auto* at = reinterpret_cast<const char*>(p);
    const auto before = static_cast<int64_t>(reinterpret_cast<uintptr_t>(at) % kLineBytes);
    return {at - before, stride * bytes, rows, div_up(before + across * bytes, kLineBytes)};
  }
  // Those of the source's pixels [begin, end), which are neighbours or so taken.
  RowLines source_lines(int64_t image, int64_t group, int64_t begin, int64_t end) const {
    RowLines lines;
    if (begin >= end || g.cols.step != 1) return lines;
    for_runs(image, group, begin, end, [&](int64_t first, int64_t count, const Reader<T>& reader) {
      if (first != begin) return;
      lines = reader.si == 1 ? lines_of(reader.p, reader.sj, g.channels, count)
                             : lines_of(reader.p, reader.si, count, g.channels);
    });
    return lines;
  }

  struct Target {
    Epilogue<T> epilogue;
    T* y;
    const T* residual;
    const float* scale;
    const T* bias;
    // The first line of each row of a tile of results.
    LineRun lines(int64_t offset, int64_t stride, int64_t count) const {
      return {reinterpret_cast<const char*>(y + offset), stride * static_cast<int64_t>(sizeof(T)), count};
    }
  };
  Target target(int64_t image, int64_t group) const {
    Target to{};
    to.epilogue.activation = Activated<float>(p);
    to.y = static_cast<T*>(forward ? operands.y : operands.x) + image * g.dst[0] + group * g.group_dst * g.dst[1];
    if (p.residual && forward)
      to.residual = static_cast<const T*>(operands.aux) + image * g.residual[0] + group * g.group_dst * g.residual[1];
    to.scale = scales_of<T>(p, operands, group * g.filters);
    to.bias = biases_of<T>(p, operands, group * g.filters);
    return to;
  }

  // Sums of some filters, [filter][W pixels], to their planes.
  void write_pixels(const Target& to, float* sums, int64_t filter, int64_t filters, int64_t pixel,
                    int64_t pixels) const {
    const Activated<float>& activation = to.epilogue.activation;
    for (int64_t m = 0; m < filters; ++m, sums += W) {
      T* y = to.y + (filter + m) * g.dst[1] + pixel * g.dst[3];
      const T* more = to.residual ? to.residual + (filter + m) * g.residual[1] + pixel * g.residual[3] : nullptr;
      float scale = to.scale ? to.scale[filter + m] : 1.0f;
      const float bias = to.bias ? widen(to.bias[filter + m]) : 0.0f;
      if (more && (g.residual[3] != 1 || !std::is_same_v<T, float>)) {
        for (int64_t i = 0; i < pixels; ++i) sums[i] = sums[i] * scale + widen(more[i * g.residual[3]]);
        more = nullptr, scale = 1;
      }
      const bool in_memory = activation.in_memory() || !std::is_same_v<T, float>;
#pragma GCC unroll 2
      for (int64_t v = 0; v < W; v += L) {
        const int64_t count = smaller(L, pixels - v);
        if (count <= 0) break;
        Vec<float> value = load(sums + v) * scale + bias;
        if constexpr (std::is_same_v<T, float>) {
          if (more) value += count == L ? load(more + v) : load_part(more + v, count);
          if (!in_memory) {
            value = activation.in_registers(value);
            if (count == L)
              store(y + v, value);
            else
              store_part(y + v, value, count);
            continue;
          }
        }
        store(sums + v, activation.in_registers(value));
      }
      if (!in_memory) continue;
      if (activation.in_memory()) activation.apply(sums, pixels);
      for (int64_t i = 0; i < pixels; ++i) y[i] = narrow<T>(sums[i]);
    }
  }

  // Channels from one packed tile width of pixels to the next: one more than there are, for other sets of the cache.
  const int64_t block_pitch = g.channels + 1;
  // Packs `count` pixels of a run, `at` pixels after the first of scratch.pieces: [tile width][channel][pixel].
  void pack_pixels(const Reader<T>& reader, int64_t at, int64_t count, float* pieces) const {
    const int64_t step = reader.contiguous_i() ? 1 : g.channels;  // channels at a time: planes in one sweep each
    for (int64_t c = 0; c < g.channels; c += step)
      for (int64_t i = 0, some; i < count; i += some) {
        some = smaller(W - (at + i) % W, count - i);
        float* to = pieces + ((at + i) / W * block_pitch + c) * W + (at + i) % W;
        pack(reader.from(i, c), some, step, [&](int64_t j) { return to + j * W; });
      }
  }

  void pixel_lanes(const Scratch& scratch, int64_t image, int64_t group, int64_t pixel0, int64_t pixel1,
                   int64_t filter0, int64_t filter1) const {
    const Target to = target(image, group);
    const int64_t rows = filter1 - filter0, parts = tile_parts(rows), most = plan.detail[pointwise::kGroup] * W;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t begin = tile_start(part, parts, rows), count = tile_start(part + 1, parts, rows) - begin;
      pack_rows({filters_at(group, filter0 + begin), g.channel_stride, g.filter_stride}, 0, count, count,
                scratch.panel + begin * depth_pitch);
    }
    for (int64_t first = pixel0; first < pixel1; first += most) {
      const int64_t end = smaller(first + most, pixel1), blocks = div_up(end - first, W);
      if ((end - first) % W) zero(scratch.pieces + (blocks - 1) * block_pitch * W, g.channels * W);
      for_runs(image, group, first, end, [&](int64_t pixel, int64_t count, const Reader<T>& reader) {
        pack_pixels(reader, pixel - first, count, scratch.pieces);
      });
      constexpr int64_t together = pointwise::filter_group(H);
      for (int64_t part0 = 0; part0 < parts; part0 += together) {
        const int64_t part1 = smaller(part0 + together, parts);
        for (int64_t c = 0; c < g.channels; c += chunk) {
          const int64_t depth = smaller(chunk, g.channels - c);
          const bool last = c + depth == g.channels;
          float* sums = scratch.sums;
          for (int64_t block = 0; block < blocks; ++block) {
            const int64_t pixel = first + block * W, pixels = smaller(W, end - pixel);
            for (int64_t part = part0; part < part1; ++part, sums += H * W) {
              const int64_t begin = tile_start(part, parts, rows), count = tile_start(part + 1, parts, rows) - begin;
              const int64_t filter = filter0 + begin;
              if (last && to.residual) {
                const T* residual = to.residual + filter * g.residual[1] + pixel * g.residual[3];
                RowLines lines = lines_of(residual, g.residual[1], count, pixels);
                prefetch(lines, lines.count());
              }
              multiply_tile(count, pixels, scratch.panel + begin * depth_pitch + c * count, count * L,
                            scratch.pieces + (block * block_pitch + c) * W, depth, sums, c > 0, {}, {});
              if (last) write_pixels(to, sums, filter, count, pixel, pixels);
            }
          }
        }
      }
    }
  }

  // With eight lanes a tile's rows are read where they lie, if channels are contiguous: 64 to 256 channels at 56x56 take
  // 0.75 to 0.85 of the time. 512 channels and more are packed: rows 2 KB apart share too few sets of the first-level
  // cache (2048 channels: 1.1 of the time).
  bool rows_in_place() const {
    const bool even = g.rows.out == 1 || g.src[2] * g.rows.step == g.cols.out * g.cols.step * g.src[3];
    const bool near = plan.detail[pointwise::kWholeFilter] && g.cols.step * g.src[3] * 4 < 2048;
    return L <= 8 && std::is_same_v<T, float> && (forward || !p.has_aux()) && g.src[1] == 1 && even && near;
  }

  // Filters [filter0, filter1) in the order in which tiles read them: [tile width][channel][filter].
  void pack_filters(int64_t group, int64_t filter, int64_t filters, int64_t c, int64_t depth, float* piece) const {
    if (filters < W) zero(piece, depth * W);
    pack(Reader<T>{filters_at(group, filter) + c * g.channel_stride, g.filter_stride, g.channel_stride}, filters, depth,
         [&](int64_t j) { return piece + j * W; });
  }

  // Pixels in groups of tiles: each group is packed, then multiplied with all filters, while the lines of the next one
  // are on their way.
  void filter_lanes(const Scratch& scratch, int64_t image, int64_t group, int64_t pixel0, int64_t pixel1,
                    int64_t filter0, int64_t filter1) const {
    Target to = target(image, group);
    const bool whole = plan.detail[pointwise::kWholeFilter];
    if (whole)
      for (int64_t filter = filter0; filter < filter1; filter += W)
        pack_filters(group, filter, smaller(W, filter1 - filter), 0, g.channels,
                     scratch.pieces + (filter - filter0) * g.channels);
    const FilterSource<T> source(p, g, operands.weight, group);
    const bool unpacked = rows_in_place();
    const int64_t most = plan.detail[pointwise::kGroup] * H;
    for (int64_t first = pixel0; first < pixel1; first += most) {
      const int64_t rows = smaller(most, pixel1 - first), parts = tile_parts(rows);
      const T* in_place = static_cast<const T*>(forward ? operands.x : operands.y) + image * g.src[0] +
                          group * g.group_src + first * g.cols.step * g.src[3];
      for (int64_t part = 0; part < parts && !unpacked; ++part) {
        const int64_t begin = tile_start(part, parts, rows), end = tile_start(part + 1, parts, rows);
        for_runs(image, group, first + begin, first + end, [&](int64_t pixel, int64_t count, const Reader<T>& reader) {
          pack_rows(turned(reader), pixel - first - begin, count, end - begin, scratch.panel + begin * depth_pitch);
        });
      }
      const int64_t next_end = smaller(first + rows + most, pixel1), next_rows = next_end - first - rows;
      RowLines pixels_next = source_lines(image, group, first + rows, next_end), residual_next;
      if (to.residual && next_rows > 0) {
        const T* residual = to.residual + filter0 * g.residual[1] + (first + rows) * g.residual[3];
        residual_next = g.residual[1] == 1 ? lines_of(residual, g.residual[3], next_rows, filter1 - filter0)
                                           : lines_of(residual, g.residual[1], filter1 - filter0, next_rows);
      }
      const int64_t products = parts * div_up(filter1 - filter0, W) * div_up(g.channels, chunk);
      const int64_t pixel_lines = div_up(pixels_next.count(), products);
      const int64_t residual_lines = div_up(residual_next.count(), products);
      for (int64_t filter = filter0; filter < filter1; filter += W) {
        const int64_t filters = smaller(W, filter1 - filter);
        to.epilogue.set(to.scale ? to.scale + filter : nullptr, to.bias ? to.bias + filter : nullptr, filters);
        for (int64_t c = 0; c < g.channels; c += chunk) {
          const int64_t depth = smaller(chunk, g.channels - c);
          const bool last = c + depth == g.channels;
          const float* piece = scratch.pieces + (whole ? (filter - filter0) * g.channels + c * W : 0);
          if (!whole) pack_filters(group, filter, filters, c, depth, scratch.pieces);
          TapLines<T> lines(source, filter, c, chunk);
          const int64_t runs = whole ? 0 : div_up(lines.runs(), parts) - 1;
          float* sums = scratch.sums;
          for (int64_t part = 0; part < parts; ++part, sums += H * W) {
            const int64_t begin = tile_start(part, parts, rows), end = tile_start(part + 1, parts, rows);
            const int64_t pixel = first + begin;
            const LineRun writes =
                last ? to.lines(pixel * g.dst[3] + filter * g.dst[1], g.dst[3], end - begin) : LineRun{};
            for (int64_t run = 0; run < runs; ++run) prefetch(lines.next());
            prefetch(residual_next, residual_lines);
            const LineRun reads = whole ? pixels_next.along(pixel_lines) : lines.next();
            prefetch(pixels_next, pixel_lines - (whole ? reads.count : 0));
            if (unpacked)
              multiply_unpacked(end - begin, filters, in_place + begin * g.cols.step * g.src[3] + c,
                                g.cols.step * g.src[3], piece, depth, sums, c > 0, reads, writes);
            else
              multiply_tile(end - begin, filters, scratch.panel + begin * depth_pitch + c * (end - begin),
                            (end - begin) * L, piece, depth, sums, c > 0, reads, writes);
            if (!last) continue;
            const TileOutput<T> out{to.y + filter * g.dst[1] + pixel * g.dst[3],
                                    g.dst[3],
                                    g.dst[1],
                                    to.residual ? to.residual + filter * g.residual[1] + pixel * g.residual[3] : nullptr,
                                    g.residual[3],
                                    g.residual[1]};
            to.epilogue.write(sums, end - begin, filters, out);
          }
        }
      }
    }
  }

  // `across`: how many of a tile's width are wanted.
  static void multiply_tile(int64_t rows, int64_t across, const float* a, int64_t a_block, const float* b,
                            int64_t depth, float* sums, bool add, LineRun reads, LineRun writes) {
    if (across > L)
      multiply_chunk(rows, a, a_block, b, depth, sums, add, reads, writes);
    else
      multiply_chunk<H, 1>(rows, a, a_block, b, depth, sums, add, reads, writes);
  }
  static void multiply_unpacked(int64_t rows, int64_t across, const T* a, int64_t stride, const float* b, int64_t depth,
                                float* sums, bool add, LineRun reads, LineRun writes) {
    if constexpr (L <= 8 && std::is_same_v<T, float>) {
      if (across > L)
        multiply_in_place(rows, a, stride, b, depth, sums, add, reads, writes);
      else
        multiply_in_place<H, 1>(rows, a, stride, b, depth, sums, add, reads, writes);
    }
  }
};

template <class T>
void run(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  using namespace pointwise;
  const ConvProblem& p = plan.problem;
  Threads threads = exec.threads;
  threads.count = static_cast<int>(smaller(threads.count, plan.threads));
  const Arena arena(workspace);
  const Pointwise<T> form{plan, p, operands};
  const bool by_pixels = plan.detail[kForm] == Form::pixel_lanes;
  const int64_t pixel_splits = plan.detail[kPixelSplits], filter_splits = plan.detail[kFilterSplits];
  // Shares of filters are whole tiles.
  const int64_t unit = by_pixels ? 1 : kTileWidth<float>, units = div_up(form.g.filters, unit);
  const int64_t pixels = plan.detail[kPixels];
  parallel_tasks(threads, form.view.images * p.groups * pixel_splits * filter_splits, [&](int thread, int64_t task) {
    Arena own = arena.slice(thread, plan.detail[kThreadBytes]);
    typename Pointwise<T>::Scratch scratch;
    scratch.panel = own.take<float>(plan.detail[kPanelValues]);
    scratch.pieces = own.take<float>(plan.detail[kPiecesValues]);
    scratch.sums = own.take<float>(plan.detail[kSumValues]);
    const int64_t split = task % filter_splits, share = task / filter_splits % pixel_splits;
    const int64_t image = task / filter_splits / pixel_splits;
    const int64_t begin = share * pixels, end = smaller(begin + pixels, form.view.pixels);
    const int64_t filter0 = units * split / filter_splits * unit;
    const int64_t filter1 = smaller(units * (split + 1) / filter_splits * unit, form.g.filters);
    if (begin >= end || filter0 >= filter1) return;
    if (by_pixels)
      form.pixel_lanes(scratch, image / p.groups, image % p.groups, begin, end, filter0, filter1);
    else
      form.filter_lanes(scratch, image / p.groups, image % p.groups, begin, end, filter0, filter1);
  });
}

}  // namespace

Status direct_pointwise(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  switch (plan.problem.dtype) {
    case DType::f16: run<f16>(plan, operands, workspace, exec); break;
    case DType::bf16: run<bf16>(plan, operands, workspace, exec); break;
    default: run<float>(plan, operands, workspace, exec);
  }
  return {};
}

}  // namespace fastconv::cpu::FASTCONV_ISA
