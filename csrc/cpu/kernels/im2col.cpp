// Convolution as the textbooks have it, forward and grad_input: a matrix product and an explicit column matrix.
//
// Forward: im2col copies every pixel's window into a column, columns[tap and channel][pixel], and y = filter x columns.
// grad_input: columns = transposed filter x dy, then col2im adds every column back to where im2col would have read it.
// Both in blocks that stay in the second-level cache, so the whole column matrix (r s times the input) never exists.
//
// Arithmetic intensity: a value of the column matrix is written once and used for as many multiply-adds as there are
// filters (in grad_input channels), read once per 32 of them. So with 64 filters or more the multiply-add units bound
// it as they bound direct_gather.cpp, which wins by what the columns cost: it packs each input value once where im2col
// copies it r s times, and skips rows of padding where im2col multiplies their zeros.
#include "../im2col.h"

#include "../arena.h"
#include "epilogue.h"
#include "unfold.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// A row of tiles that is a multiple of 256 bytes apart from the next would crowd one set of the first-level cache.
template <class A>
inline int64_t pitch_of(int64_t pixels) {
  return pixels * static_cast<int64_t>(sizeof(A)) % 256 == 0 ? pixels + kLanes<A> : pixels;
}

// The packed filter: the caller's, or our own at the arena's front; grad_input's channels are the filters.
template <class A>
const A* packed_filter(const ConvPlan& plan, const ConvOperands& operands, const Execution& exec, Arena& arena) {
  A* own = arena.take<A>(im2col_blocks(plan).packed_filter);
  if (exec.prepacked) return static_cast<const A*>(exec.prepacked);
  im2col_pack_filter(plan, operands.weight, own, exec.threads);
  return own;
}

template <class T>
struct Forward {
  using A = Compute<T>;
  static constexpr int W = kTileWidth<A>;

  const ConvProblem p;
  const Im2colBlocks b;
  const ConvOperands& operands;
  const A* filter;
  const int64_t channels = p.group_c(), depth = p.r * p.s * channels, blocks = div_up(p.group_k(), W);
  const int64_t width = p.q(), image = p.p() * p.q();
  // Whether an image's rows follow each other, so that a tile may be written across them.
  const bool rows_follow = p.p() == 1 || p.q() == 1 || (p.y_strides[2] == p.q() * p.y_strides[3] &&
                                          (!p.residual || p.aux_strides[2] == p.q() * p.aux_strides[3]));

  // columns[k - k0][m - m0] for the (tap, channel) pairs [k0, k1) and the pixels [m0, m1).
  void im2col(int64_t group, int64_t k0, int64_t k1, int64_t m0, int64_t m1, A* columns, int64_t pitch) const {
    const T* x = static_cast<const T*>(operands.x) + group * channels * p.x_strides[1];
    for_each_tap(channels, k0, k1, [&](int64_t tap, int64_t channel, int64_t count, int64_t place) {
      for_each_run(p, tap, m0, m1, [&](const PixelRun& run) {
        A* to = columns + place * pitch + run.first;
        if (run.inside < run.count)
          for (int64_t c = 0; c < count; ++c) {
            zero(to + c * pitch, run.zeros);
            zero(to + c * pitch + run.zeros + run.inside, run.count - run.zeros - run.inside);
          }
        const T* from = x + run.source + channel * p.x_strides[1];
        if (run.inside > 0)
          pack(Reader<T>{from, p.stride_w * p.x_strides[3], p.x_strides[1]}, run.inside, count,
               [&](int64_t c) { return to + c * pitch + run.zeros; });
      });
    });
  }

  // Writes a tile of finished sums for the pixels from m on and one block of filters.
  void write(const Epilogue<T>& epilogue, A* sums, int64_t m, int64_t rows, int64_t first_filter,
             int64_t filters) const {
    const Strides4 &ys = p.y_strides, &rs = p.aux_strides;
    while (rows > 0) {
      const int64_t n = m / image, i = m % image / width, j = m % width;
      const int64_t piece = smaller(rows, rows_follow ? image - m % image : width - j);
      TileOutput<T> out{static_cast<T*>(operands.y) + n * ys[0] + first_filter * ys[1] + i * ys[2] + j * ys[3],
                        width == 1 ? ys[2] : ys[3], ys[1]};
      if (p.residual) {
        out.residual = static_cast<const T*>(operands.aux) + n * rs[0] + first_filter * rs[1] + i * rs[2] + j * rs[3];
        out.residual_pixel_stride = width == 1 ? rs[2] : rs[3];
        out.residual_filter_stride = rs[1];
      }
      epilogue.write(sums, piece, filters, out);
      sums += piece * W;
      m += piece;
      rows -= piece;
    }
  }

  // The product of all columns of the pixels [m0, m1) with the filter blocks [block0, block1).
  void task(Arena own, int64_t group, int64_t m0, int64_t m1, int64_t block0, int64_t block1) const {
    A* columns = own.take<A>(b.column_values);
    A* sums = own.take<A>(b.sum_values);
    const int64_t pitch = pitch_of<A>(m1 - m0), parts = tile_parts(m1 - m0), zero_offset = 0;
    Epilogue<T> epilogue;
    epilogue.activation = Activated<A>(p);
    int64_t k0 = 0;
    do {
      const int64_t k1 = smaller(k0 + b.depth, depth);
      im2col(group, k0, k1, m0, m1, columns, pitch);
      for (int64_t block = block0; block < block1; ++block) {
        const A* w = filter + ((group * blocks + block) * depth + k0) * W;
        const TileWalk walk{1, &zero_offset, &zero_offset, k1 - k0, pitch, W};
        const int64_t first = group * p.group_k() + block * W, filters = smaller(W, p.group_k() - block * W);
        if (k1 == depth) epilogue.set(scales_of<T>(p, operands, first), biases_of<T>(p, operands, first), filters);
        for (int64_t part = 0; part < parts; ++part) {
          const int64_t begin = tile_start(part, parts, m1 - m0), end = tile_start(part + 1, parts, m1 - m0);
          A* acc = sums + (b.depth < depth ? (block - block0) * (m1 - m0) + begin : 0) * W;
          tile(end - begin, columns + begin, w, walk, acc, k0 > 0);
          if (k1 == depth) write(epilogue, acc, m0 + begin, end - begin, first, filters);
        }
      }
      k0 = k1;
    } while (k0 < depth);
  }
};

template <class T>
void run_forward(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  using A = Compute<T>;
  Arena arena(workspace);
  const A* filter = packed_filter<A>(plan, operands, exec, arena);
  const Forward<T> forward{im2col_view(plan.problem), im2col_blocks(plan), operands, filter};
  Threads threads = exec.threads;
  threads.count = static_cast<int>(smaller(threads.count, plan.threads));
  const int64_t pixels = forward.p.n * forward.image, pixel_blocks = div_up(pixels, forward.b.pixels);
  const int64_t chunks = div_up(forward.blocks, forward.b.outputs);
  parallel_tasks(threads, forward.p.groups * pixel_blocks * chunks, [&](int thread, int64_t task) {
    const int64_t chunk = task % chunks, m0 = task / chunks % pixel_blocks * forward.b.pixels;
    forward.task(arena.slice(thread, forward.b.thread_bytes), task / chunks / pixel_blocks, m0,
                 smaller(m0 + forward.b.pixels, pixels), chunk * forward.b.outputs,
                 smaller((chunk + 1) * forward.b.outputs, forward.blocks));
  });
}

template <class T>
struct GradInput {
  using A = Compute<T>;
  static constexpr int W = kTileWidth<A>;

  const ConvProblem p;
  const Im2colBlocks b;
  const ConvOperands& operands;
  const A* filter;
  const int64_t filters = p.group_k(), taps = p.r * p.s, blocks = div_up(p.group_c(), W);

  // A rectangle of dx that one task owns, so that no two tasks add to the same value.
  struct Part {
    int64_t n, group, row0, row1, col0, col1, block0, block1;
    int64_t pixels() const { return (row1 - row0) * (col1 - col0); }
  };
  // The output rows and columns whose window's tap reads inside the part.
  Inside rows_of(const Part& part, int64_t r) const {
    return {r * p.dilation_h - p.pad_top - part.row0, p.stride_h, part.row1 - part.row0, 0, p.p()};
  }
  Inside cols_of(const Part& part, int64_t s) const {
    return {s * p.dilation_w - p.pad_left - part.col0, p.stride_w, part.col1 - part.col0, 0, p.q()};
  }

  // A rectangle of dy, as [filter][pixel] of the filters [f0, f1), masked.
  void pack_dy(const Part& part, const Inside& rows, const Inside& cols, int64_t f0, int64_t f1, A* packed,
               int64_t pitch) const {
    const Strides4 &ys = p.y_strides, &ms = p.aux_strides;
    const int64_t first = part.group * filters + f0;
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const T* dy = static_cast<const T*>(operands.y) + part.n * ys[0] + first * ys[1] + i * ys[2];
      Reader<T> reader{dy + cols.begin * ys[3], ys[3], ys[1]};
      if (p.has_aux()) {
        const T* mask = static_cast<const T*>(operands.aux) + part.n * ms[0] + first * ms[1] + i * ms[2];
        reader.mask = mask + cols.begin * ms[3];
        reader.mask_si = ms[3];
        reader.mask_sj = ms[1];
        reader.gradient = OutputGradient<A>(p);
      }
      A* to = packed + (i - rows.begin) * (cols.end - cols.begin);
      pack(reader, cols.end - cols.begin, f1 - f0, [&](int64_t f) { return to + f * pitch; });
    }
  }

  // Adds columns [pixel][channel block], pixels `begin` to `end` of the dy rectangle, where their tap reads x.
  void col2im(const A* columns, int64_t begin, int64_t end, const Part& part, int64_t r, int64_t s, const Inside& rows,
              const Inside& cols, A* plane) const {
    constexpr int L = kLanes<A>;
    const int64_t width = cols.end - cols.begin, part_width = part.col1 - part.col0;
    const int64_t right = s * p.dilation_w - p.pad_left - part.col0;
    int64_t i = rows.begin + begin / width, j = cols.begin + begin % width;
    for (int64_t m = begin; m < end; ++m) {
      const int64_t row = i * p.stride_h + r * p.dilation_h - p.pad_top - part.row0, col = j * p.stride_w + right;
      if (col >= 0 && col < part_width) {
        A* to = plane + (row * part_width + col) * W;
        for (int v = 0; v < kTileVectors; ++v)
          store(to + v * L, load(to + v * L) + load(columns + (m - begin) * W + v * L));
      }
      if (++j == cols.end) {
        j = cols.begin;
        ++i;
      }
    }
  }

  // All products with a rectangle of dy for the taps (r, s0) to (r, s1).
  void add_taps(const Part& part, int64_t r, int64_t s0, int64_t s1, A* packed, A* planes) const {
    const Inside rows = rows_of(part, r);
    Inside cols = cols_of(part, s0);
    for (int64_t s = s0 + 1; s < s1; ++s) {
      const Inside more = cols_of(part, s);
      if (more.begin == more.end) continue;
      if (cols.begin == cols.end) cols = more;
      cols.begin = smaller(cols.begin, more.begin);
      cols.end = larger(cols.end, more.end);
    }
    const int64_t pixels = (rows.end - rows.begin) * (cols.end - cols.begin);
    if (pixels == 0) return;
    const int64_t pitch = pitch_of<A>(pixels), parts = tile_parts(pixels), zero_offset = 0;
    alignas(64) A columns[kTileHeight * W];
    for (int64_t f0 = 0; f0 < filters; f0 += b.depth) {
      const int64_t f1 = smaller(f0 + b.depth, filters);
      pack_dy(part, rows, cols, f0, f1, packed, pitch);
      const TileWalk walk{1, &zero_offset, &zero_offset, f1 - f0, pitch, W};
      for (int64_t block = part.block0; block < part.block1; ++block)
        for (int64_t s = s0; s < s1; ++s) {
          const int64_t tap = r * p.s + s;
          const A* w = filter + (((part.group * blocks + block) * taps + tap) * filters + f0) * W;
          for (int64_t i = 0; i < parts; ++i) {
            const int64_t begin = tile_start(i, parts, pixels), end = tile_start(i + 1, parts, pixels);
            tile(end - begin, packed + begin, w, walk, columns, false);
            col2im(columns, begin, end, part, r, s, rows, cols, planes + (block - part.block0) * part.pixels() * W);
          }
        }
    }
  }

  void task(Arena own, const Part& part) const {
    A* packed = own.take<A>(b.operand_values);
    A* planes = own.take<A>(b.sum_values);
    zero(planes, (part.block1 - part.block0) * part.pixels() * W);
    for (int64_t r = 0; r < p.r; ++r)
      for (int64_t s = 0; s < p.s; s += b.row_taps) add_taps(part, r, s, s + b.row_taps, packed, planes);

    Epilogue<T> epilogue;
    const Strides4& xs = p.x_strides;
    const int64_t width = part.col1 - part.col0;
    for (int64_t block = part.block0; block < part.block1; ++block) {
      A* plane = planes + (block - part.block0) * part.pixels() * W;
      const int64_t first = part.group * p.group_c() + block * W, lanes = smaller(W, p.group_c() - block * W);
      T* x = static_cast<T*>(operands.x) + part.n * xs[0] + first * xs[1];
      epilogue.set(nullptr, biases_of<T>(p, operands, first), lanes);
      for (int64_t m = 0; m < part.pixels(); m += kTileHeight) {
        for (int64_t piece = m; piece < smaller(m + kTileHeight, part.pixels());) {
          const int64_t row = piece / width, col = piece % width;
          const int64_t count = smaller(smaller(m + kTileHeight, part.pixels()) - piece, width - col);
          epilogue.write(plane + piece * W, count, lanes,
                         TileOutput<T>{x + (part.row0 + row) * xs[2] + (part.col0 + col) * xs[3], xs[3], xs[1]});
          piece += count;
        }
      }
    }
  }
};

template <class T>
void run_grad_input(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  using A = Compute<T>;
  Arena arena(workspace);
  const A* filter = packed_filter<A>(plan, operands, exec, arena);
  const GradInput<T> grad{im2col_view(plan.problem), im2col_blocks(plan), operands, filter};
  const ConvProblem& p = grad.p;
  const Im2colBlocks& b = grad.b;
  Threads threads = exec.threads;
  threads.count = static_cast<int>(smaller(threads.count, plan.threads));
  const int64_t bands = div_up(p.h, b.rows), col_bands = div_up(p.w, b.cols), chunks = div_up(grad.blocks, b.outputs);
  parallel_tasks(threads, p.n * p.groups * bands * col_bands * chunks, [&](int thread, int64_t task) {
    const int64_t chunk = task % chunks, col = task / chunks % col_bands, row = task / chunks / col_bands % bands;
    const int64_t image = task / chunks / col_bands / bands;
    grad.task(arena.slice(thread, b.thread_bytes),
              {image / p.groups, image % p.groups, row * b.rows, smaller((row + 1) * b.rows, p.h), col * b.cols,
               smaller((col + 1) * b.cols, p.w), chunk * b.outputs, smaller((chunk + 1) * b.outputs, grad.blocks)});
  });
}

}  // namespace

Status im2col_forward(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  with_dtype(plan.problem.dtype, [&](auto v) { run_forward<decltype(v)>(plan, operands, workspace, exec); });
  return {};
}

Status im2col_grad_input(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  with_dtype(plan.problem.dtype, [&](auto v) { run_grad_input<decltype(v)>(plan, operands, workspace, exec); });
  return {};
}

}  // namespace fastconv::cpu::FASTCONV_ISA
