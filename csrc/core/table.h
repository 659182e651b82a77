// The algorithm table: every kernel that exists, as rows of plain data and four entry points.
//
// algorithms.inc lists the rows; everything else (selection, explain, tests, benchmarks) iterates over them.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "problem.h"
#include "status.h"
#include "threads.h"

namespace fastconv {

// `simulated`: the CUDA kernels in the emulator (csrc/simt), on CPU memory.
enum class Device : uint8_t { cpu, cuda, simulated };
const char* name(Device);

using Mask = uint32_t;  // bit i set: enumerator i is in the set
template <class E>
constexpr Mask bit(E e) {
  return Mask{1} << static_cast<unsigned>(e);
}

// What a row decided for one problem. Plain data: may be cached and copied.
template <class Problem, class Row>
struct PlanOf {
  Problem problem{};
  const Row* row = nullptr;
  int threads = 1;              // planned for this many
  int64_t workspace_bytes = 0;  // scratch for one call, prepack_bytes included
  int64_t prepack_bytes = 0;    // the part that holds the transformed filter
  int64_t prepack_key = 0;      // distinguishes a row's transformed layouts of one filter (a tile size, say)
  int64_t executed_macs = 0;    // multiplications really done (Winograd: fewer; tile waste: more)
  double cost = 0;              // predicted seconds, by the row's own model
  const char* variant = nullptr;  // which of its forms the row chose, for explain(); null if it has one only
  int64_t detail[12] = {};      // the row's own numbers: tiles, bands, splits
};

struct ConvRow;
struct PoolRow;
using ConvPlan = PlanOf<ConvProblem, ConvRow>;
using PoolPlan = PlanOf<PoolProblem, PoolRow>;

// Pointers of one call. Forward reads x, weight, scale, bias, aux (residual) and writes y. grad_input reads y (grad_output),
// weight, aux (the forward's output) and writes x. grad_weight reads x, y, aux and writes weight and grad_bias.
struct ConvOperands {
  void* x = nullptr;
  void* weight = nullptr;
  void* y = nullptr;
  const void* bias = nullptr;
  const void* scale = nullptr;  // of the type that sums have: f64 for f64, else f32
  const void* aux = nullptr;
  void* grad_bias = nullptr;
};

// Forward reads x, writes y and (max) offsets. grad_input reads y (grad_output) and offsets, writes x.
// gather reads x and offsets, writes y. LP pooling's grad_input also reads the forward's input and output.
struct PoolOperands {
  void* x = nullptr;
  void* y = nullptr;
  void* offsets = nullptr;
  const void* input = nullptr;   // strides as x
  const void* output = nullptr;  // strides as y
};

struct Execution {
  Threads threads;
  void* stream = nullptr;           // a cudaStream_t on CUDA
  const void* prepacked = nullptr;  // what prepack() wrote for this very plan and weight, if the caller kept it
};

template <class Problem, class Plan, class Operands>
struct RowOf {
  const char* name;
  Device device;
  Mask passes;
  Mask dtypes;
  const char* min_arch;  // "any" on CPU
  bool deterministic;
  const char* summary;                                    // one line: what it is
  const char* source;                                     // the kernel's main file, below csrc/
  Status (*supports)(const Problem&);                     // beyond what passes and dtypes say
  void (*plan)(const Problem&, int threads, Plan& plan);  // fills everything but problem, row and threads
  Status (*run)(const Plan&, const Operands&, void* workspace, const Execution&);
};
struct ConvRow : RowOf<ConvProblem, ConvPlan, ConvOperands> {
  // Transforms operands.weight into `prepacked` (plan.prepack_bytes, 64-byte aligned). run() does the same into the
  // front of its workspace when Execution::prepacked is null. Null for rows that never transform a filter.
  Status (*prepack)(const ConvPlan&, const ConvOperands&, void* prepacked, const Execution&);
  bool max_pools = false;  // takes problems with a fused max-pool
};
struct PoolRow : RowOf<PoolProblem, PoolPlan, PoolOperands> {};

const std::vector<ConvRow>& conv_rows();
const std::vector<PoolRow>& pool_rows();

// The full answer of a row: device, pass, dtype, determinism, then its own supports().
Status supports(const ConvRow&, const ConvProblem&, Device);
Status supports(const PoolRow&, const PoolProblem&, Device);

}  // namespace fastconv
