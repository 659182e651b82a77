#include "../core/div_up.h"
#include "im2col.h"

#include <algorithm>

#include "arena.h"
#include "cost.h"
#include "direct.h"

namespace fastconv::cpu {
namespace {

// Each of a thread's arrays: a quarter to a half of a 512 KB second-level cache.
constexpr int64_t kOperandBytes = 128 * 1024, kSumBytes = 256 * 1024;

int64_t value_bytes(DType t) { return t == DType::f64 || is_integer(t) ? 8 : 4; }
// The size of even parts of at most `most`, at least 1.
int64_t even_part(int64_t count, int64_t most) {
  most = std::max<int64_t>(most, 1);
  return std::max<int64_t>(1, div_up(count, std::max<int64_t>(1, div_up(count, most))));
}

struct Machine {
  TileShape tile;
  int64_t bytes, lanes;
  explicit Machine(DType t) : tile(tile_shape(t)), bytes(value_bytes(t)), lanes(tile.width / 2) {}
};

void finish_plan(const Im2colBlocks& b, const Machine& m, int64_t shared_values, ConvPlan& plan) {
  plan.workspace_bytes =
      shared_values * m.bytes + plan.threads * arena_round(b.thread_bytes) + 4 * kArenaSlack;
  std::memcpy(plan.detail, &b, sizeof b);
}

void plan_forward(const ConvProblem& p, const Machine& m, ConvPlan& plan) {
  const int64_t pixels = p.n * p.p() * p.q(), depth = p.r * p.s * p.group_c();
  const int64_t blocks = div_up(p.group_k(), m.tile.width);
  Im2colBlocks b{};
  // About 112 pixels: the filter streams by once per block of pixels, so that many multiply-adds per value of it.
  const int64_t height = m.tile.height;
  b.pixels = div_up(even_part(pixels, 112 / height * height), height) * height;
  const int64_t pitch = b.pixels + m.lanes;
  b.depth = even_part(depth, kOperandBytes / (pitch * m.bytes));
  const bool one_pass = b.depth >= depth;  // then a tile's sums are written at once
  b.outputs = one_pass ? std::max<int64_t>(blocks, 1)
                       : even_part(blocks, kSumBytes / (b.pixels * m.tile.width * m.bytes));
  const auto tasks = [&] { return p.groups * div_up(pixels, b.pixels) * div_up(blocks, b.outputs); };
  while (b.outputs > 1 && tasks() < 2 * plan.threads && plan.threads > 1) b.outputs = div_up(b.outputs, 2);

  b.packed_filter = p.groups * blocks * m.tile.width * depth;
  b.column_values = b.depth * pitch;
  b.sum_values = (one_pass ? height : b.outputs * b.pixels) * m.tile.width;
  b.thread_bytes = (b.column_values + b.sum_values) * m.bytes + 2 * kArenaSlack;
  plan.prepack_bytes = b.packed_filter * m.bytes;
  plan.executed_macs = pixels * depth * p.groups * blocks * m.tile.width;
  finish_plan(b, m, b.packed_filter, plan);
  const int64_t copied = pixels * depth * p.groups * div_up(blocks, b.outputs);
  const int64_t residual = p.residual ? 2 * pixels * p.k : 0;  // read in pieces of a tile's width
  plan.cost = cost::seconds(plan.executed_macs, m.lanes, 0.8, plan.threads,
                            (copied + 2 * b.packed_filter + residual) * m.bytes);
}

void plan_grad_input(const ConvProblem& p, const Machine& m, ConvPlan& plan) {
  const int64_t blocks = div_up(p.group_c(), m.tile.width), filters = p.group_k(), taps = p.r * p.s;
  Im2colBlocks b{};
  // The part of dx: all channels if a row of them fits, and whole rows if one fits.
  const auto fits = [&](int64_t outputs, int64_t rows, int64_t cols) {
    return outputs * rows * cols * m.tile.width * m.bytes <= kSumBytes;
  };
  b.cols = p.w;
  while (b.cols > 1 && !fits(1, 1, b.cols)) b.cols = div_up(b.cols, 2);
  b.outputs = std::max<int64_t>(blocks, 1);
  while (b.outputs > 1 && !fits(b.outputs, 1, b.cols)) b.outputs = div_up(b.outputs, 2);
  b.rows = 1;
  while (b.rows < p.h && fits(b.outputs, b.rows + 1, b.cols)) ++b.rows;
  const auto tasks = [&] {
    return p.n * p.groups * div_up(p.h, b.rows) * div_up(p.w, b.cols) * div_up(blocks, b.outputs);
  };
  while (b.rows > 1 && plan.threads > 1 && tasks() < 2 * plan.threads && b.rows * b.cols > 4 * m.tile.height)
    b.rows = div_up(b.rows, 2);
  while (b.outputs > 1 && plan.threads > 1 && tasks() < 2 * plan.threads) b.outputs = div_up(b.outputs, 2);
  b.rows = even_part(p.h, b.rows);

  // A part as wide as the input shares the rectangle among a row of taps, unless they lie far apart.
  const int64_t window = (p.s - 1) * p.dilation_w;
  b.row_taps = b.cols == p.w && window <= p.w + 32 ? p.s : 1;
  const int64_t rows = std::min(p.p(), (b.rows - 1) / p.stride_h + 1);
  const int64_t cols = std::min(p.q(), (b.cols - 1 + (b.row_taps > 1 ? window : 0)) / p.stride_w + 1);
  const int64_t pitch = rows * cols + m.lanes;
  b.depth = even_part(filters, kOperandBytes / (pitch * m.bytes));

  b.packed_filter = p.groups * blocks * m.tile.width * taps * filters;
  b.operand_values = b.depth * pitch;
  b.sum_values = b.outputs * b.rows * b.cols * m.tile.width;
  b.thread_bytes = (b.operand_values + b.sum_values) * m.bytes + 2 * kArenaSlack;
  plan.prepack_bytes = b.packed_filter * m.bytes;
  plan.executed_macs = p.n * p.p() * p.q() * taps * filters * p.groups * blocks * m.tile.width;
  finish_plan(b, m, b.packed_filter, plan);
  const int64_t added = p.n * p.p() * p.q() * taps * div_up(filters, b.depth) * p.groups * blocks * m.tile.width;
  plan.cost = cost::seconds(plan.executed_macs, m.lanes, 0.8, plan.threads, (added + 2 * b.packed_filter) * m.bytes);
}

void plan_grad_weight(const ConvProblem& p, const Machine& m, ConvPlan& plan) {
  const int64_t pixels = p.n * p.p() * p.q(), depth = p.r * p.s * p.group_c();
  const int64_t blocks = div_up(p.group_k(), m.tile.width);
  Im2colBlocks b{};
  b.pixels = even_part(pixels, 128);
  b.depth = even_part(depth, kOperandBytes / (b.pixels * m.bytes));
  b.outputs = even_part(blocks, 8);
  const auto tasks = [&] { return p.groups * div_up(depth, b.depth) * div_up(blocks, b.outputs); };
  while (b.depth > 4 * m.tile.height && plan.threads > 1 && tasks() < 2 * plan.threads) b.depth = div_up(b.depth, 2);
  while (b.outputs > 1 && plan.threads > 1 && tasks() < 2 * plan.threads) b.outputs = div_up(b.outputs, 2);
  // Where filters and channels are too few, threads share the pixels: partial sums, added in a fixed order.
  b.splits = 1;
  if (tasks() < plan.threads)
    b.splits = std::max<int64_t>(1, std::min(div_up(plan.threads, tasks()), div_up(pixels, b.pixels)));

  const int64_t sums = p.groups * blocks * m.tile.width * depth;
  b.column_values = b.pixels * b.depth;
  b.operand_values = b.pixels * m.tile.width;
  b.sum_values = b.splits * sums;
  b.thread_bytes = (b.column_values + b.operand_values) * m.bytes + 2 * kArenaSlack;
  plan.executed_macs = pixels * depth * p.groups * blocks * m.tile.width;
  finish_plan(b, m, b.sum_values + b.splits * p.groups * blocks * m.tile.width, plan);
  const int64_t copied = pixels * depth * p.groups * div_up(blocks, b.outputs);
  plan.cost = cost::seconds(plan.executed_macs, m.lanes, 0.75, plan.threads, (copied + 3 * b.sum_values) * m.bytes);
}

}  // namespace

Status im2col_supports(const ConvProblem& p) { return takes_activation(p); }

void im2col_plan(const ConvProblem& problem, int threads, ConvPlan& plan) {
  const ConvProblem p = im2col_view(problem);
  const Machine machine(p.dtype);
  plan.threads = cost::useful_threads(p.macs(), threads);
  switch (p.pass) {
    case Pass::grad_input: return plan_grad_input(p, machine, plan);
    case Pass::grad_weight: return plan_grad_weight(p, machine, plan);
    default: return plan_forward(p, machine, plan);
  }
}

Status im2col_run(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  switch (plan.problem.pass) {
    case Pass::grad_input: return FASTCONV_DISPATCH(im2col_grad_input, plan, operands, workspace, exec);
    case Pass::grad_weight: return FASTCONV_DISPATCH(im2col_grad_weight, plan, operands, workspace, exec);
    default: return FASTCONV_DISPATCH(im2col_forward, plan, operands, workspace, exec);
  }
}

Status im2col_prepack(const ConvPlan& plan, const ConvOperands& operands, void* prepacked, const Execution& exec) {
  FASTCONV_DISPATCH(im2col_pack_filter, plan, operands.weight, prepacked, exec.threads);
  return {};
}

}  // namespace fastconv::cpu
