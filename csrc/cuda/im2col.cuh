// The kernels around im2col's matrix product: input into columns, columns back into the input's gradient.
//
// The matrix has a row for each channel and tap, and a column for each output pixel. Which of the two neighbours in
// memory follows the input, so that both kernels read and write neighbours: pixels for nchw, channels for nhwc.
#pragma once

#include "implicit_gemm.cuh"

namespace fastconv::FASTCONV_GPU {

constexpr int kColumnThreads = 256;
constexpr int kColumnSteps = 8;  // values or vectors that a thread copies

// The matrix of a block of pixels, for all groups, in elements.
struct ColumnMatrix {
  int group_stride = 0, depth_stride = 0, pixel_stride = 0;
  bool channels_last = false;  // the order of its depth: that of the filter's memory
};

// Sizes and dividers of both kernels.
struct ColumnShape {
  ColumnMatrix matrix;
  Strides<int32_t> x;
  Axis rows, columns;  // as in the forward pass; rows.count may be a part of the image's
  int images = 1, channels = 1, groups = 1;
  int depth = 1, pixels = 1;  // of the matrix: channels * taps, images * rows * columns
  Divider<int32_t> by_channels;
};

__device__ __forceinline__ DepthStep column_step(const ColumnShape& g, int d) {
  return g.matrix.channels_last ? DepthOrder<true>{g.rows, g.columns, g.by_channels, g.channels}.at(d)
                                : DepthOrder<false>{g.rows, g.columns, g.by_channels, g.channels}.at(d);
}

// The offset of the input's value under a tap, or -1 in the padding.
__device__ __forceinline__ int input_offset(const ColumnShape& g, const PixelIndex& p, const DepthStep& step,
                                            int group) {
  const int h = p.row * g.rows.scale + g.rows.shift + step.row * g.rows.shift_step;
  const int w = p.column * g.columns.scale + g.columns.shift + step.column * g.columns.shift_step;
  if (static_cast<unsigned>(h) >= static_cast<unsigned>(g.rows.source) ||
      static_cast<unsigned>(w) >= static_cast<unsigned>(g.columns.source))
    return -1;
  return g.x.at(p.image, group * g.channels + step.channel, h, w);
}

// Input into columns, pixels neighbouring: a thread keeps its pixel, neighbouring threads read neighbouring pixels.
template <class Word>
__global__ void __launch_bounds__(kColumnThreads)
    unfold_pixels(const ColumnShape g, const Word* x, Word* columns) {
  const int pixel = blockIdx.x * kColumnThreads + threadIdx.x, group = blockIdx.z;
  if (pixel >= g.pixels) return;
  const PixelIndex p = pixel_at(g.rows, g.columns, pixel);
  const int first = blockIdx.y * kColumnSteps;
  for (int d = first; d < first + kColumnSteps && d < g.depth; ++d) {
    const int at = input_offset(g, p, column_step(g, d), group);
    columns[group * g.matrix.group_stride + d * g.matrix.depth_stride + pixel] = at < 0 ? Word(0) : x[at];
  }
}

// The same, channels neighbouring: neighbouring threads copy neighbouring channels, N at once.
template <class Word, int N>
__global__ void __launch_bounds__(kColumnThreads)
    unfold_channels(const ColumnShape g, const Word* x, Word* columns, const Divider<int32_t> by_vectors) {
  const int group = blockIdx.y;
  const int first = blockIdx.x * (kColumnThreads * kColumnSteps) + threadIdx.x;
  for (int i = 0; i < kColumnSteps; ++i) {
    int vector;
    const int pixel = by_vectors.quotient(first + i * kColumnThreads, vector);
    if (pixel >= g.pixels) return;
    const int at = input_offset(g, pixel_at(g.rows, g.columns, pixel), column_step(g, vector * N), group);
    Vector<Word, N> v;
    for (int j = 0; j < N; ++j) v[j] = 0;
    if (at >= 0) v = load_vector<N>(x + at);
    store_vector(columns + group * g.matrix.group_stride + pixel * g.matrix.pixel_stride + vector * N, v);
  }
}

// Columns into the gradient of the input: every input value adds up the columns' values that came from it, in the order
// of the taps, so no two threads write the same value and the sum is the same in every run.
template <class T>
__global__ void __launch_bounds__(kColumnThreads)
    fold(const ColumnShape g, const Compute<T>* columns, const T* bias, T* x, const Divider<int32_t> by_stride_h,
         const Divider<int32_t> by_stride_w, const Divider<int32_t> by_h, const Divider<int32_t> by_w,
         const Divider<int32_t> by_c, int values) {
  const int i = blockIdx.x * kColumnThreads + threadIdx.x;
  if (i >= values) return;
  // Threads neighbour as the input's values do.
  int image, c, h, w;
  if (g.matrix.depth_stride == 1)
    image = by_h.quotient(by_w.quotient(by_c.quotient(i, c), w), h);
  else
    image = by_c.quotient(by_h.quotient(by_w.quotient(i, w), h), c);
  int channel;
  const int group = g.by_channels.quotient(c, channel);
  const ColumnMatrix& m = g.matrix;
  const int taps = g.rows.taps * g.columns.taps;
  const int first = (m.channels_last ? channel : channel * taps) * m.depth_stride;
  const Compute<T>* from = columns + group * m.group_stride + first;
  const int tap_stride = (m.channels_last ? g.channels : 1) * m.depth_stride;
  Compute<T> sum = 0;
  for (int r = 0; r < g.rows.taps; ++r) {
    const int row_at = h - g.rows.shift - r * g.rows.shift_step;
    int between_rows;
    const int row = row_at < 0 ? -1 : by_stride_h.quotient(row_at, between_rows);
    if (row < 0 || between_rows || row >= g.rows.count) continue;
    for (int s = 0; s < g.columns.taps; ++s) {
      const int column_at = w - g.columns.shift - s * g.columns.shift_step;
      int between;
      const int column = column_at < 0 ? -1 : by_stride_w.quotient(column_at, between);
      if (column < 0 || between || column >= g.columns.count) continue;
      const int pixel = (image * g.rows.count + row) * g.columns.count + column;
      sum += from[(r * g.columns.taps + s) * tap_stride + pixel * m.pixel_stride];
    }
  }
  x[g.x.at(image, c, h, w)] = biased(sum, bias, c);
}

}  // namespace fastconv::FASTCONV_GPU
