#include "../core/div_up.h"
#include "depthwise.h"

#include <algorithm>

#include "arena.h"
#include "cost.h"
#include "direct.h"

namespace fastconv::cpu {
namespace {

constexpr int64_t kPlaneBytes = 32 * 1024;    // a padded band of a channel: the first-level cache
constexpr int64_t kPackedBytes = 192 * 1024;  // a packed band of channels and its sums: part of the second-level cache

int64_t even_part(int64_t count, int64_t most) {
  return div_up(count, div_up(count, std::max<int64_t>(most, 1)));
}

struct Machine {
  int64_t bytes, width, lanes;
  explicit Machine(DType t) : bytes(t == DType::f64 ? 8 : 4), width(tile_shape(t).width), lanes(width / 2) {}
};

DepthwisePath choose_path(const ConvProblem& p, const Gather& g, const Machine& m) {
  const bool wide = p.dtype == DType::f32 || p.dtype == DType::f64;  // no conversion between memory and lanes
  const bool masked = p.pass != Pass::forward && p.has_aux();
  const bool channels_follow =
      g.src[1] == 1 && g.dst[1] == 1 && (!p.residual || p.pass != Pass::forward || g.residual[1] == 1);
  if (wide && channels_follow && !masked && p.group_k() == 1 && p.c >= m.lanes) return DepthwisePath::channels;
  // Rows that fill at least three quarters of their vectors, or channels that do worse.
  const bool fills = 4 * g.cols.out >= 3 * m.lanes || p.c < m.lanes;
  const int64_t planes = p.pass == Pass::grad_input ? p.group_k() : 1;
  const bool fits = plane_buffer(g, 1, planes, m.lanes).values * m.bytes <= 8 * kPlaneBytes;
  const bool columns_follow = g.src[3] <= 1 && g.dst[3] <= 1;
  return columns_follow && fills && fits ? DepthwisePath::planes : DepthwisePath::packed;
}

// The largest number of rows, up to `most`, whose buffers fit.
template <class Bytes>
int64_t rows_that_fit(int64_t most, int64_t limit, Bytes&& bytes) {
  int64_t rows = 1;
  while (rows < most && bytes(rows + 1) <= limit) ++rows;
  return rows;
}

// Rows of the source that `rows` rows of the output read, at most.
int64_t source_rows(const Gather& g, int64_t rows) {
  return std::max<int64_t>(1, std::min({source_span(g.rows, rows), rows * g.rows.taps, g.rows.src}));
}

// Lists of taps that all threads read, of one phase or of two.
int64_t shared_bytes(const ConvProblem& p) {
  return 2 * ((2 * (p.r + p.s) + p.group_k() * p.r * p.s) * 8 + 8 * kArenaSlack);
}

// `packed_values`: copied to lanes and back, path packed. Measured with AVX-512, one thread, data in the second- or
// third-level cache: what is read and written moves at 30 GB/s beside the sums, three times the model's round figure.
void finish_plan(const DepthwiseBlocks& b, const Machine& m, const ConvProblem& p, int64_t packed_values,
                 ConvPlan& plan) {
  const bool weight = p.pass == Pass::grad_weight;
  const auto rounded = [](int64_t count, int64_t to) { return div_up(count, to) * to; };
  const int64_t cols = std::max<int64_t>(p.pass == Pass::grad_input ? div_up(p.w, p.stride_w) : p.q(), 1);
  const int64_t lanes = p.pass == Pass::grad_input ? p.c : p.k;
  double efficiency = weight ? 0.5 : 0.9;
  plan.executed_macs = p.macs();
  if (b.path == DepthwisePath::planes) {
    plan.executed_macs = p.macs() / cols * rounded(cols, m.lanes);
  } else if (b.path == DepthwisePath::packed) {
    plan.executed_macs = p.macs() / lanes * rounded(lanes, m.width);
    efficiency *= 0.5;
  }
  // A channel that is repeated for its filters, or every some of them, is packed value by value.
  const int64_t moved = p.minimum_bytes() / 3 + packed_values * (p.group_k() > 1 ? 6 : 3);
  plan.cost = cost::seconds(plan.executed_macs, m.lanes, efficiency, plan.threads, moved);
  plan.workspace_bytes = b.filter_values * m.bytes + shared_bytes(p) + plan.threads * arena_round(b.thread_bytes);
  std::memcpy(plan.detail, &b, sizeof b);
}

void plan_gather(const ConvProblem& p, const Machine& m, ConvPlan& plan) {
  const Gather g = depthwise_gather(p, 0);  // the first phase is the largest
  const bool forward = p.pass == Pass::forward;
  const int64_t sources = forward ? 1 : p.group_k(), lanes = forward ? p.k : p.c;
  const int64_t out = std::max<int64_t>(g.rows.out, 1), cols = std::max<int64_t>(g.cols.out, 1);
  DepthwiseBlocks b{};
  b.path = choose_path(p, g, m);
  // Rows of a task, so that every thread has some.
  const auto share = [&](int64_t parallel) {
    return plan.threads > 1 ? std::max<int64_t>(1, div_up(out, div_up(4 * plan.threads, parallel))) : out;
  };
  if (b.path == DepthwisePath::planes) {
    const auto bytes = [&](int64_t rows) { return plane_buffer(g, rows, sources, m.lanes).values * m.bytes; };
    b.rows = even_part(out, std::min(rows_that_fit(out, kPlaneBytes, bytes), share(p.n * p.c)));
    b.source_values = plane_buffer(g, b.rows, sources, m.lanes).values;
    b.taps = sources * p.r * p.s;
    // Stride 2 of grad_input: even and odd columns side by side, see depthwise_planes.cpp.
    const int64_t pair = forward ? 1 : 2;
    b.output_values = forward ? 0 : b.rows * div_up(cols, m.lanes) * m.lanes;
    b.thread_bytes = (pair * b.source_values + b.taps + 2 * b.output_values) * m.bytes + 4 * kArenaSlack;
  } else {
    const int64_t blocks = div_up(lanes, m.width);
    b.filter_values = sources * p.r * p.s * blocks * m.width;
    plan.prepack_bytes = b.filter_values * m.bytes;
    b.channels = b.path == DepthwisePath::packed ? m.width : lanes;
    b.taps = p.r;
    b.thread_bytes = 2 * p.r * sources * 8 + 2 * kArenaSlack;
    if (b.path == DepthwisePath::packed) {
      const auto values = [&](int64_t rows) {
        return (sources * source_rows(g, rows) * g.cols.src + rows * cols) * m.width;
      };
      b.rows = std::min(
          rows_that_fit(out, kPackedBytes, [&](int64_t rows) { return values(rows) * m.bytes; }), share(p.n * blocks));
      b.rows = even_part(out, b.rows);
      b.source_values = sources * source_rows(g, b.rows) * g.cols.src * m.width;
      b.output_values = b.rows * cols * m.width;
      b.slots = source_span(g.rows, b.rows);
      b.thread_bytes += (b.source_values + b.output_values) * m.bytes + b.slots * 8 + 3 * kArenaSlack;
    } else {
      b.rows = even_part(out, share(p.n));
    }
  }
  const int64_t out_values = p.n * out * cols, source_values = p.n * g.rows.src * g.cols.src;
  const bool packed = b.path == DepthwisePath::packed;
  finish_plan(b, m, p, packed ? gather_phases(p) * (out_values * lanes + source_values * sources * lanes) : 0, plan);
}

void plan_weight(const ConvProblem& p, const Machine& m, ConvPlan& plan) {
  const Gather g = depthwise_gather(p, 0);
  const int64_t out = std::max<int64_t>(g.rows.out, 1), cols = std::max<int64_t>(g.cols.out, 1), taps = p.r * p.s;
  DepthwiseBlocks b{};
  b.path = choose_path(p, g, m);
  const auto split = [&](int64_t tasks) {
    if (plan.threads == 1 || tasks >= 2 * plan.threads) return int64_t{1};
    return std::max<int64_t>(1, std::min(div_up(2 * plan.threads, tasks), p.n * div_up(out, b.rows)));
  };
  if (b.path == DepthwisePath::planes) {
    const int64_t row_vectors = div_up(cols, m.lanes);
    const auto bytes = [&](int64_t rows) {
      return (plane_buffer(g, rows, 1, m.lanes).values + rows * row_vectors * m.lanes) * m.bytes;
    };
    // At most 128 roundings of a lane before its sum joins the running one.
    const int64_t most = std::min(out, std::max<int64_t>(1, 128 / row_vectors));
    b.rows = even_part(out, rows_that_fit(most, kPlaneBytes, bytes));
    b.splits = split(p.c);
    b.source_values = plane_buffer(g, b.rows, 1, m.lanes).values;
    b.output_values = b.rows * row_vectors * m.lanes + m.lanes;
    b.filter_values = b.splits * (taps + 1) * p.k;
    b.thread_bytes = (b.source_values + b.output_values + p.group_k() * (taps + 1) * m.lanes) * m.bytes +
                     3 * kArenaSlack;
  } else {
    const bool packed = b.path == DepthwisePath::packed;
    const auto values = [&](int64_t rows) { return (source_rows(g, rows) * g.cols.src + rows * cols) * m.width; };
    const int64_t most = std::min(out, std::max<int64_t>(1, (packed ? 512 : 256) / cols));
    b.rows = packed ? rows_that_fit(most, kPackedBytes, [&](int64_t rows) { return values(rows) * m.bytes; }) : most;
    b.rows = even_part(out, b.rows);
    b.channels = packed ? m.width : std::min<int64_t>(256, div_up(p.k, m.width) * m.width);
    b.splits = split(div_up(p.k, b.channels));
    if (packed) {
      b.source_values = source_rows(g, b.rows) * g.cols.src * m.width;
      b.output_values = b.rows * cols * m.width;
    }
    b.slots = source_span(g.rows, b.rows);
    b.filter_values = b.splits * (taps + 1) * div_up(p.k, m.width) * m.width;
    b.thread_bytes = (b.source_values + b.output_values + (taps + 1) * b.channels) * m.bytes +
                     ((b.rows + 1) * p.r + b.slots) * 8 + 6 * kArenaSlack;
  }
  const int64_t values = p.n * p.k * (g.rows.src * g.cols.src + out * cols);
  finish_plan(b, m, p, b.path == DepthwisePath::packed ? values : 0, plan);
}

}  // namespace

Status depthwise_supports(const ConvProblem& p) {
  if (p.groups == p.c) return {};
  return Status::refuse("takes one input channel per group only: groups is " + std::to_string(p.groups) +
                        " with c " + std::to_string(p.c));
}

void depthwise_plan(const ConvProblem& p, int threads, ConvPlan& plan) {
  plan.threads = cost::useful_threads(2 * p.macs(), threads);  // bound by loads: half the usual rate
  const Machine machine(p.dtype);
  if (p.pass == Pass::grad_weight)
    plan_weight(p, machine, plan);
  else
    plan_gather(p, machine, plan);
}

Status depthwise_run(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  const bool planes = depthwise_blocks(plan).path == DepthwisePath::planes;
  if (plan.problem.pass == Pass::grad_weight) {
    if (planes) return FASTCONV_DISPATCH(depthwise_weight_planes, plan, operands, workspace, exec);
    return FASTCONV_DISPATCH(depthwise_weight_channels, plan, operands, workspace, exec);
  }
  if (planes) return FASTCONV_DISPATCH(depthwise_planes, plan, operands, workspace, exec);
  return FASTCONV_DISPATCH(depthwise_channels, plan, operands, workspace, exec);
}

Status depthwise_prepack(const ConvPlan& plan, const ConvOperands& operands, void* prepacked, const Execution&) {
  if (plan.prepack_bytes > 0) FASTCONV_DISPATCH(depthwise_pack_filter, plan, operands.weight, prepacked);
  return {};
}

}  // namespace fastconv::cpu
