// Rung one: one thread for each output, which sums over the window and the channels as the definition says. Any stride,
// padding, dilation, groups, window and memory layout, and tensors beyond 2^31 elements.
//
// Arithmetic intensity: two values are read for each multiply-add, 2 FLOP for 8 bytes of fp32: 0.25 FLOP per byte. All
// but a few of these reads hit the first-level cache (a warp's 32 neighbouring outputs read 32 neighbouring inputs and
// one filter value), whose 128 bytes a cycle on each of 132 multiprocessors allow 2 x 132 x 32 / 2 x 1.98 GHz = 8
// TFLOP/s; the instructions around them (addresses, bounds, loops: some 10 for each multiply-add) allow 6. An H200
// makes 67. The next rung, direct_tiled.cuh, holds 8 x 8 sums in registers: 16 reads for 64 multiply-adds in place of
// 128.
#pragma once

#include "epilogue.cuh"

namespace fastconv::FASTCONV_GPU {

constexpr int kAnyThreads = 256;

// A long sum in chains of 128 products: in fp32 the rounding error of a sum of 4608 terms is a quarter of that of one
// running sum.
template <class Sum>
class ChainedSum {
 public:
  __device__ __forceinline__ void add(Sum a, Sum b) {
    chain_ += a * b;
    if (++length_ == 128) {
      total_ += chain_;
      chain_ = 0;
      length_ = 0;
    }
  }
  __device__ __forceinline__ Sum value() const { return total_ + chain_; }

 private:
  Sum total_ = 0, chain_ = 0;
  int length_ = 0;
};

// One spatial dimension. Output i meets source index (i * scale + shift + t * step) / divisor under tap t, if that is
// whole and inside. Forward divides by 1; grad_input by the stride, with step = -dilation.
template <class Index>
struct AnyAxis {
  Index scale = 1, shift = 0, step = 1, source = 1, taps = 1;
  Divider<Index> divisor;

  __device__ __forceinline__ bool find(Index i, Index tap, Index& at) const {
    const Index n = i * scale + shift + tap * step;
    if (n < 0) return false;
    Index remainder;
    at = divisor.quotient(n, remainder);
    return remainder == 0 && at < source;
  }
};

// Forward and grad_input: every output gathers its inputs. For grad_input the filters are the input's channels.
template <class T, class Index>
struct AnyGather {
  GradOutput<T, Index> source;  // forward: the input, without a mask
  const T* filter = nullptr;
  T* out = nullptr;
  Strides<Index> out_strides;
  Index group_stride = 0, filter_stride = 0, channel_stride = 0, row_stride = 0, column_stride = 0;  // of the filter
  Index channels = 1;  // of a group: summed over
  int64_t outputs = 0;
  bool filters_last = false;  // neighbouring threads: filters of a pixel, or pixels of a row
  Divider<Index> by_filters, by_filters_of_group, by_rows, by_columns;
  AnyAxis<Index> rows, columns;
  Epilogue<T, Index> epilogue;
};

template <class T, class Index>
__global__ void __launch_bounds__(kAnyThreads, 1) direct_any_gather(const AnyGather<T, Index> g) {
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kAnyThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kAnyThreads + threadIdx.x; i < g.outputs; i += threads) {
    const Index at = static_cast<Index>(i);
    Index image, filter, row, column, f;
    if (g.filters_last)
      image = g.by_rows.quotient(g.by_columns.quotient(g.by_filters.quotient(at, filter), column), row);
    else
      image = g.by_filters.quotient(g.by_rows.quotient(g.by_columns.quotient(at, column), row), filter);
    const Index group = g.by_filters_of_group.quotient(filter, f);
    const T* weights = g.filter + group * g.group_stride + f * g.filter_stride;
    const Index first_channel = group * g.channels;

    ChainedSum<Compute<T>> sum;
    for (Index r = 0; r < g.rows.taps; ++r) {
      Index h, w;
      if (!g.rows.find(row, r, h)) continue;
      for (Index s = 0; s < g.columns.taps; ++s) {
        if (!g.columns.find(column, s, w)) continue;
        const T* tap = weights + r * g.row_stride + s * g.column_stride;
        for (Index c = 0; c < g.channels; ++c)
          sum.add(g.source.read(image, first_channel + c, h, w), widen(tap[c * g.channel_stride]));
      }
    }
    const Index residual_at = g.epilogue.residual_strides.at(image, filter, row, column);
    g.out[g.out_strides.at(image, filter, row, column)] = g.epilogue.finish(sum.value(), filter, residual_at);
  }
}

// grad_weight: one thread for each weight and split of the pixels. Weights are numbered k c r s; the gradient of the
// bias follows, for which the input is 1.
template <class T, class Index>
struct AnyWeight {
  const T* x = nullptr;
  Strides<Index> x_strides;
  GradOutput<T, Index> dy;
  Index channels = 1, filters = 1;  // of a group
  Index rows = 1, columns = 1;      // of grad_output
  AnyAxis<Index> row_axis, column_axis;
  int64_t weights = 0, first = 0, elements = 0;  // elements: to be summed, from `first` on
  int64_t pixels = 0, split_pixels = 0, splits = 1, pitch = 0;
  Divider<Index> by_channels, by_filters, by_row_taps, by_column_taps;
  Compute<T>* partial = nullptr;  // [split][pitch]
};

template <class T, class Index>
__global__ void __launch_bounds__(kAnyThreads, 1) direct_any_weight(const AnyWeight<T, Index> g) {
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kAnyThreads;
  const int64_t sums = g.elements * g.splits;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kAnyThreads + threadIdx.x; i < sums; i += threads) {
    const int64_t split = i / g.elements, element = g.first + i % g.elements;
    const bool is_bias = element >= g.weights;
    Index r = 0, s = 0, c = 0, k, f;
    if (is_bias)
      k = static_cast<Index>(element - g.weights);
    else
      k = g.by_channels.quotient(
          g.by_row_taps.quotient(g.by_column_taps.quotient(static_cast<Index>(element), s), r), c);
    const Index channel = g.by_filters.quotient(k, f) * g.channels + c;

    const int64_t begin = split * g.split_pixels;
    const int64_t end = begin + g.split_pixels < g.pixels ? begin + g.split_pixels : g.pixels;
    const int64_t line = begin / g.columns;  // the row of all images
    Index q = static_cast<Index>(begin % g.columns), p = static_cast<Index>(line % g.rows);
    Index n = static_cast<Index>(line / g.rows);
    ChainedSum<Compute<T>> sum;
    for (int64_t pixel = begin; pixel < end;) {
      const Index last = end - pixel < g.columns - q ? q + static_cast<Index>(end - pixel) : g.columns;
      pixel += last - q;
      Index h = 0, w = 0;
      if (is_bias) {
        for (; q < last; ++q) sum.add(g.dy.read(n, k, p, q), 1);
      } else if (g.row_axis.find(p, r, h)) {
        for (; q < last; ++q)
          if (g.column_axis.find(q, s, w))
            sum.add(g.dy.read(n, k, p, q), widen(g.x[g.x_strides.at(n, channel, h, w)]));
      }
      q = 0;
      if (++p == g.rows) {
        p = 0;
        ++n;
      }
    }
    g.partial[split * g.pitch + element] = sum.value();
  }
}

// Adds the splits of each weight in a fixed order: 8 threads take a slice of them each, then one adds the slices.
template <class T>
struct DirectReduce {
  const Compute<T>* partial = nullptr;
  int64_t weights = 0, elements = 0, splits = 1, pitch = 0;  // elements: weights and biases
  int64_t channels = 1, row_taps = 1, column_taps = 1;
  Strides<int64_t> strides;  // of the filter: k c r s
  T* weight = nullptr;
  T* grad_bias = nullptr;
};

constexpr int kReduceElements = 32, kReduceSlices = 8;

template <class Sum>
struct ReduceShared {
  Sum slices[kReduceSlices][kReduceElements];
};

template <class T>
__global__ void __launch_bounds__(kReduceElements* kReduceSlices) direct_reduce(const DirectReduce<T> g) {
  using Sum = Compute<T>;
  ReduceShared<Sum>& shared = static_shared<ReduceShared<Sum>>();
  const int lane = threadIdx.x % kReduceElements, slice = threadIdx.x / kReduceElements;
  const int64_t each = (g.splits + kReduceSlices - 1) / kReduceSlices, step = int64_t{gridDim.x} * kReduceElements;
  for (int64_t first = int64_t{blockIdx.x} * kReduceElements; first < g.elements; first += step) {
    const int64_t element = first + lane;
    Sum sum = 0;
    if (element < g.elements)
      for (int64_t i = slice * each; i < (slice + 1) * each && i < g.splits; ++i)
        sum += g.partial[i * g.pitch + element];
    shared.slices[slice][lane] = sum;
    __syncthreads();
    if (slice == 0 && element < g.elements) {
      for (int i = 1; i < kReduceSlices; ++i) sum += shared.slices[i][lane];
      if (element >= g.weights) {
        g.grad_bias[element - g.weights] = narrow<T>(sum);
      } else {
        const int64_t s = element % g.column_taps, row = element / g.column_taps;
        const int64_t r = row % g.row_taps, plane = row / g.row_taps;
        g.weight[g.strides.at(plane / g.channels, plane % g.channels, r, s)] = narrow<T>(sum);
      }
    }
    __syncthreads();
  }
}

// The two launches that the forms of grad_weight share, in direct_any.cu.
template <class T>
Status direct_reduce_splits(const ConvProblem&, const ConvOperands&, const void* partial, int64_t splits, int64_t pitch,
                            void* stream);
// Partial sums of elements [first, last) of the weights and biases, split evenly by pixels.
Status direct_any_partial(const ConvProblem&, const ConvOperands&, void* partial, int64_t splits, int64_t pitch,
                          int64_t first, int64_t last, bool wide, void* stream);

}  // namespace fastconv::FASTCONV_GPU
