// grad_weight and grad_bias of implicit_gemm: partial sums over splits of the pixels, then their sum.
//
// Arithmetic intensity: gemm.cuh's while multiplying. The partial sums add 8 bytes for each weight and split, written
// and read once; with 256 or more pixels in a split at least 64 FLOP per byte, so the multiply-adds still bound it.
#include <algorithm>

#include "implicit_gemm.cuh"

namespace fastconv::FASTCONV_GPU {
namespace {

// One block: a tile of (channels and taps) x filters, over one split of the pixels.
template <class Tile, bool Wide>
__global__ void __launch_bounds__(kGemmThreads, Tile::kBlocksPerSm)
    weight_kernel(const WeightGradient<typename Tile::T> g) {
  using Sum = typename Tile::Sum;
  int group;
  const int split = g.by_groups.quotient(blockIdx.z, group);
  const int first = split * g.split_pixels;
  const int last = g.pixels - first < g.split_pixels ? g.pixels : first + g.split_pixels;
  const int first_row = blockIdx.x * Tile::kRows, first_filter = blockIdx.y * Tile::kColumns;
  InputTaps<Tile, Wide> input(g, group, first_row, last);
  GradFilters<Tile> grad(g, group, first_filter, last);
  GemmSums<Tile> sums;
  multiply<Tile>(input, grad, first, last, sums);

  Sum* to = g.partial + static_cast<int64_t>(blockIdx.z) * g.filters * g.pitch;
  for (int a = 0; a < Tile::kRowPieces; ++a)
    for (int b = 0; b < GemmSums<Tile>::kColumns; ++b) {
      const int row = first_row + piece_row<Tile>(a);
      const int filter = first_filter + piece_column<Tile>(b / kPiece) + b % kPiece;
      if (row >= g.pitch || filter >= g.filters) continue;
      Sum values[kPiece];
      for (int i = 0; i < kPiece; ++i) values[i] = sums.v[a * kPiece + i][b];
      store_piece(to + static_cast<int64_t>(filter) * g.pitch + row, values);
    }
}

constexpr int kReduceThreads = 256, kSlices = 8;

template <class T>
struct SliceSums {
  Compute<T> v[kReduceThreads];
};

// Adds the splits, in order. Where they are many, `slices` threads share the splits of one weight: then there are few
// weights, and one thread would wait for each split in turn.
template <class T>
__global__ void __launch_bounds__(kReduceThreads)
    reduce_kernel(const WeightGradient<T> g, const WeightOutput<T> out, int splits, int slices,
                  const Divider<int32_t> by_width) {
  SliceSums<T>& shared = static_shared<SliceSums<T>>();
  const int weights = kReduceThreads / slices;  // of this block
  const int slice = threadIdx.x / weights, each = (splits + slices - 1) / slices;
  const int element = blockIdx.x * weights + threadIdx.x % weights;
  int row;
  const int filter = by_width.quotient(element, row);
  const bool inside = filter < g.filters * g.groups;
  Compute<T> sum = 0;
  if (inside) {
    const int64_t step = static_cast<int64_t>(g.filters) * g.groups * g.pitch;
    const Compute<T>* from = g.partial + static_cast<int64_t>(filter) * g.pitch + row;
    for (int s = slice * each; s < (slice + 1) * each && s < splits; ++s) sum += from[s * step];
  }
  shared.v[threadIdx.x] = sum;
  __syncthreads();
  if (slice != 0 || !inside) return;
  for (int s = 1; s < slices; ++s) sum += shared.v[s * weights + threadIdx.x];
  if (row == g.depth) {
    out.grad_bias[filter] = narrow<T>(sum);
  } else {
    const DepthStep step = weight_step(g, row);
    out.weight[filter * out.filter_stride + step.channel * out.channel_stride + step.row * out.row_stride +
               step.column * out.column_stride] = narrow<T>(sum);
  }
}

// Whole numbers of steps, so that wide accesses stay aligned.
int64_t split_size(int64_t pixels, int64_t splits) {
  return std::max<int64_t>(1, div_up(div_up(pixels, splits), 64)) * 64;
}

}  // namespace

WeightPlan plan_weight(DType dtype, int64_t pixels, int64_t depth, int64_t filters, int64_t groups, bool bias) {
  constexpr int64_t kBlocks = 4 * 132;            // 4 on each of an H200's multiprocessors: an even load
  constexpr int64_t kFewest = 256, kMost = 4096;  // pixels of a split: work worth its partial sums, and fp32's rounding
  constexpr int64_t kPartialBytes = int64_t{256} << 20;
  const int64_t sum_bytes = dtype == DType::f64 ? 8 : 4;
  const int64_t each = filters * groups * div_up(depth + bias, kPiece) * kPiece * sum_bytes;
  WeightPlan best;
  for (int64_t tile = 0; tile < kTiles; ++tile) {
    if (!has_tile(dtype, tile)) continue;
    const int64_t blocks =
        div_up(depth + bias, kTileSizes[tile].rows) * div_up(filters, kTileSizes[tile].columns) * groups;
    if (blocks == 0) return best;
    int64_t splits = std::min(div_up(kBlocks, blocks), div_up(pixels, kFewest));
    splits = std::max(splits, div_up(pixels, kMost));
    splits = std::clamp<int64_t>(splits, 1, std::max<int64_t>(1, std::min(65535 / groups, kPartialBytes / each)));
    const int64_t size = split_size(pixels, splits);
    splits = std::max<int64_t>(1, div_up(pixels, size));
    const GemmChoice c = predict_tile(dtype, tile, {{depth + bias, filters, size, groups * splits}});
    const double seconds = predicted_seconds(c.seconds, 2 * each * splits, 0);
    if (best.seconds == 0 || seconds < best.seconds) best = {tile, splits, each * splits, c.macs, seconds};
  }
  return best;
}

template <class T>
WeightLaunch<T> weight_gradient_of(const ConvProblem& p, const ConvOperands& o, void* partial) {
  WeightLaunch<T> launch;
  WeightGradient<T>& g = launch.gradient;
  g.x = static_cast<const T*>(o.x);
  g.x_strides = Strides<int32_t>(p.x_strides);
  g.dy = GradOutput<T, int32_t>(p, o);
  g.rows = forward_axis(p.h, p.p(), p.r, p.stride_h, p.pad_top, p.dilation_h);
  g.columns = forward_axis(p.w, p.q(), p.s, p.stride_w, p.pad_left, p.dilation_w);
  g.pixels = static_cast<int>(p.n * p.p() * p.q());
  g.channels = static_cast<int>(p.group_c());
  g.filters = static_cast<int>(p.group_k());
  g.groups = static_cast<int>(p.groups);
  g.x_group_stride = g.channels * g.x_strides.c;
  g.dy_group_stride = g.filters * g.dy.strides.c;
  g.mask_group_stride = g.filters * g.dy.output_strides.c;
  g.bias = p.bias;
  g.partial = static_cast<Compute<T>*>(partial);
  g.channels_last = g.x_strides.c == 1 && g.channels > 1;
  launch.output = {static_cast<T*>(o.weight), static_cast<T*>(o.grad_bias), static_cast<int>(p.weight_strides[0]),
                   static_cast<int>(p.weight_strides[1]), static_cast<int>(p.weight_strides[2]),
                   static_cast<int>(p.weight_strides[3])};
  launch.choose_accesses();
  return launch;
}

template <class T>
void WeightLaunch<T>::choose_accesses() {
  WeightGradient<T>& g = gradient;
  constexpr int kWide = 16 / sizeof(T);
  g.depth = g.channels * g.rows.taps * g.columns.taps;
  g.pitch = static_cast<int>(div_up(g.depth + g.bias, kPiece) * kPiece);
  g.by_channels = Divider<int32_t>(std::max(g.channels, 1));
  g.by_groups = Divider<int32_t>(g.groups);
  const Strides<int32_t>& x = g.x_strides;
  x_wide = g.channels_last && is_aligned(g.x, 16) && is_multiple({g.channels, g.x_group_stride, x.n, x.h, x.w}, kWide);

  g.dy_along_pixels = g.dy.strides.c != 1 || g.filters == 1;
  const auto wide = [&](const T* at, const Strides<int32_t>& s, int64_t group_stride) {
    if (!is_aligned(at, 16) || !is_multiple({group_stride, s.n}, kWide)) return false;
    if (g.dy_along_pixels)
      return is_flat(s, g.rows.count, g.columns.count) &&
             is_multiple({int64_t{g.rows.count} * g.columns.count, s.c}, kWide);
    return s.c == 1 && is_multiple({g.filters, s.h, s.w}, kWide);
  };
  g.dy_wide = wide(g.dy.dy, g.dy.strides, g.dy_group_stride) &&
              (!g.dy.output || wide(g.dy.output, g.dy.output_strides, g.mask_group_stride));
}

template <class T>
Status WeightLaunch<T>::run(int64_t tile, int64_t splits, int64_t first_split, void* stream) const {
  WeightGradient<T> g = gradient;
  const int64_t filters = int64_t{g.filters} * g.groups;
  g.split_pixels = static_cast<int>(split_size(g.pixels, splits));
  g.partial += first_split * filters * g.pitch;
  const TileSize size = kTileSizes[tile];
  const dim3 grid{static_cast<unsigned>(div_up(g.depth + g.bias, size.rows)),
                  static_cast<unsigned>(div_up(g.filters, size.columns)), static_cast<unsigned>(splits * g.groups)};
  return with_tile<T>(tile, [&](auto t) {
    using Tile = decltype(t);
    return launch("implicit_gemm weight", x_wide ? weight_kernel<Tile, true> : weight_kernel<Tile, false>, grid,
                  dim3{kGemmThreads, 1, 1}, 0, stream, g);
  });
}

template <class T>
Status WeightLaunch<T>::reduce(int64_t splits, void* stream) const {
  const int64_t width = gradient.depth + gradient.bias, weights = width * gradient.filters * gradient.groups;
  const int slices = splits < 2 * kSlices ? 1 : kSlices;
  const dim3 grid{static_cast<unsigned>(div_up(weights, kReduceThreads / slices)), 1, 1};
  return launch("implicit_gemm reduce", reduce_kernel<T>, grid, dim3{kReduceThreads, 1, 1}, 0, stream, gradient, output,
                static_cast<int>(splits), slices, Divider<int32_t>(width));
}

template struct WeightLaunch<float>;
template struct WeightLaunch<double>;
template struct WeightLaunch<f16>;
template struct WeightLaunch<bf16>;
template WeightLaunch<float> weight_gradient_of(const ConvProblem&, const ConvOperands&, void*);
template WeightLaunch<double> weight_gradient_of(const ConvProblem&, const ConvOperands&, void*);
template WeightLaunch<f16> weight_gradient_of(const ConvProblem&, const ConvOperands&, void*);
template WeightLaunch<bf16> weight_gradient_of(const ConvProblem&, const ConvOperands&, void*);

}  // namespace fastconv::FASTCONV_GPU
