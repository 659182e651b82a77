// 1x1 convolutions, forward and grad_input: y[filter][pixel] = sum over c of w[filter][c] * x[c][pixel].
//
// In NCHW lanes are pixels: the filters of a task are packed once (lines of 16 channels, copied as they lie), then for
// each 32 pixels and chunk of channels the input's lines are copied next to each other and every 14 filters are
// multiplied with them; results are stored as they are. In NHWC lanes are filters and pixels the rows: the pixels of a
// task are packed (copied as they lie), then for each 32 filters and chunk the filter is turned and multiplied with every
// 14 pixels. Nothing is kept between calls: reading a weight for its hash (about 90 cycles per 32 values) would cost more.
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
    float *panel, *piece, *sums;
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

  // The lines of the source that come next: `pixels` of them from `pixel` on, channels from `channel` on.
  RowLines source_lines(int64_t image, int64_t group, int64_t pixel, int64_t pixels, int64_t channel,
                        int64_t channels) const {
    RowLines lines;
    if (pixel >= view.pixels || g.cols.step != 1) return lines;
    for_runs(image, group, pixel, smaller(pixel + pixels, view.pixels), [&](int64_t first, int64_t count,
                                                                            const Reader<T>& reader) {
      if (first != pixel) return;
      const auto* at = reinterpret_cast<const char*>(reader.p + channel * reader.sj);
      const auto before = static_cast<int64_t>(reinterpret_cast<uintptr_t>(at) % kLineBytes);
      const bool planes = reader.si == 1;
      const int64_t along = (planes ? count : channels) * static_cast<int64_t>(sizeof(T));
      lines = {at - before, (planes ? reader.sj : reader.si) * static_cast<int64_t>(sizeof(T)), planes ? channels : count,
               div_up(before + along, kLineBytes)};
    });
    return lines;
  }

  struct Target {
    Epilogue<T> epilogue;
    T* y;
    const T* residual;
    const float* scale;
    const T* bias;
    // Makes the residual of a tile ready, `across` values in each of its rows, while the tile is multiplied.
    void prefetch_residual(int64_t offset, int64_t stride, int64_t rows, int64_t across) const {
      if (!residual) return;
      constexpr int64_t bytes = sizeof(T);
      for (int64_t line = 0; line < across * bytes; line += kLineBytes)
        prefetch({reinterpret_cast<const char*>(residual + offset) + line, stride * bytes, rows});
    }
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

  void pixel_lanes(const Scratch& scratch, int64_t image, int64_t group, int64_t pixel0, int64_t pixel1,
                   int64_t filter0, int64_t filter1) const {
    const Target to = target(image, group);
    const int64_t rows = filter1 - filter0, parts = tile_parts(rows);
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t begin = tile_start(part, parts, rows), count = tile_start(part + 1, parts, rows) - begin;
      pack_rows({filters_at(group, filter0 + begin), g.channel_stride, g.filter_stride}, 0, count, count,
                scratch.panel + begin * depth_pitch);
    }
    zero(scratch.piece, chunk * W);
    for (int64_t part0 = 0; part0 < parts; part0 += pointwise::kGroupTiles) {
      const int64_t part1 = smaller(part0 + pointwise::kGroupTiles, parts);
      for (int64_t pixel = pixel0; pixel < pixel1; pixel += W) {
        const int64_t pixels = smaller(W, pixel1 - pixel);
        for (int64_t c = 0; c < g.channels; c += chunk) {
          const int64_t depth = smaller(chunk, g.channels - c);
          for_runs(image, group, pixel, pixel + pixels, [&](int64_t first, int64_t count, const Reader<T>& reader) {
            pack(reader.from(0, c), count, depth, [&](int64_t j) { return scratch.piece + j * W + first - pixel; });
          });
          float* sums = scratch.sums;
          for (int64_t part = part0; part < part1; ++part, sums += H * W) {
            const int64_t begin = tile_start(part, parts, rows), end = tile_start(part + 1, parts, rows);
            if (c + depth == g.channels)
              to.prefetch_residual((filter0 + begin) * g.residual[1] + pixel * g.residual[3], g.residual[1],
                                   end - begin, pixels);
            multiply_tile(end - begin, pixels, scratch.panel + begin * depth_pitch + c * (end - begin), (end - begin) * L,
                          scratch.piece, depth, sums, c > 0, {}, {});
            if (c + depth == g.channels) write_pixels(to, sums, filter0 + begin, end - begin, pixel, pixels);
          }
        }
      }
    }
  }

  // next_pixel: where this thread's next pixels begin, if they are this image's.
  void filter_lanes(const Scratch& scratch, int64_t image, int64_t group, int64_t pixel0, int64_t pixel1,
                    int64_t filter0, int64_t filter1, int64_t next_pixel) const {
    Target to = target(image, group);
    const int64_t rows = pixel1 - pixel0, parts = tile_parts(rows);
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t begin = tile_start(part, parts, rows), end = tile_start(part + 1, parts, rows);
      for_runs(image, group, pixel0 + begin, pixel0 + end, [&](int64_t first, int64_t count, const Reader<T>& reader) {
        pack_rows(turned(reader), first - pixel0 - begin, count, end - begin, scratch.panel + begin * depth_pitch);
      });
    }
    zero(scratch.piece, chunk * W);
    const FilterSource<T> source(p, g, operands.weight, group);
    const bool far = g.filters * g.channels * static_cast<int64_t>(sizeof(T)) > kNearBytes;
    RowLines pixels_next = source_lines(image, group, next_pixel, rows, 0, g.channels);
    const int64_t most = div_up(pixels_next.count(), parts * div_up(filter1 - filter0, W) * div_up(g.channels, chunk));
    for (int64_t part0 = 0; part0 < parts; part0 += pointwise::kGroupTiles) {
      const int64_t part1 = smaller(part0 + pointwise::kGroupTiles, parts);
      for (int64_t filter = filter0; filter < filter1; filter += W) {
        const int64_t filters = smaller(W, filter1 - filter);
        to.epilogue.set(to.scale ? to.scale + filter : nullptr, to.bias ? to.bias + filter : nullptr, filters);
        for (int64_t c = 0; c < g.channels; c += chunk) {
          const int64_t depth = smaller(chunk, g.channels - c), next = c + depth < g.channels ? c + depth : 0;
          pack(Reader<T>{filters_at(group, filter) + c * g.channel_stride, g.filter_stride, g.channel_stride}, filters,
               depth, [&](int64_t j) { return scratch.piece + j * W; });
          TapLines<T> lines(source, filter, c, chunk);
          const int64_t runs = far ? div_up(lines.runs(), part1 - part0) - 1 : 0;
          float* sums = scratch.sums;
          for (int64_t part = part0; part < part1; ++part, sums += H * W) {
            const int64_t begin = tile_start(part, parts, rows), end = tile_start(part + 1, parts, rows);
            const int64_t pixel = pixel0 + begin;
            const LineRun writes =
                next > 0 ? LineRun{} : to.lines(pixel * g.dst[3] + filter * g.dst[1], g.dst[3], end - begin);
            for (int64_t run = 0; run < runs; ++run) prefetch(lines.next());
            if (next == 0)
              to.prefetch_residual(filter * g.residual[1] + pixel * g.residual[3], g.residual[3], end - begin, filters);
            multiply_tile(end - begin, filters, scratch.panel + begin * depth_pitch + c * (end - begin), (end - begin) * L,
                          scratch.piece, depth,
                          sums, c > 0, far ? lines.next() : pixels_next.next(most), writes);
            if (next > 0) continue;
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
    scratch.piece = own.take<float>(plan.detail[kChunk] * kTileWidth<float>);
    scratch.sums = own.take<float>(kGroupTiles * kTileHeight * kTileWidth<float>);
    const int64_t split = task % filter_splits, share = task / filter_splits % pixel_splits;
    const int64_t image = task / filter_splits / pixel_splits;
    const int64_t begin = share * pixels, end = smaller(begin + pixels, form.view.pixels);
    const int64_t filter0 = units * split / filter_splits * unit;
    const int64_t filter1 = smaller(units * (split + 1) / filter_splits * unit, form.g.filters);
    if (begin >= end || filter0 >= filter1) return;
    if (by_pixels)
      form.pixel_lanes(scratch, image / p.groups, image % p.groups, begin, end, filter0, filter1);
    else
      form.filter_lanes(scratch, image / p.groups, image % p.groups, begin, end, filter0, filter1,
                        begin + pixels * div_up(threads.count, filter_splits));
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
