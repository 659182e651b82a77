// Rung two: the textbook's column matrix. The input is copied r * s times over, block by block of the batch, and the
// convolution becomes one plain matrix product, which is the 1x1 convolution of implicit_gemm.
//
// Arithmetic intensity: the product's is gemm.cuh's, 32 FLOP per byte of its reads. The matrix adds to the traffic of
// device memory: written once, and read once for each 128 filters; with 3x3 and 128 filters that is
// 2 * 128 FLOP for each 8 bytes of fp32, 32 FLOP per byte, twice what an H200 needs (14) to be bound by multiply-adds,
// but below 64 filters memory bounds it. It takes up to 256 MiB besides.
// Against direct: tiles in registers and shared memory. The next rung, implicit_gemm, leaves the matrix out.
#include "im2col.cuh"

#include <algorithm>

#include "rows.h"

namespace fastconv::FASTCONV_GPU {
namespace {

constexpr int64_t kColumnBytes = int64_t{256} << 20;
enum Detail { kTile, kImages, kRows, kSplits };  // of a block of the batch; the splits in each block

struct Blocks {
  int64_t images, rows, count;
  int64_t column_bytes, matrix_bytes;  // of one output pixel, and of the largest block's matrix
};

// Columns of the gradient are sums, in fp32 for half precision too.
int64_t column_size(const ConvProblem& p) {
  return p.pass == Pass::grad_input ? std::max<int64_t>(4, size_of(p.dtype)) : size_of(p.dtype);
}

// Whole images; parts of one where even a single image's matrix is too large. grad_input takes whole images only: a
// row of the input needs the columns of several rows of the output.
Blocks blocks_of(const ConvProblem& p) {
  Blocks b{};
  b.column_bytes = p.c * p.r * p.s * column_size(p);
  const int64_t row = std::max<int64_t>(1, b.column_bytes * p.q());
  b.rows = p.pass == Pass::grad_input ? p.p() : std::clamp<int64_t>(kColumnBytes / row, 1, p.p());
  b.images = std::clamp<int64_t>(kColumnBytes / (row * b.rows), 1, p.n);
  if (b.rows < p.p()) b.images = 1;
  b.count = div_up(p.n, b.images) * div_up(p.p(), b.rows);
  b.matrix_bytes = b.images * b.rows * row;
  return b;
}

// One block of the batch: images, and rows of the output.
struct Part {
  int64_t first_image, images, first_row, rows;
};

template <class F>
Status for_each_part(const ConvProblem& p, const ConvPlan& plan, F&& f) {
  for (int64_t n = 0; n < p.n; n += plan.detail[kImages])
    for (int64_t row = 0; row < p.p(); row += plan.detail[kRows]) {
      const Status status = f(Part{n, std::min(plan.detail[kImages], p.n - n), row,
                                   std::min(plan.detail[kRows], p.p() - row)});
      if (!status) return status;
    }
  return {};
}

// The matrix lies with channels neighbouring if the input's do.
ColumnShape shape_of(const ConvProblem& p, const Part& part) {
  ColumnShape g;
  g.x = Strides<int32_t>(p.x_strides);
  g.rows = forward_axis(p.h, part.rows, p.r, p.stride_h, p.pad_top - part.first_row * p.stride_h, p.dilation_h);
  g.columns = forward_axis(p.w, p.q(), p.s, p.stride_w, p.pad_left, p.dilation_w);
  g.images = static_cast<int>(part.images);
  g.channels = static_cast<int>(p.group_c());
  g.groups = static_cast<int>(p.groups);
  g.depth = static_cast<int>(p.group_c() * p.r * p.s);
  g.pixels = static_cast<int>(part.images * part.rows * p.q());
  g.by_channels = Divider<int32_t>(std::max<int64_t>(1, p.group_c()));
  g.matrix.channels_last = layout_of(p.weight_sizes(), p.weight_strides) == Layout::nhwc;
  const bool channels_neighbour = p.x_strides[1] == 1 && p.group_c() > 1;
  g.matrix.depth_stride = channels_neighbour ? 1 : g.pixels;
  g.matrix.pixel_stride = channels_neighbour ? g.depth : 1;
  g.matrix.group_stride = g.depth * g.pixels;
  return g;
}

// The matrix as an image with one channel for each of its rows.
Strides<int32_t> matrix_strides(const ColumnShape& g) {
  Strides<int32_t> s;
  s.w = g.matrix.pixel_stride;
  s.h = g.columns.count * s.w;
  s.n = g.rows.count * s.h;
  s.c = g.matrix.depth_stride;
  return s;
}

Axis pixel_axis(int64_t count) { return forward_axis(count, count, 1, 1, 0, 1); }

template <class T>
Status unfold(const ConvProblem& p, const ColumnShape& g, const Part& part, const void* x, void* matrix, void* stream) {
  using Word = std::conditional_t<sizeof(T) == 2, uint16_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>;
  const Word* from = static_cast<const Word*>(x) + part.first_image * p.x_strides[0];
  Word* to = static_cast<Word*>(matrix);
  const unsigned groups = static_cast<unsigned>(g.groups);
  const dim3 threads{kColumnThreads, 1, 1};
  if (g.matrix.depth_stride != 1)
    return launch("im2col unfold", unfold_pixels<Word>,
                  dim3{static_cast<unsigned>(div_up(g.pixels, kColumnThreads)),
                       static_cast<unsigned>(div_up(g.depth, kColumnSteps)), groups},
                  threads, 0, stream, g, from, to);
  constexpr int kWide = 16 / sizeof(T);
  const bool wide = g.matrix.channels_last && g.x.c == 1 && is_aligned(from, 16) &&
                    is_multiple({g.channels, g.x.n, g.x.h, g.x.w}, kWide);
  const int64_t vectors = g.depth / (wide ? kWide : 1);
  return launch("im2col unfold", wide ? unfold_channels<Word, kWide> : unfold_channels<Word, 1>,
                dim3{static_cast<unsigned>(div_up(g.pixels * vectors, kColumnThreads * kColumnSteps)), groups, 1},
                threads, 0, stream, g, from, to, Divider<int32_t>(vectors));
}

// grad_output, or the output, of one part.
template <class T>
T* part_of_output(T* y, const Strides4& strides, const Part& part) {
  return y ? y + part.first_image * strides[0] + part.first_row * strides[2] : y;
}
template <class T>
GradOutput<T, int32_t> grad_output(const ConvProblem& p, const ConvOperands& o, const Part& part) {
  GradOutput<T, int32_t> dy(p, o);
  dy.dy = part_of_output(dy.dy, p.y_strides, part);
  dy.output = part_of_output(dy.output, p.aux_strides, part);
  return dy;
}

template <class T>
Status run_forward(const ConvPlan& plan, const ConvOperands& o, void* workspace, void* stream) {
  const ConvProblem& p = plan.problem;
  return for_each_part(p, plan, [&](const Part& part) {
    const ColumnShape shape = shape_of(p, part);
    const Status status = unfold<T>(p, shape, part, o.x, workspace, stream);
    if (!status) return status;
    GatherLaunch<T> product;
    Gather<T>& g = product.gather;
    g.source.dy = static_cast<const T*>(workspace);
    g.source.strides = matrix_strides(shape);
    g.source_group_stride = shape.matrix.group_stride;
    g.output.out = part_of_output(static_cast<T*>(o.y), p.y_strides, part);
    g.output.strides = Strides<int32_t>(p.y_strides);
    g.output.epilogue = Epilogue<T, int32_t>(p, o);
    g.output.epilogue.residual = part_of_output(g.output.epilogue.residual, p.aux_strides, part);
    g.filter = static_cast<const T*>(o.weight);
    g.filter_stride = static_cast<int>(p.weight_strides[0]);
    g.channel_stride = 1;
    g.filter_group_stride = static_cast<int>(p.group_k() * p.weight_strides[0]);
    g.images = shape.images;
    g.channels = shape.depth;
    g.filters = static_cast<int>(p.group_k());
    g.output.group_stride = g.filters * g.output.strides.c;
    g.groups = shape.groups;
    g.channels_last = shape.matrix.depth_stride == 1;
    product.rows = {pixel_axis(part.rows)};
    product.columns = {pixel_axis(p.q())};
    product.choose_accesses();
    return product.run(plan.detail[kTile], stream);
  });
}

template <class T>
Status run_grad_input(const ConvPlan& plan, const ConvOperands& o, void* workspace, void* stream) {
  const ConvProblem& p = plan.problem;
  return for_each_part(p, plan, [&](const Part& part) {
    const ColumnShape shape = shape_of(p, part);
    GatherLaunch<T> product;
    Gather<T>& g = product.gather;
    g.source = grad_output<T>(p, o, part);
    g.channels = static_cast<int>(p.group_k());
    g.source_group_stride = g.channels * g.source.strides.c;
    g.mask_group_stride = g.channels * g.source.output_strides.c;
    if constexpr (sizeof(T) < sizeof(Compute<T>))
      g.output.sums = static_cast<Compute<T>*>(workspace);
    else
      g.output.out = static_cast<T*>(workspace);
    g.output.strides = matrix_strides(shape);
    g.output.group_stride = shape.matrix.group_stride;
    g.filter = static_cast<const T*>(o.weight);
    g.filter_stride = 1;
    g.channel_stride = static_cast<int>(p.weight_strides[0]);
    g.filter_group_stride = static_cast<int>(p.group_k() * p.weight_strides[0]);
    g.images = shape.images;
    g.filters = shape.depth;
    g.groups = shape.groups;
    g.channels_last = g.source.strides.c == 1 && g.channels > 1;
    product.rows = {pixel_axis(p.p())};
    product.columns = {pixel_axis(p.q())};
    product.choose_accesses();
    const Status status = product.run(plan.detail[kTile], stream);
    if (!status) return status;
    const int64_t values = part.images * p.c * p.h * p.w;
    return launch("im2col fold", fold<T>, dim3{static_cast<unsigned>(div_up(values, kColumnThreads)), 1, 1},
                  dim3{kColumnThreads, 1, 1}, 0, stream, shape, static_cast<const Compute<T>*>(workspace),
                  Epilogue<T, int32_t>(p, o).bias, static_cast<T*>(o.x) + part.first_image * p.x_strides[0], Divider<int32_t>(p.stride_h),
                  Divider<int32_t>(p.stride_w), Divider<int32_t>(p.h), Divider<int32_t>(p.w), Divider<int32_t>(p.c),
                  static_cast<int>(values));
  });
}

int64_t partial_offset(const Blocks& b) { return div_up(b.matrix_bytes, 256) * 256; }

template <class T>
Status run_grad_weight(const ConvPlan& plan, const ConvOperands& o, void* workspace, void* stream) {
  const ConvProblem& p = plan.problem;
  const Blocks blocks = blocks_of(p);
  WeightLaunch<T> product = weight_gradient_of<T>(p, o, static_cast<char*>(workspace) + partial_offset(blocks));
  WeightGradient<T>& g = product.gradient;
  int64_t part_index = 0;
  const Status status = for_each_part(p, plan, [&](const Part& part) {
    const ColumnShape shape = shape_of(p, part);
    const Status unfolded = unfold<T>(p, shape, part, o.x, workspace, stream);
    if (!unfolded) return unfolded;
    g.x = static_cast<const T*>(workspace);
    g.x_strides = matrix_strides(shape);
    g.x_group_stride = shape.matrix.group_stride;
    g.dy = grad_output<T>(p, o, part);
    g.rows = pixel_axis(part.rows);
    g.columns = pixel_axis(p.q());
    g.pixels = shape.pixels;
    g.channels = shape.depth;
    g.channels_last = shape.matrix.depth_stride == 1;
    product.choose_accesses();
    return product.run(plan.detail[kTile], plan.detail[kSplits], part_index++ * plan.detail[kSplits], stream);
  });
  if (!status) return status;
  product.output.channel_stride = 1;
  return product.reduce(blocks.count * plan.detail[kSplits], stream);
}

}  // namespace

Status im2col_supports(const ConvProblem& p) {
  const Status large = refuse_large(p);
  if (!large) return large;
  if (layout_of(p.weight_sizes(), p.weight_strides) == Layout::strided)
    return Status::refuse("takes filters that are dense in nchw or nhwc order");
  if (blocks_of(p).matrix_bytes > int64_t{1} << 30)
    return Status::refuse("the column matrix of one image would take more than 1 GiB; implicit_gemm needs none");
  if (p.group_c() * p.r * p.s > int64_t{65535} * kColumnSteps)
    return Status::refuse("more channels and taps than a grid takes");
  return {};
}

void im2col_plan(const ConvProblem& p, int, ConvPlan& plan) {
  const Blocks b = blocks_of(p);
  const int64_t depth = p.group_c() * p.r * p.s, pixels = b.images * b.rows * p.q();
  plan.detail[kImages] = b.images;
  plan.detail[kRows] = b.rows;
  plan.workspace_bytes = b.matrix_bytes;
  // The matrix is written once, and read once for each row of tiles of the product's other side.
  const int64_t matrix = p.n * p.p() * p.q() * b.column_bytes;
  double product = 0;
  if (p.pass == Pass::grad_weight) {
    const WeightPlan w = plan_weight(p.dtype, pixels, depth, p.group_k(), p.groups, p.bias);
    plan.detail[kTile] = w.tile;
    plan.detail[kSplits] = w.splits;
    plan.workspace_bytes = partial_offset(b) + b.count * w.partial_bytes;
    plan.executed_macs = b.count * w.macs;
    const int64_t reads = div_up(p.group_k(), kTileSizes[w.tile].columns);
    product = predicted_seconds(b.count * w.seconds, p.minimum_bytes() + reads * matrix, static_cast<int>(b.count) + 1);
  } else {
    const bool forward = p.pass == Pass::forward;
    const GemmChoice c = choose_tile(
        p.dtype, {{pixels, forward ? p.group_k() : depth, forward ? depth : p.group_k(), p.groups}});
    plan.detail[kTile] = c.tile;
    plan.executed_macs = b.count * c.macs;
    const int64_t reads = forward ? div_up(p.group_k(), kTileSizes[c.tile].columns) : 1;
    product = predicted_seconds(b.count * c.seconds, p.minimum_bytes() + reads * matrix, static_cast<int>(b.count));
  }
  plan.cost = product + predicted_seconds(0, p.minimum_bytes() + matrix, static_cast<int>(b.count));
}

Status im2col_run(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  return with_float(plan.problem.dtype, [&](auto v) {
    using T = decltype(v);
    switch (plan.problem.pass) {
      case Pass::grad_input: return run_grad_input<T>(plan, operands, workspace, exec.stream);
      case Pass::grad_weight: return run_grad_weight<T>(plan, operands, workspace, exec.stream);
      default: return run_forward<T>(plan, operands, workspace, exec.stream);
    }
  });
}

}  // namespace fastconv::FASTCONV_GPU
