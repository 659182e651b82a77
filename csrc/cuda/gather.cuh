// A convolution's sums as a matrix product whose left operand is never stored: index arithmetic finds each value.
//
// Forward and grad_input are one shape of computation, as on the CPU (cpu/gather.h):
//
//     out[i][j][f] = sum over taps t, channels c:  source[c][i * scale + shift_t] * filter[t][c][f]
//
// Rows of the product are output pixels, columns are filters, its depth runs over channels and taps. grad_input with
// stride s falls into s x s phases (every s-th pixel along each axis): each is a convolution of stride 1 with those
// taps that meet grad_output, so that nothing is multiplied by an inserted zero. A phase without taps stores zeros.
#pragma once

#include "epilogue.cuh"
#include "gemm.cuh"

namespace fastconv::FASTCONV_GPU {

// One spatial dimension of one phase. The divider of a count makes pixel numbers into coordinates.
struct Axis {
  int count = 1, out_start = 0, out_step = 1;  // output index of the phase's pixel i: out_start + i * out_step
  int source = 1, scale = 1;                   // source index under tap t: i * scale + shift + t * shift_step
  int shift = 0, shift_step = 0;
  int taps = 1, tap_start = 0, tap_step = 1;  // the filter's index of tap t: tap_start + t * tap_step
  Divider<int32_t> by_count, by_taps;
};

Axis forward_axis(int64_t in, int64_t out, int64_t taps, int64_t stride, int64_t pad, int64_t dilation);
Axis backward_axis(int64_t in, int64_t out, int64_t taps, int64_t stride, int64_t pad, int64_t dilation, int64_t phase);

// Which values neighbour in memory, so that one access takes several.
enum class Run : int { single, filters, pixels };

// Where the sums go.
template <class T>
struct PixelOutput {
  T* out = nullptr;
  Compute<T>* sums = nullptr;  // half precision: the plain sums instead, for im2col's grad_input
  Strides<int32_t> strides;    // of either
  int group_stride = 0;        // of the first filter of each group
  Run run = Run::single;
  Epilogue<T, int32_t> epilogue;
};

constexpr int kPhases = 16;  // along each axis, in one launch: more would not fit into a launch's 4 KiB of arguments

template <class T>
struct Gather {
  GradOutput<T, int32_t> source;  // forward: the input, without a mask
  PixelOutput<T> output;
  const T* filter = nullptr;
  int filter_stride = 0, channel_stride = 0, row_stride = 0, column_stride = 0;  // of the filter
  int source_group_stride = 0, mask_group_stride = 0, filter_group_stride = 0;
  int images = 1, channels = 1, filters = 1, groups = 1;  // channels and filters of each group
  bool channels_last = false;     // the order of the depth: taps then channels, or channels then taps
  bool source_wide = false;       // 16-byte reads, along channels or along pixels
  bool filter_along_depth = true, filter_wide = false;
  Divider<int32_t> by_channels, by_groups, by_column_phases;
  int row_phases = 1, column_phases = 1;
  Axis rows[kPhases], columns[kPhases];
};

// A channel and a tap: one step of the depth.
struct DepthStep {
  int channel, row, column;
};

// The depth of one phase, in the order that the operands' memory has.
template <bool ChannelsLast>
struct DepthOrder {
  const Axis& rows;
  const Axis& columns;
  const Divider<int32_t>& by_channels;
  int channels;

  __device__ __forceinline__ DepthStep at(int d) const {
    DepthStep s;
    if constexpr (ChannelsLast) {
      s.row = columns.by_taps.quotient(by_channels.quotient(d, s.channel), s.column);
    } else {
      s.channel = rows.by_taps.quotient(columns.by_taps.quotient(d, s.column), s.row);
    }
    return s;
  }
  __device__ __forceinline__ void next(DepthStep& s) const {
    if constexpr (ChannelsLast) {
      if (++s.channel < channels) return;
      s.channel = 0;
      if (++s.column < columns.taps) return;
      s.column = 0;
      ++s.row;
    } else {
      if (++s.column < columns.taps) return;
      s.column = 0;
      if (++s.row < rows.taps) return;
      s.row = 0;
      ++s.channel;
    }
  }
};

// N neighbours of grad_output, or of the input, as the passes read them.
template <int N, class T>
__device__ __forceinline__ Vector<T, N> read_source(const GradOutput<T, int32_t>& source, int at, int mask_at) {
  Vector<T, N> v = load_vector<N>(source.dy + at);
  if (source.output) {
    const Vector<T, N> y = load_vector<N>(source.output + mask_at);
    for (int i = 0; i < N; ++i) v[i] = narrow<T>(source.masked(widen(v[i]), y[i]));
  }
  return v;
}

constexpr int kOutside = -(1 << 30);  // a source index that no tap brings back inside

// The left operand: a tile of pixels. Each thread keeps to its pixels and looks up another step of the depth each time.
// With the channels last it takes several channels of a pixel, otherwise several channels and taps of a pixel, so that
// neighbouring threads read neighbouring pixels; or several pixels where the window has one tap.
template <class Tile, bool ChannelsLast>
class SourcePixels {
  using T = typename Tile::T;
  using F = Fill<Tile, Tile::kRows>;
  static constexpr int kPixels = ChannelsLast ? F::kGroups : 1;

 public:
  __device__ __forceinline__ SourcePixels(const Gather<T>& gather, const Axis& row_axis, const Axis& column_axis,
                                          int group, int first_pixel, int pixels, int depth_)
      : g(gather), rows(row_axis), columns(column_axis), depth(depth_) {
    group_at = group * g.source_group_stride;
    mask_group_at = group * g.mask_group_stride;
    for (int i = 0; i < kPixels; ++i) {
      const int pixel = first_pixel + (ChannelsLast    ? F::index_of_run(i)
                                       : g.source_wide ? F::index_of_row()
                                                       : static_cast<int>(threadIdx.x) % Tile::kRows);
      int column, row;
      image[i] = rows.by_count.quotient(columns.by_count.quotient(pixel, column), row);
      h[i] = pixel < pixels ? row * rows.scale + rows.shift : kOutside;
      w[i] = column * columns.scale + columns.shift;
    }
  }

  __device__ __forceinline__ void load(int first) {
    const DepthOrder<ChannelsLast> order{rows, columns, g.by_channels, g.channels};
    if constexpr (ChannelsLast) {
      int d = first + F::depth_of_run();
      DepthStep step = order.at(d);
      if (g.source_wide) {
        for (int i = 0; i < kPixels; ++i) values[i] = read<F::kVector>(i, step, d);
      } else {
        for (int j = 0; j < F::kVector; ++j, ++d, order.next(step))
          for (int i = 0; i < kPixels; ++i) values[i][j] = read<1>(i, step, d)[0];
      }
    } else if (g.source_wide) {
      for (int i = 0; i < F::kGroups; ++i) {
        const int d = first + F::depth_of_row(i);
        values[i] = read<F::kVector>(0, DepthStep{d, 0, 0}, d);
      }
    } else {
      int d = first + depth_of_pixel();
      DepthStep step = order.at(d);
      for (int i = 0; i < F::kValues; ++i, ++d, order.next(step))
        values[i / F::kVector][i % F::kVector] = read<1>(0, step, d)[0];
    }
  }

  __device__ __forceinline__ void store(typename Tile::Sum* shared) const {
    if constexpr (ChannelsLast) {
      F::store_runs(shared, values);
    } else if (g.source_wide) {
      F::store_rows(shared, values);
    } else {
      for (int i = 0; i < F::kValues; ++i)
        shared[(depth_of_pixel() + i) * F::kPitch + threadIdx.x % Tile::kRows] =
            widen(values[i / F::kVector][i % F::kVector]);
    }
  }

 private:
  static __device__ __forceinline__ int depth_of_pixel() { return threadIdx.x / Tile::kRows * F::kValues; }

  // N neighbours from pixel i's channel and tap on; zeros outside of the image and beyond the depth.
  template <int N>
  __device__ __forceinline__ Vector<T, N> read(int i, const DepthStep& step, int d) const {
    const int ih = h[i] + step.row * rows.shift_step, iw = w[i] + step.column * columns.shift_step;
    if (d >= depth || static_cast<unsigned>(ih) >= static_cast<unsigned>(rows.source) ||
        static_cast<unsigned>(iw) >= static_cast<unsigned>(columns.source)) {
      Vector<T, N> zero;
      for (int j = 0; j < N; ++j) zero[j] = narrow<T>(0);
      return zero;
    }
    const int at = group_at + g.source.strides.at(image[i], step.channel, ih, iw);
    const int mask_at =
        g.source.output ? mask_group_at + g.source.output_strides.at(image[i], step.channel, ih, iw) : 0;
    return read_source<N>(g.source, at, mask_at);
  }

  const Gather<T>& g;
  const Axis& rows;
  const Axis& columns;
  int depth, group_at, mask_group_at;
  int image[kPixels], h[kPixels], w[kPixels];
  typename F::Values values[F::kGroups];
};

// The right operand: a tile of filters, read along the depth or along the filters.
template <class Tile, bool ChannelsLast>
class FilterColumns {
  using T = typename Tile::T;
  using F = Fill<Tile, Tile::kColumns>;

 public:
  __device__ __forceinline__ FilterColumns(const Gather<T>& gather, const Axis& row_axis, const Axis& column_axis,
                                           int group, int first_filter, int depth_)
      : g(gather), rows(row_axis), columns(column_axis), depth(depth_), first_index(first_filter),
        base(g.filter + group * g.filter_group_stride) {}

  __device__ __forceinline__ void load(int first) {
    const DepthOrder<ChannelsLast> order{rows, columns, g.by_channels, g.channels};
    if (g.filter_along_depth) {
      int d = first + F::depth_of_run();
      if (g.filter_wide) {  // then the filter's memory has the order of the depth
        for (int i = 0; i < F::kGroups; ++i) {
          const int f = first_index + F::index_of_run(i);
          values[i] = f < g.filters && d < depth ? load_vector<F::kVector>(base + f * g.filter_stride + d) : F::zero();
        }
      } else {
        DepthStep step = order.at(d);
        for (int j = 0; j < F::kVector; ++j, ++d, order.next(step)) {
          const int at = tap_offset(step);
          for (int i = 0; i < F::kGroups; ++i) {
            const int f = first_index + F::index_of_run(i);
            values[i][j] = f < g.filters && d < depth ? base[f * g.filter_stride + at] : narrow<T>(0);
          }
        }
      }
    } else {
      const int f = first_index + F::index_of_row();
      for (int i = 0; i < F::kGroups; ++i) {
        const int d = first + F::depth_of_row(i);
        const int at = f * g.filter_stride + tap_offset(order.at(d));
        if (g.filter_wide) {
          values[i] = f < g.filters && d < depth ? load_vector<F::kVector>(base + at) : F::zero();
        } else {
          for (int j = 0; j < F::kVector; ++j)
            values[i][j] = f + j < g.filters && d < depth ? base[at + j * g.filter_stride] : narrow<T>(0);
        }
      }
    }
  }

  __device__ __forceinline__ void store(typename Tile::Sum* shared) const {
    if (g.filter_along_depth)
      F::store_runs(shared, values);
    else
      F::store_rows(shared, values);
  }

 private:
  __device__ __forceinline__ int tap_offset(const DepthStep& s) const {
    return s.channel * g.channel_stride + (rows.tap_start + s.row * rows.tap_step) * g.row_stride +
           (columns.tap_start + s.column * columns.tap_step) * g.column_stride;
  }

  const Gather<T>& g;
  const Axis& rows;
  const Axis& columns;
  int depth, first_index;
  const T* base;
  typename F::Values values[F::kGroups];
};

// Finishes a tile's sums and stores them: 16 bytes at once where four filters or four pixels of a piece neighbour.
template <class Tile>
__device__ __forceinline__ void store_pixels(const PixelOutput<typename Tile::T>& o, const GemmSums<Tile>& sums,
                                             const Axis& rows, const Axis& columns, int group, int first_pixel,
                                             int pixels, int first_filter, int filters) {
  using T = typename Tile::T;
  const int first_k = group * filters;
  FASTCONV_UNROLL
  for (int a = 0; a < Tile::kRowPieces; ++a) {
    int at[kPiece], residual_at[kPiece];
    const int pixel = first_pixel + piece_row<Tile>(a);
    for (int i = 0; i < kPiece; ++i) {
      int column, row;
      const int image = rows.by_count.quotient(columns.by_count.quotient(pixel + i, column), row);
      const int h = rows.out_start + row * rows.out_step, w = columns.out_start + column * columns.out_step;
      at[i] = group * o.group_stride + o.strides.at(image, 0, h, w);
      residual_at[i] = o.epilogue.residual_strides.at(image, first_k, h, w);
    }
    FASTCONV_UNROLL
    for (int b = 0; b < Tile::kColumnPieces; ++b) {
      const int filter = first_filter + piece_column<Tile>(b);
      const auto finished = [&](int i, int j) {
        return o.epilogue.finish(sums.v[a * kPiece + i][b * kPiece + j], first_k + filter + j,
                                 residual_at[i] + (filter + j) * o.epilogue.residual_strides.c);
      };
      if (sizeof(T) < sizeof(typename Tile::Sum) && o.sums) {
        for (int i = 0; i < kPiece; ++i)
          for (int j = 0; j < kPiece; ++j)
            if (pixel + i < pixels && filter + j < filters)
              o.sums[at[i] + (filter + j) * o.strides.c] = sums.v[a * kPiece + i][b * kPiece + j];
      } else if (o.run == Run::filters) {
        for (int i = 0; i < kPiece; ++i)
          if (pixel + i < pixels && filter < filters) {
            T values[kPiece];
            for (int j = 0; j < kPiece; ++j) values[j] = finished(i, j);
            store_piece(o.out + at[i] + filter * o.strides.c, values);
          }
      } else if (o.run == Run::pixels) {
        for (int j = 0; j < kPiece; ++j)
          if (pixel < pixels && filter + j < filters) {
            T values[kPiece];
            for (int i = 0; i < kPiece; ++i) values[i] = finished(i, j);
            store_piece(o.out + at[0] + (filter + j) * o.strides.c, values);
          }
      } else {
        for (int i = 0; i < kPiece; ++i)
          for (int j = 0; j < kPiece; ++j)
            if (pixel + i < pixels && filter + j < filters) o.out[at[i] + (filter + j) * o.strides.c] = finished(i, j);
      }
    }
  }
}

}  // namespace fastconv::FASTCONV_GPU
