// The filter's gradient as a matrix product: sums[c, r, s][k] = sum over pixels of input * grad_output.
//
// Its depth is every output pixel of the batch, its result is small: blocks share the pixels in splits whose number
// follows from the problem alone, each writes partial sums, and a second kernel adds them in a fixed order. The
// gradient of the bias comes along as one more row, in which the input is 1.
#pragma once

#include "gather.cuh"

namespace fastconv::FASTCONV_GPU {

template <class T>
struct WeightGradient {
  const T* x = nullptr;
  Strides<int32_t> x_strides;
  GradOutput<T, int32_t> dy;
  int x_group_stride = 0, dy_group_stride = 0, mask_group_stride = 0;
  Axis rows, columns;  // as in the forward pass
  int pixels = 0, split_pixels = 0;
  int channels = 1, filters = 1, groups = 1;  // channels and filters of each group
  int depth = 0;                              // channels * taps: the rows of the product but for the bias
  int bias = 0;                               // 1: one more row
  int pitch = 0;                              // rows of the product, a multiple of 4
  bool channels_last = false;                 // the order of the rows
  bool dy_along_pixels = true, dy_wide = false;
  Divider<int32_t> by_channels, by_groups;
  Compute<T>* partial = nullptr;  // [split][filter of all groups][pitch]
};

struct PixelIndex {
  int image, row, column;
};
__device__ __forceinline__ PixelIndex pixel_at(const Axis& rows, const Axis& columns, int pixel) {
  PixelIndex at;
  at.image = rows.by_count.quotient(columns.by_count.quotient(pixel, at.column), at.row);
  return at;
}

template <class T>
__device__ __forceinline__ DepthStep weight_step(const WeightGradient<T>& g, int row) {
  return g.channels_last ? DepthOrder<true>{g.rows, g.columns, g.by_channels, g.channels}.at(row)
                         : DepthOrder<false>{g.rows, g.columns, g.by_channels, g.channels}.at(row);
}

// The left operand: input values under a tile of channels and taps. Wide: a thread takes several channels of a pixel in
// one access. Otherwise it takes one pixel under several taps, so that neighbouring threads read neighbouring pixels.
template <class Tile, bool Wide>
class InputTaps {
  using T = typename Tile::T;
  using F = Fill<Tile, Tile::kRows>;
  static constexpr int kTaps = Wide ? 1 : F::kValues;
  static constexpr int kTapStep = kGemmThreads / Tile::kDepth;  // not wide: between a thread's taps

 public:
  __device__ __forceinline__ InputTaps(const WeightGradient<T>& gradient, int group, int first_row, int last_)
      : g(gradient), last(last_) {
    for (int i = 0; i < kTaps; ++i) {
      const int of_tile = Wide ? F::index_of_row() : static_cast<int>(threadIdx.x) / Tile::kDepth + i * kTapStep;
      const int row = first_row + of_tile;
      const DepthStep step = weight_step(g, row);
      h[i] = step.row * g.rows.shift_step + g.rows.shift;
      w[i] = step.column * g.columns.shift_step + g.columns.shift;
      at[i] = group * g.x_group_stride + step.channel * g.x_strides.c;
      if (row >= g.depth) h[i] = row == g.depth && g.bias ? kOnes : kOutside;
    }
  }

  __device__ __forceinline__ void load(int first) {
    if constexpr (Wide) {
      for (int i = 0; i < F::kGroups; ++i) values[i] = read<F::kVector>(0, first + F::depth_of_row(i));
    } else {
      const int pixel = first + static_cast<int>(threadIdx.x) % Tile::kDepth;
      const PixelIndex p = pixel_at(g.rows, g.columns, pixel);
      for (int i = 0; i < kTaps; ++i) values[i / F::kVector][i % F::kVector] = read<1>(i, p, pixel)[0];
    }
  }

  __device__ __forceinline__ void store(typename Tile::Sum* shared) const {
    if constexpr (Wide) {
      F::store_rows(shared, values);
    } else {
      for (int i = 0; i < kTaps; ++i)
        shared[threadIdx.x % Tile::kDepth * F::kPitch + threadIdx.x / Tile::kDepth + i * kTapStep] =
            widen(values[i / F::kVector][i % F::kVector]);
    }
  }

 private:
  static constexpr int kOnes = kOutside + 1;  // in place of a source index: the row of the bias

  template <int N>
  __device__ __forceinline__ Vector<T, N> read(int i, int pixel) const {
    return read<N>(i, pixel_at(g.rows, g.columns, pixel), pixel);
  }
  template <int N>
  __device__ __forceinline__ Vector<T, N> read(int i, const PixelIndex& p, int pixel) const {
    const int ih = p.row * g.rows.scale + h[i], iw = p.column * g.columns.scale + w[i];
    if (pixel < last && static_cast<unsigned>(ih) < static_cast<unsigned>(g.rows.source) &&
        static_cast<unsigned>(iw) < static_cast<unsigned>(g.columns.source))
      return load_vector<N>(g.x + at[i] + g.x_strides.at(p.image, 0, ih, iw));
    Vector<T, N> other;
    for (int j = 0; j < N; ++j) other[j] = narrow<T>(0);
    if (h[i] == kOnes && pixel < last) other[0] = narrow<T>(1);
    return other;
  }

  const WeightGradient<T>& g;
  int last;
  int h[kTaps], w[kTaps], at[kTaps];
  typename F::Values values[F::kGroups];
};

// The right operand: grad_output of a tile of filters, read along the filters or along the pixels.
template <class Tile>
class GradFilters {
  using T = typename Tile::T;
  using F = Fill<Tile, Tile::kColumns>;

 public:
  __device__ __forceinline__ GradFilters(const WeightGradient<T>& gradient, int group, int first_filter, int last_)
      : g(gradient), last(last_), first_index(first_filter), group_at(group * g.dy_group_stride),
        mask_group_at(group * g.mask_group_stride) {}

  __device__ __forceinline__ void load(int first) {
    if (g.dy_along_pixels) {
      const int pixel = first + F::depth_of_run();
      PixelIndex p = pixel_at(g.rows, g.columns, pixel);
      if (g.dy_wide) {
        for (int i = 0; i < F::kGroups; ++i) values[i] = read<F::kVector>(p, pixel, first_index + F::index_of_run(i));
      } else {
        for (int j = 0; j < F::kVector; ++j) {
          for (int i = 0; i < F::kGroups; ++i)
            values[i][j] = read<1>(p, pixel + j, first_index + F::index_of_run(i))[0];
          if (++p.column == g.columns.count) {
            p.column = 0;
            if (++p.row == g.rows.count) {
              p.row = 0;
              ++p.image;
            }
          }
        }
      }
    } else {
      const int filter = first_index + F::index_of_row();
      for (int i = 0; i < F::kGroups; ++i) {
        const int pixel = first + F::depth_of_row(i);
        const PixelIndex p = pixel_at(g.rows, g.columns, pixel);
        if (g.dy_wide)
          values[i] = read<F::kVector>(p, pixel, filter);
        else
          for (int j = 0; j < F::kVector; ++j) values[i][j] = read<1>(p, pixel, filter + j)[0];
      }
    }
  }

  __device__ __forceinline__ void store(typename Tile::Sum* shared) const {
    if (g.dy_along_pixels)
      F::store_runs(shared, values);
    else
      F::store_rows(shared, values);
  }

 private:
  template <int N>
  __device__ __forceinline__ Vector<T, N> read(const PixelIndex& p, int pixel, int filter) const {
    if (pixel < last && filter < g.filters) {
      const int mask_at = g.dy.output ? mask_group_at + g.dy.output_strides.at(p.image, filter, p.row, p.column) : 0;
      return read_source<N>(g.dy, group_at + g.dy.strides.at(p.image, filter, p.row, p.column), mask_at);
    }
    Vector<T, N> zero;
    for (int j = 0; j < N; ++j) zero[j] = narrow<T>(0);
    return zero;
  }

  const WeightGradient<T>& g;
  int last, first_index, group_at, mask_group_at;
  typename F::Values values[F::kGroups];
};

// Where the sum of all splits goes.
template <class T>
struct WeightOutput {
  T* weight = nullptr;
  T* grad_bias = nullptr;
  int filter_stride = 0, channel_stride = 0, row_stride = 0, column_stride = 0;
};

struct WeightPlan {
  int64_t tile = 0, splits = 1, partial_bytes = 0, macs = 0;
  double seconds = 0;
};
// depth: channels of a group times taps. Splits are of the pixels.
WeightPlan plan_weight(DType, int64_t pixels, int64_t depth, int64_t filters, int64_t groups, bool bias);

template <class T>
struct WeightLaunch {
  WeightGradient<T> gradient;
  WeightOutput<T> output;
  bool x_wide = false;

  void choose_accesses();
  // Writes partial sums number first_split and following.
  Status run(int64_t tile, int64_t splits, int64_t first_split, void* stream) const;
  Status reduce(int64_t splits, void* stream) const;
};
template <class T>
WeightLaunch<T> weight_gradient_of(const ConvProblem&, const ConvOperands&, void* partial);

}  // namespace fastconv::FASTCONV_GPU
