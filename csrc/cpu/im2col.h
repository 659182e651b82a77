// Row `im2col` on the CPU: the textbook algorithm, an explicit column matrix and a blocked matrix product.
#pragma once

#include <cstring>

#include "../core/table.h"
#include "isa.h"

namespace fastconv::cpu {

Status im2col_supports(const ConvProblem&);
void im2col_plan(const ConvProblem&, int threads, ConvPlan&);
Status im2col_run(const ConvPlan&, const ConvOperands&, void* workspace, const Execution&);
Status im2col_prepack(const ConvPlan&, const ConvOperands&, void* prepacked, const Execution&);
constexpr bool im2col_max_pools = false;

// What the plan keeps in ConvPlan::detail. A task owns one block of each kind and works through its sums alone.
struct Im2colBlocks {
  // Forward and grad_weight: output pixels at a time, counted through all images. grad_input: rows and columns of dx.
  int64_t pixels, rows, cols;
  int64_t depth;          // forward: rows of the column matrix at a time; grad_input: filters; grad_weight: columns
  int64_t outputs;        // register tiles' widths that a task produces: of filters, or in grad_input of channels
  int64_t splits;         // grad_weight: partial sums over shares of the pixels, added in order
  int64_t row_taps;       // grad_input: neighbouring taps of a row that share a packed rectangle of dy
  int64_t packed_filter;  // values, before each thread's own arrays:
  int64_t operand_values, column_values, sum_values;
  int64_t thread_bytes;
};
static_assert(sizeof(Im2colBlocks) <= sizeof(ConvPlan::detail));

static inline Im2colBlocks im2col_blocks(const ConvPlan& plan) {
  Im2colBlocks b;
  std::memcpy(&b, plan.detail, sizeof b);
  return b;
}

// The problem as its loops see it: a 1x1 convolution without padding does not care about rows, and one long row per
// image has no short pieces at every row's end. Only if all operands' rows follow each other.
static inline ConvProblem im2col_view(const ConvProblem& p) {
  const bool pointwise = p.r == 1 && p.s == 1 && p.stride_h == 1 && p.stride_w == 1 && p.pad_top == 0 &&
                         p.pad_left == 0 && p.pad_bottom == 0 && p.pad_right == 0;
  if (!pointwise) return p;
  ConvProblem flat = p;
  for (Strides4* s : {&flat.x_strides, &flat.y_strides, &flat.aux_strides}) {
    if (p.w == 1) (*s)[3] = (*s)[2];
    if (p.w > 1 && p.h > 1 && (*s)[2] != p.w * (*s)[3]) return p;
  }
  flat.w = p.h * p.w;
  flat.h = 1;
  return flat;
}

FASTCONV_KERNEL(void, im2col_pack_filter, const ConvPlan&, const void* weight, void* packed, const Threads&)
FASTCONV_KERNEL(Status, im2col_forward, const ConvPlan&, const ConvOperands&, void* workspace, const Execution&)
FASTCONV_KERNEL(Status, im2col_grad_input, const ConvPlan&, const ConvOperands&, void* workspace, const Execution&)
FASTCONV_KERNEL(Status, im2col_grad_weight, const ConvPlan&, const ConvOperands&, void* workspace, const Execution&)

}  // namespace fastconv::cpu
