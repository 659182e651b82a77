// Forward and grad_input as one shape of computation: every output value gathers its inputs,
//
//     out[i][j] = sum over taps t, channels c:  src[c][i * step + d_t] * filter[t][c]
//
// Forward has step = stride and d_t = t * dilation - pad. grad_input of a convolution with stride s falls into s x s
// phases (output pixels a, a + s, a + 2 s, ...), each with step 1 and those taps for which
// (a + pad - t * dilation) is divisible by s; no multiplication by an inserted zero is ever made.
#pragma once

#include "../core/problem.h"

namespace fastconv::cpu {

// One spatial dimension of a gather.
struct GatherAxis {
  int64_t src, out;            // sizes: of the source, and of this phase's part of the output
  int64_t out_start, out_step;  // output index of the phase's pixel i: out_start + i * out_step
  int64_t step;
  int64_t taps, tap_origin, tap_step, tap_divisor;  // d_t = (origin + t * step) / divisor where that is whole
};

struct Gather {
  GatherAxis rows, cols;
  int64_t channels, filters;               // per group: summed over, and produced
  Strides4 src, dst, mask, residual;       // element strides: batch, channel, row, column
  int64_t channel_stride, filter_stride;   // of the weight tensor
  int64_t group_src, group_dst;            // channels of src and dst per group
};

// How far apart the smallest and the largest displacement of any phase can be.
static inline int64_t tap_span(const GatherAxis& a) {
  return (a.taps - 1) * (a.tap_step < 0 ? -a.tap_step : a.tap_step) / a.tap_divisor;
}
// Source indices between the first and the last one that `out` neighbouring output indices read.
static inline int64_t source_span(const GatherAxis& a, int64_t out) { return (out - 1) * a.step + tap_span(a) + 1; }

int64_t gather_phases(const ConvProblem&);
Gather gather_of(const ConvProblem&, int64_t phase);

}  // namespace fastconv::cpu
