// Row `direct` on GPUs: sums over the window without a matrix in between. One row, three forms; plan chooses.
//
//   any     one thread for each output (direct_any.cuh): every problem, and the one to read first
//   tiled   register tiles over shared memory (direct_tiled.cuh): forward and grad_input
//   weight  register tiles of the filter's gradient (direct_weight.cuh)
//
// The ladder: any -> tiled keeps operands in registers and shared memory, 16 times fewer reads for each multiply-add;
// -> im2col makes the sum one matrix product, whatever the window; -> implicit_gemm drops the matrix again.
#pragma once

#include "../core/table.h"
#include "index.cuh"

namespace fastconv::FASTCONV_GPU {

enum class DirectForm : int64_t { any, tiled, weight };

// Names for ConvPlan::detail of this row.
struct DirectDetail {
  enum : int {
    form,
    wide_index,  // any: 64-bit offsets
    splits,      // any's grad_weight, weight: partial sums
    // tiled: what a block makes, see TiledShape
    pieces = 1,
    filter_warps,
    images,
    rows,
    columns,
    chunk,
    slice_rows,
    filter_tiles,
    // weight: what a block makes, see WeightShape
    weight_octets = 3,
    weight_quads,
    weight_tap_rows,
    weight_rows,
    weight_columns,
  };
};

// Fills the plan for one form; false if the form does not take the problem. `any` takes all.
bool direct_plan_form(const ConvProblem&, DirectForm, ConvPlan&);

void direct_any_plan(const ConvProblem&, ConvPlan&);
Status direct_any_run(const ConvPlan&, const ConvOperands&, void* workspace, void* stream);
bool direct_tiled_plan(const ConvProblem&, ConvPlan&);
Status direct_tiled_run(const ConvPlan&, const ConvOperands&, void* workspace, void* stream);
bool direct_weight_plan(const ConvProblem&, ConvPlan&);
Status direct_weight_run(const ConvPlan&, const ConvOperands&, void* workspace, void* stream);

// What the plans of all forms know of the machine: an H200.
struct DirectMachine {
  static constexpr int64_t kMultiprocessors = 132;
  static constexpr double kClock = 1.98e9;           // 67 TFLOP/s = 132 x 128 lanes x 2 x 1.98 GHz
  static constexpr double kIssue = 4;                // warp instructions in a cycle of a multiprocessor
  static constexpr double kBytesPerSecond = 4.1e12;  // of 4.8: what copies reach
  static constexpr double kLaunch = 3e-6;
};

}  // namespace fastconv::FASTCONV_GPU
