// What the plans of depthwise convolutions share: which path a problem takes, and what it costs.
#pragma once

#include "../core/table.h"
#include "tiles.cuh"

namespace fastconv::FASTCONV_GPU {

enum class DepthwisePath : int64_t {
  any,       // a thread for each element, in grad_weight a tap at a time: everything
  columns,   // grad_weight, any strides: lanes along columns
  channels,  // NHWC
  planes,    // NCHW, forward and grad_input
};
enum DepthwiseDetail { kDepthwisePath, kDepthwiseInt32, kDepthwisePartials };

constexpr double kMultipliesPerSecond = 20e12;  // of the walks, with everything around them
constexpr double kAnyPerSecond = 2e12;          // of path any

inline bool gathers(const ConvProblem& p) { return p.pass == Pass::forward || p.stride_h == 1; }

// The walks' windows: 3x3 with a stride of 1 or 2 along both axes, 5x5 with 1, no dilation, one filter a channel.
inline bool has_walk(const ConvProblem& p) {
  return p.r == p.s && p.stride_h == p.stride_w && (p.r == 3 ? p.stride_h <= 2 : p.r == 5 && p.stride_h == 1) &&
         p.dilation_h == 1 && p.dilation_w == 1 && p.dtype != DType::f64;
}

// Channels of a thread on path channels: kDepthwiseVector of the walk.
inline int64_t vector_of(const ConvProblem& p) { return p.r == 3 ? 4 : 2; }

inline bool is_empty(const Sizes4& sizes) { return sizes[0] * sizes[1] * sizes[2] * sizes[3] == 0; }

inline bool channels_fit(const ConvProblem& p) {
  const int64_t vector = vector_of(p);
  return p.group_k() == 1 && has_channel_vectors(p.x_sizes(), p.x_strides, vector) &&
         has_channel_vectors(p.y_sizes(), p.y_strides, vector) &&
         (!p.has_aux() || has_channel_vectors(p.y_sizes(), p.aux_strides, vector));
}
inline bool may_walk(const ConvProblem& p) {
  return fits_int32(p) && has_walk(p) && !is_empty(p.x_sizes()) && !is_empty(p.y_sizes());
}

inline bool vectors_allowed(const ConvProblem& p, const ConvOperands& o) {
  const int64_t bytes = vector_of(p) * size_of(p.dtype);
  return is_aligned(o.x, bytes) && is_aligned(o.y, bytes) && (!p.has_aux() || is_aligned(o.aux, bytes));
}

inline double depthwise_seconds(const ConvProblem& p, DepthwisePath path, int64_t bytes, int64_t threads,
                                int launches) {
  const double rate = path == DepthwisePath::any ? kAnyPerSecond : kMultipliesPerSecond;
  return std::max(memory_seconds(bytes, threads, launches), static_cast<double>(p.macs()) / rate);
}

// Path planes, and the pass with kernels of its own: each in a file of its name.
Status depthwise_planes_run(const ConvProblem& p, const ConvOperands& o, void* stream);
void depthwise_weight_plan(const ConvProblem& p, ConvPlan& plan);
Status depthwise_weight_run(const ConvPlan& plan, const ConvOperands& o, void* workspace, void* stream);

}  // namespace fastconv::FASTCONV_GPU
