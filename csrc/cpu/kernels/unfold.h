// Where a window's tap reads, for output pixels in their order: through the columns, the rows and the images.
#pragma once

#include "../../core/div_up.h"
#include "numeric.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// The indices of an axis whose source index * stride + displacement lies in [0, size): [begin, end), cut to [low,
// high).
struct Inside {
  int64_t begin, end;
  Inside(int64_t displacement, int64_t stride, int64_t size, int64_t low, int64_t high) {
    begin = smaller(high, larger(low, displacement >= 0 ? 0 : div_up(-displacement, stride)));
    end = larger(begin, smaller(high, displacement < size ? div_up(size - displacement, stride) : 0));
  }
};

// Neighbouring pixels of one output row: `first` is the first one's place in the block, `zeros` of them fall into the
// padding, then `inside` do not, the rest up to `count` fall into the padding again.
struct PixelRun {
  int64_t first, zeros, inside, count;
  int64_t source;  // element offset of the first inside one in x, channel 0
};

// Calls f(run) for the pixels [m0, m1), counted through all images.
template <class F>
inline void for_each_run(const ConvProblem& p, int64_t tap, int64_t m0, int64_t m1, F&& f) {
  const int64_t height = p.p(), width = p.q();
  const int64_t down = tap / p.s * p.dilation_h - p.pad_top, right = tap % p.s * p.dilation_w - p.pad_left;
  for (int64_t m = m0; m < m1;) {
    const int64_t j = m % width, i = m / width % height, n = m / width / height;
    const int64_t count = smaller(width - j, m1 - m), row = i * p.stride_h + down;
    const bool padding = row < 0 || row >= p.h;
    const Inside in(right, p.stride_w, padding ? right : p.w, j, j + count);
    f(PixelRun{m - m0, in.begin - j, in.end - in.begin, count,
               n * p.x_strides[0] + row * p.x_strides[2] + (in.begin * p.stride_w + right) * p.x_strides[3]});
    m += count;
  }
}

// Rows of a filter matrix are (tap, channel) pairs, taps outermost. Calls f(tap, first channel, channels, place) for
// each tap that the rows [k0, k1) touch; place is that of its first channel, counted from k0.
template <class F>
inline void for_each_tap(int64_t channels, int64_t k0, int64_t k1, F&& f) {
  for (int64_t k = k0; k < k1;) {
    const int64_t tap = k / channels, channel = k % channels, count = smaller(channels - channel, k1 - k);
    f(tap, channel, count, k - k0);
    k += count;
  }
}

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
