// Row `depthwise` on the CPU: convolutions in which every input channel has filters of its own (groups == c).
#pragma once

#include <cstring>

#include "../core/table.h"
#include "gather.h"
#include "isa.h"

namespace fastconv::cpu {

Status depthwise_supports(const ConvProblem&);
void depthwise_plan(const ConvProblem&, int threads, ConvPlan&);
Status depthwise_run(const ConvPlan&, const ConvOperands&, void* workspace, const Execution&);
Status depthwise_prepack(const ConvPlan&, const ConvOperands&, void* prepacked, const Execution&);
constexpr bool depthwise_max_pools = false;

enum class DepthwisePath : int64_t {
  planes,    // lanes along a row of one channel; rows are copied to a padded buffer
  channels,  // lanes along channels, read and written where they are
  packed,    // lanes along channels, of a buffer into which any operand is packed
};

// What the plan keeps in ConvPlan::detail.
struct DepthwiseBlocks {
  DepthwisePath path;
  int64_t rows;      // output rows of a task or, in grad_weight, of a band
  int64_t channels;  // lanes of a task, paths channels and packed
  int64_t splits;    // grad_weight: partial sums over shares of the images, added in order
  int64_t filter_values;  // packed filter, or in grad_weight all sums
  int64_t source_values, output_values;
  int64_t slots;     // path packed: source rows between the first and the last one of a task
  int64_t taps;      // of each axis' lists, and of a list of all
  int64_t thread_bytes;
};
static_assert(sizeof(DepthwiseBlocks) <= sizeof(ConvPlan::detail));

static inline DepthwiseBlocks depthwise_blocks(const ConvPlan& plan) {
  DepthwiseBlocks b;
  std::memcpy(&b, plan.detail, sizeof b);
  return b;
}

// All passes have their axes from gather.h. grad_weight walks as the forward does; its mask takes the residual's place.
static inline Gather depthwise_gather(const ConvProblem& p, int64_t phase) {
  if (p.pass != Pass::grad_weight) return gather_of(p, phase);
  ConvProblem forward = p;
  forward.pass = Pass::forward;
  forward.residual = p.has_aux();
  return gather_of(forward, 0);
}

// The buffer of path `planes`: rows of one channel, each as one row per remainder of the column modulo the step, so
// that neighbouring lanes are neighbours in memory, zeros where the padding is. Whole vectors, and one to spare: the
// first value from the tensor is aligned, and a vector that ends with the last one stays in its row.
struct PlaneBuffer {
  int64_t width, pitch, rows, values;
};
static inline PlaneBuffer plane_buffer(const Gather& g, int64_t out_rows, int64_t planes, int64_t lanes) {
  PlaneBuffer b;
  const int64_t span = tap_span(g.cols), step = g.cols.step;
  const auto whole = [&](int64_t n) { return (n + lanes - 1) / lanes * lanes; };
  b.width = whole(g.cols.out) + whole(span / step) + 2 * lanes;
  b.pitch = (step < span + 1 ? step : span + 1) * b.width;
  b.rows = source_span(g.rows, out_rows);
  b.values = planes * b.rows * b.pitch;
  return b;
}

FASTCONV_KERNEL(void, depthwise_pack_filter, const ConvPlan&, const void* weight, void* packed)
FASTCONV_KERNEL(Status, depthwise_channels, const ConvPlan&, const ConvOperands&, void* workspace, const Execution&)
FASTCONV_KERNEL(Status, depthwise_planes, const ConvPlan&, const ConvOperands&, void* workspace, const Execution&)
FASTCONV_KERNEL(Status, depthwise_weight_channels, const ConvPlan&, const ConvOperands&, void* workspace,
                const Execution&)
FASTCONV_KERNEL(Status, depthwise_weight_planes, const ConvPlan&, const ConvOperands&, void* workspace,
                const Execution&)

}  // namespace fastconv::cpu
