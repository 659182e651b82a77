// The geometry of pooling windows, as kernels see it.
#pragma once

#include "../core/table.h"
#include "tiles.cuh"

namespace fastconv::FASTCONV_GPU {

// a >= 0. Most strides and dilations are 1.
template <class Index>
__device__ __forceinline__ Index ceil_quotient(Index a, Index b) {
  return b == 1 ? a : (a + b - 1) / b;
}

// One axis of a window: tap t of output o reads input o * stride - pad + t * dilation, if that lies inside. Adaptive
// windows begin at floor(o * in / out), end before ceil((o + 1) * in / out), and lie inside; `window` is the largest.
template <class Index>
struct PoolAxis {
  Index in = 0, out = 0, window = 1, stride = 1, pad = 0, dilation = 1;
  bool adaptive = false;
  Divider<Index> by_in, by_out;  // of adaptive windows

  PoolAxis() = default;
  PoolAxis(int64_t size, int64_t outputs, int64_t window_size, int64_t step, int64_t padding, int64_t spread,
           bool is_adaptive)
      : in(static_cast<Index>(size)),
        out(static_cast<Index>(outputs)),
        window(static_cast<Index>(window_size)),
        stride(static_cast<Index>(step)),
        pad(static_cast<Index>(padding)),
        dilation(static_cast<Index>(spread)),
        adaptive(is_adaptive),
        by_in(std::max<int64_t>(size, 1)),
        by_out(std::max<int64_t>(outputs, 1)) {}

  __device__ __forceinline__ Index start(Index o) const {
    return adaptive ? by_out.quotient(o * in) : o * stride - pad;
  }
  __device__ __forceinline__ Index first(Index o) const {
    return start(o) < 0 ? ceil_quotient(-start(o), dilation) : 0;
  }
  __device__ __forceinline__ Index last(Index o) const {  // one past; none inside: not above first
    if (adaptive) return by_out.quotient((o + 1) * in + out - 1) - start(o);
    const Index room = in - start(o), fit = room > 0 ? ceil_quotient(room, dilation) : 0;
    return fit < window ? fit : window;
  }
  // The outputs that may cover input i: all that do lie in [first_cover, last_cover].
  __device__ __forceinline__ Index first_cover(Index i) const {
    if (adaptive) return by_in.quotient(i * out);
    const Index reach = i + pad - (window - 1) * dilation;
    return reach <= 0 ? 0 : stride == 1 ? reach : (reach + stride - 1) / stride;
  }
  __device__ __forceinline__ Index last_cover(Index i) const {
    if (adaptive) return by_in.quotient((i + 1) * out + in - 1) - 1;
    const Index reach = i + pad, o = stride == 1 ? reach : reach / stride;
    return o < out ? o : out - 1;
  }
  // The tap by which output o covers input i, or -1 where dilation leaves i out.
  __device__ __forceinline__ Index tap(Index i, Index o) const {
    const Index distance = i - start(o);
    if (dilation == 1) return distance;
    const Index t = distance / dilation;
    return t * dilation == distance ? t : -1;
  }
  // This axis' factor of an average's divisor. torch's rule: with padding counted, a window reaches no further than the
  // padded input; without, only taps inside count. At least 1, so that an empty window divides zero by something.
  __device__ __forceinline__ Index divisor(Index o, bool count_pad) const {
    if (adaptive || !count_pad) {
      const Index taps = last(o) - first(o);
      return taps > 1 ? taps : 1;
    }
    const Index room = in + pad - start(o);
    return room < window ? room : window;
  }
};

template <class Index>
struct PoolWindow {
  PoolAxis<Index> rows, columns;

  PoolWindow() = default;
  explicit PoolWindow(const PoolProblem& p)
      : rows(p.h, p.p, p.r, p.stride_h, p.pad_top, p.dilation_h, p.adaptive),
        columns(p.w, p.q, p.s, p.stride_w, p.pad_left, p.dilation_w, p.adaptive) {}
};

// Whether 32 bits hold every offset and coordinate, with room for a tile that reaches past the end.
inline bool fits_int32(const PoolProblem& p) {
  constexpr int64_t kMost = (int64_t{1} << 31) - (int64_t{1} << 24);
  for (int64_t span : {span_of(p.x_sizes(), p.x_strides), span_of(p.y_sizes(), p.y_strides),
                       p.offset_bytes ? span_of(p.y_sizes(), p.offset_strides) : 0, p.n * p.c * p.h * p.w,
                       p.n * p.c * p.p * p.q, p.h + p.pad_top + p.stride_h + p.r * p.dilation_h,
                       p.w + p.pad_left + p.stride_w + p.s * p.dilation_w, p.r * p.s,
                       p.adaptive ? (p.p + 1) * p.h + p.p : 0, p.adaptive ? (p.q + 1) * p.w + p.q : 0})
    if (span > kMost) return false;
  return true;
}

// Blocks on a multiprocessor, so that a thread may have 64 registers, 80 or 128.
constexpr int kPoolBlocks = 4, kSlideBlocks = 3;
template <class Index>
constexpr int kAnyBlocks = sizeof(Index) == 8 ? 2 : 4;

// How a pooling kernel walks; PoolPlan::detail[0].
enum class PoolPath : int64_t {
  any,       // a thread for each element written: any strides
  channels,  // vectors of channels (NHWC)
  planes,    // runs of rows in shared memory (NCHW)
  windows,   // average: threads share a window
};
enum PoolDetail { kPoolPath, kPoolInt32, kPoolSlides, kPoolSplits, kPoolWindowThreads };

}  // namespace fastconv::FASTCONV_GPU
