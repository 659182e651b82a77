// Rung three: the convolution as a matrix product whose left operand exists only as index arithmetic. Reads the input
// itself, by tiles of pixels; no workspace, except for the partial sums of grad_weight.
//
// Arithmetic intensity: gemm.cuh's, 32 FLOP per byte read from the caches with 128 x 128 tiles in fp32. Device memory
// moves each operand about once (the taps that read a pixel again find it in L1 or L2): for 3x3 with 256 channels and
// filters some 500 FLOP per byte. Multiply-adds bound it: 67 TFLOP/s of fp32 on an H200.
// Against im2col: no column matrix, r * s times the input, written and read again. The price is the index arithmetic:
// two divisions, made by multiplications, for 4 or 8 values brought into shared memory, and a bounds check for each; a
// value is then used 32 to 128 times. The next rung, tensor cores, keeps all of this and replaces the multiply-adds.
#include "implicit_gemm.cuh"

#include <algorithm>
#include <numeric>
#include <string>

#include "rows.h"

namespace fastconv::FASTCONV_GPU {
namespace {

// One block: a tile of pixels x filters of one group and phase.
template <class Tile, bool ChannelsLast>
__global__ void __launch_bounds__(kGemmThreads, Tile::kBlocksPerSm) gather_kernel(const Gather<typename Tile::T> g) {
  int group, column_phase;
  const int phase = g.by_groups.quotient(blockIdx.z, group);
  const int row_phase = g.by_column_phases.quotient(phase, column_phase);
  const Axis& rows = g.rows[row_phase];
  const Axis& columns = g.columns[column_phase];
  const int pixels = g.images * rows.count * columns.count, depth = g.channels * rows.taps * columns.taps;
  const int first_pixel = blockIdx.x * Tile::kRows, first_filter = blockIdx.y * Tile::kColumns;
  if (first_pixel >= pixels) return;  // the grid has room for the largest phase
  SourcePixels<Tile, ChannelsLast> source(g, rows, columns, group, first_pixel, pixels, depth);
  FilterColumns<Tile, ChannelsLast> filter(g, rows, columns, group, first_filter, depth);
  GemmSums<Tile> sums;
  multiply<Tile>(source, filter, 0, depth, sums);
  store_pixels<Tile>(g.output, sums, rows, columns, group, first_pixel, pixels, first_filter, g.filters);
}

template <class T>
GatherLaunch<T> forward_gather(const ConvProblem& p, const ConvOperands& o) {
  GatherLaunch<T> launch;
  Gather<T>& g = launch.gather;
  g.source.dy = static_cast<const T*>(o.x);
  g.source.strides = Strides<int32_t>(p.x_strides);
  g.output.out = static_cast<T*>(o.y);
  g.output.strides = Strides<int32_t>(p.y_strides);
  g.channels = static_cast<int>(p.group_c());
  g.filters = static_cast<int>(p.group_k());
  g.filter_stride = static_cast<int>(p.weight_strides[0]);
  g.channel_stride = static_cast<int>(p.weight_strides[1]);
  launch.rows = {forward_axis(p.h, p.p(), p.r, p.stride_h, p.pad_top, p.dilation_h)};
  launch.columns = {forward_axis(p.w, p.q(), p.s, p.stride_w, p.pad_left, p.dilation_w)};
  return launch;
}

template <class T>
GatherLaunch<T> backward_gather(const ConvProblem& p, const ConvOperands& o) {
  GatherLaunch<T> launch;
  Gather<T>& g = launch.gather;
  g.source = GradOutput<T, int32_t>(p, o);
  g.output.out = static_cast<T*>(o.x);
  g.output.strides = Strides<int32_t>(p.x_strides);
  g.channels = static_cast<int>(p.group_k());
  g.filters = static_cast<int>(p.group_c());
  g.filter_stride = static_cast<int>(p.weight_strides[1]);
  g.channel_stride = static_cast<int>(p.weight_strides[0]);
  for (int64_t a = 0; a < std::min(p.stride_h, p.h); ++a)
    launch.rows.push_back(backward_axis(p.h, p.p(), p.r, p.stride_h, p.pad_top, p.dilation_h, a));
  for (int64_t a = 0; a < std::min(p.stride_w, p.w); ++a)
    launch.columns.push_back(backward_axis(p.w, p.q(), p.s, p.stride_w, p.pad_left, p.dilation_w, a));
  return launch;
}

}  // namespace

Axis forward_axis(int64_t in, int64_t out, int64_t taps, int64_t stride, int64_t pad, int64_t dilation) {
  Axis a;
  a.count = static_cast<int>(out);
  a.source = static_cast<int>(in);
  a.scale = static_cast<int>(stride);
  a.shift = static_cast<int>(-pad);
  a.shift_step = static_cast<int>(dilation);
  a.taps = static_cast<int>(taps);
  a.by_count = Divider<int32_t>(std::max<int64_t>(out, 1));
  a.by_taps = Divider<int32_t>(taps);
  return a;
}

// Tap r of the filter brings grad_output row (phase + pad - r * dilation) / stride, where that is whole.
Axis backward_axis(int64_t in, int64_t out, int64_t taps, int64_t stride, int64_t pad, int64_t dilation,
                   int64_t phase) {
  Axis a;
  a.count = static_cast<int>((in - phase + stride - 1) / stride);
  a.out_start = static_cast<int>(phase);
  a.out_step = static_cast<int>(stride);
  a.source = static_cast<int>(out);
  const int64_t step = stride / std::gcd(stride, dilation);
  int64_t start = 0;
  while (start < step && (phase + pad - start * dilation) % stride != 0) ++start;
  a.taps = start < step && start < taps ? static_cast<int>((taps - start + step - 1) / step) : 0;
  a.tap_start = static_cast<int>(start);
  a.tap_step = static_cast<int>(step);
  a.shift = static_cast<int>((phase + pad - start * dilation) / stride);
  a.shift_step = static_cast<int>(-(step * dilation / stride));
  a.by_count = Divider<int32_t>(a.count);
  a.by_taps = Divider<int32_t>(std::max(a.taps, 1));
  return a;
}

template <class T>
GatherLaunch<T> gather_of(const ConvProblem& p, const ConvOperands& o) {
  GatherLaunch<T> launch = p.pass == Pass::forward ? forward_gather<T>(p, o) : backward_gather<T>(p, o);
  Gather<T>& g = launch.gather;
  g.filter = static_cast<const T*>(o.weight);
  g.row_stride = static_cast<int>(p.weight_strides[2]);
  g.column_stride = static_cast<int>(p.weight_strides[3]);
  g.filter_group_stride = static_cast<int>(p.group_k() * p.weight_strides[0]);
  g.source_group_stride = g.channels * g.source.strides.c;
  g.mask_group_stride = g.channels * g.source.output_strides.c;
  g.output.group_stride = g.filters * g.output.strides.c;
  g.output.epilogue = Epilogue<T, int32_t>(p, o);
  g.images = static_cast<int>(p.n);
  g.groups = static_cast<int>(p.groups);
  g.channels_last = g.source.strides.c == 1 && g.channels > 1;
  launch.choose_accesses();
  return launch;
}

template <class T>
void GatherLaunch<T>::choose_accesses() {
  Gather<T>& g = gather;
  const Axis &r = rows[0], &c = columns[0];
  constexpr int kWide = 16 / sizeof(T);
  const bool one_phase = rows.size() == 1 && columns.size() == 1;
  const bool one_tap = one_phase && r.taps == 1 && c.taps == 1 && r.scale == 1 && c.scale == 1 && r.shift == 0 &&
                       c.shift == 0 && r.count == r.source && c.count == c.source;
  const int64_t plane = int64_t{r.source} * c.source;
  const auto wide_source = [&](const T* at, const Strides<int32_t>& s, int64_t group_stride) {
    if (!is_aligned(at, 16) || !is_multiple({group_stride, s.n}, kWide)) return false;
    if (g.channels_last) return s.c == 1 && is_multiple({g.channels, s.h, s.w}, kWide);
    return one_tap && is_flat(s, r.source, c.source) && is_multiple({plane, s.c}, kWide);
  };
  g.source_wide = wide_source(g.source.dy, g.source.strides, g.source_group_stride) &&
                  (!g.source.output || wide_source(g.source.output, g.source.output_strides, g.mask_group_stride));

  // Whether the filter's memory has the order of the depth, without gaps.
  const auto follows = [](int64_t size, int64_t stride, int64_t expected) { return size == 1 || stride == expected; };
  const bool all_taps = one_phase && r.tap_step == 1 && c.tap_step == 1 && r.tap_start == 0 && c.tap_start == 0;
  const bool linear =
      all_taps && (g.channels_last ? follows(g.channels, g.channel_stride, 1) &&
                                         follows(c.taps, g.column_stride, g.channels) &&
                                         follows(r.taps, g.row_stride, int64_t{c.taps} * g.channels)
                                   : follows(c.taps, g.column_stride, 1) && follows(r.taps, g.row_stride, c.taps) &&
                                         follows(g.channels, g.channel_stride, int64_t{r.taps} * c.taps));
  g.filter_along_depth = linear || g.filter_stride != 1;
  g.filter_wide = is_aligned(g.filter, 16) && is_multiple({g.filter_group_stride}, kWide) &&
                  (g.filter_along_depth
                       ? linear && is_multiple({g.filter_stride, int64_t{g.channels} * r.taps * c.taps}, kWide)
                       : is_multiple({g.filters, g.channel_stride, g.row_stride, g.column_stride}, kWide));

  const Strides<int32_t>& s = g.output.strides;
  const bool aligned = is_aligned(g.output.out, std::min<int64_t>(16, kPiece * sizeof(T))) &&
                       is_multiple({g.output.group_stride, s.n}, kPiece);
  if (aligned && s.c == 1 && is_multiple({g.filters, s.h, s.w}, kPiece))
    g.output.run = Run::filters;
  else if (aligned && one_phase && r.out_step == 1 && c.out_step == 1 && is_flat(s, r.count, c.count) &&
           is_multiple({int64_t{r.count} * c.count, s.c}, kPiece))
    g.output.run = Run::pixels;
}

template <class T>
Status GatherLaunch<T>::run(int64_t tile, void* stream) const {
  Gather<T> g = gather;
  g.by_channels = Divider<int32_t>(std::max(g.channels, 1));
  g.by_groups = Divider<int32_t>(g.groups);
  // As many phases at once as the arguments and the grid's z have room for.
  const int64_t most_columns = std::clamp<int64_t>(65535 / g.groups, 1, kPhases);
  const int64_t most_rows = std::clamp<int64_t>(65535 / (g.groups * most_columns), 1, kPhases);
  for (size_t row = 0; row < rows.size(); row += most_rows)
    for (size_t column = 0; column < columns.size(); column += most_columns) {
      g.row_phases = static_cast<int>(std::min<size_t>(most_rows, rows.size() - row));
      g.column_phases = static_cast<int>(std::min<size_t>(most_columns, columns.size() - column));
      g.by_column_phases = Divider<int32_t>(g.column_phases);
      std::copy_n(rows.begin() + row, g.row_phases, g.rows);
      std::copy_n(columns.begin() + column, g.column_phases, g.columns);
      // The first phase is the largest.
      const int64_t pixels = int64_t{g.images} * g.rows[0].count * g.columns[0].count;
      const TileSize size = kTileSizes[tile];
      const dim3 grid{static_cast<unsigned>(div_up(pixels, size.rows)),
                      static_cast<unsigned>(div_up(g.filters, size.columns)),
                      static_cast<unsigned>(g.row_phases * g.column_phases * g.groups)};
      const Status status = with_tile<T>(tile, [&](auto t) {
        using Tile = decltype(t);
        return launch("implicit_gemm", g.channels_last ? gather_kernel<Tile, true> : gather_kernel<Tile, false>, grid,
                      dim3{kGemmThreads, 1, 1}, 0, stream, g);
      });
      if (!status) return status;
    }
  return {};
}

GemmChoice predict_tile(DType dtype, int64_t tile, const std::vector<GemmSize>& products) {
  // H200: 67 TFLOP/s of fp32 in 132 multiprocessors, half of it in fp64. The tiles' shares of it are assumed, from what
  // their accesses of shared memory leave to multiply-adds; not measured yet.
  constexpr double kMultiprocessors = 132, kMacsPerSecond = 67e12 / 2 / kMultiprocessors;
  constexpr double kShare[kTiles] = {0.75, 0.55, 0.5, 0.65};
  const TileSize size = kTileSizes[tile];
  GemmChoice c;
  c.tile = tile;
  for (const GemmSize& g : products) {
    const int64_t blocks = div_up(g.rows, size.rows) * div_up(g.columns, size.columns) * g.batch;
    c.blocks += blocks;
    c.macs += blocks * size.rows * size.columns * div_up(g.depth, 8) * 8;
  }
  if (c.blocks == 0) return c;
  // Blocks are dealt out evenly: the time of the multiprocessor that got most.
  const double each = static_cast<double>(c.macs) / static_cast<double>(c.blocks);
  const double rate = kMacsPerSecond * kShare[tile] * (dtype == DType::f64 ? 0.5 : 1);
  c.seconds = static_cast<double>(div_up(c.blocks, static_cast<int64_t>(kMultiprocessors))) * each / rate;
  return c;
}

GemmChoice choose_tile(DType dtype, const std::vector<GemmSize>& products) {
  GemmChoice best;
  for (int64_t tile = 0; tile < kTiles; ++tile) {
    if (!has_tile(dtype, tile)) continue;
    const GemmChoice c = predict_tile(dtype, tile, products);
    if (best.macs == 0 || c.seconds < best.seconds) best = c;
  }
  return best;
}

double predicted_seconds(double seconds, int64_t bytes, int launches) {
  constexpr double kBytesPerSecond = 0.85 * 4.8e12, kLaunch = 3e-6;
  return launches * kLaunch + std::max(seconds, static_cast<double>(bytes) / kBytesPerSecond);
}

Status refuse_large(const ConvProblem& p) {
  if (!fits_int32(p)) return Status::refuse("beyond 2^31 elements; direct takes it");
  if (std::max(p.h + p.pad_top + p.pad_bottom, p.w + p.pad_left + p.pad_right) > -int64_t{kOutside})
    return Status::refuse("an image side beyond 2^30; direct takes it");
  if (p.groups > 65535) return Status::refuse("more than 65535 groups, the most that a grid takes");
  if (std::max(p.k, p.c) > int64_t{65535} * 32) return Status::refuse("more filters or channels than a grid takes");
  return {};
}

Status implicit_gemm_supports(const ConvProblem& p) { return refuse_large(p); }

void implicit_gemm_plan(const ConvProblem& p, int, ConvPlan& plan) {
  if (p.pass == Pass::grad_weight) {
    const WeightPlan w = plan_weight(p.dtype, p.n * p.p() * p.q(), p.group_c() * p.r * p.s, p.group_k(), p.groups,
                                     p.bias);
    plan.workspace_bytes = w.partial_bytes;
    plan.executed_macs = w.macs;
    plan.detail[0] = w.tile;
    plan.detail[1] = w.splits;
    plan.cost = predicted_seconds(w.seconds, p.minimum_bytes() + 2 * w.partial_bytes, 2);
    return;
  }
  const GatherLaunch<float> launch = gather_of<float>(p, {});
  std::vector<GemmSize> sizes;
  const Gather<float>& g = launch.gather;
  for (const Axis& r : launch.rows)
    for (const Axis& c : launch.columns)
      sizes.push_back({p.n * r.count * c.count, g.filters, int64_t{g.channels} * r.taps * c.taps, p.groups});
  const GemmChoice choice = choose_tile(p.dtype, sizes);
  plan.executed_macs = choice.macs;
  plan.detail[0] = choice.tile;
  plan.cost = predicted_seconds(choice.seconds, p.minimum_bytes(), 1);
}

Status implicit_gemm_run(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  const ConvProblem& p = plan.problem;
  return with_float(p.dtype, [&](auto v) {
    using T = decltype(v);
    if (p.pass != Pass::grad_weight) return gather_of<T>(p, operands).run(plan.detail[0], exec.stream);
    WeightLaunch<T> launch = weight_gradient_of<T>(p, operands, workspace);
    const Status status = launch.run(plan.detail[0], plan.detail[1], 0, exec.stream);
    return status ? launch.reduce(plan.detail[1], exec.stream) : status;
  });
}

template struct GatherLaunch<float>;
template struct GatherLaunch<double>;
template struct GatherLaunch<f16>;
template struct GatherLaunch<bf16>;
template GatherLaunch<float> gather_of(const ConvProblem&, const ConvOperands&);
template GatherLaunch<double> gather_of(const ConvProblem&, const ConvOperands&);
template GatherLaunch<f16> gather_of(const ConvProblem&, const ConvOperands&);
template GatherLaunch<bf16> gather_of(const ConvProblem&, const ConvOperands&);

}  // namespace fastconv::FASTCONV_GPU
