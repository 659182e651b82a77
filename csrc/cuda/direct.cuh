// Row `direct` on GPUs: sums over the window without a matrix in between. One row, several forms; plan chooses.
//
//   any     one thread for each output (direct_any.cuh): every problem, and the one to read first
//
// The ladder: any -> im2col makes the sum one matrix product, tiled in registers -> implicit_gemm needs no matrix.
#pragma once

#include "../core/table.h"
#include "index.cuh"

namespace fastconv::FASTCONV_GPU {

enum class DirectForm : int64_t { any };

// Names for ConvPlan::detail of this row.
struct DirectDetail {
  enum : int {
    form,
    wide_index,  // any: 64-bit offsets
    splits,      // any's grad_weight, weight: partial sums
  };
};

// Fills the plan for one form; false if the form does not take the problem. `any` takes all.
bool direct_plan_form(const ConvProblem&, DirectForm, ConvPlan&);

void direct_any_plan(const ConvProblem&, ConvPlan&);
Status direct_any_run(const ConvPlan&, const ConvOperands&, void* workspace, void* stream);

// What the plans of all forms know of the machine: an H200.
struct DirectMachine {
  static constexpr int64_t kMultiprocessors = 132;
  static constexpr double kClock = 1.98e9;           // 67 TFLOP/s = 132 x 128 lanes x 2 x 1.98 GHz
  static constexpr double kIssue = 4;                // warp instructions in a cycle of a multiprocessor
  static constexpr double kBytesPerSecond = 4.1e12;  // of 4.8: what copies reach
  static constexpr double kLaunch = 3e-6;
};

}  // namespace fastconv::FASTCONV_GPU
