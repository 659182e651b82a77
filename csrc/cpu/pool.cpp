#include "pool.h"

#include <algorithm>
#include <cmath>

#include "cost.h"
#include "isa.h"
#include "pool_window.h"

namespace fastconv::cpu {

FASTCONV_KERNEL(void, max_pool_forward, const PoolPlan&, const PoolOperands&, void* workspace, const Threads&)
FASTCONV_KERNEL(void, max_pool_grad, const PoolPlan&, const PoolOperands&, void* workspace, const Threads&)
FASTCONV_KERNEL(void, max_pool_gather, const PoolPlan&, const PoolOperands&, void* workspace, const Threads&)
FASTCONV_KERNEL(void, avg_pool_forward, const PoolPlan&, const PoolOperands&, void* workspace, const Threads&)
FASTCONV_KERNEL(void, avg_pool_grad, const PoolPlan&, const PoolOperands&, void* workspace, const Threads&)
FASTCONV_KERNEL(void, lp_pool_forward, const PoolPlan&, const PoolOperands&, void* workspace, const Threads&)
FASTCONV_KERNEL(void, lp_pool_grad, const PoolPlan&, const PoolOperands&, void* workspace, const Threads&)

namespace {

constexpr int64_t kWord = 8;               // of tables and, at most, of values
constexpr int64_t kLine = 64;              // threads' scratch memory does not share cache lines
constexpr int64_t kScratchLimit = 1 << 20;  // rows kept per thread: a second-level cache
// Below this many outputs in a row, most lanes idle and the scalar loops are as fast.
constexpr int64_t kFewColumns = 4;
constexpr int64_t kScatterChannels = 64;

int64_t round_up(int64_t v, int64_t to) { return (v + to - 1) / to * to; }

bool is_dense(const Sizes4& sizes, const Strides4& strides, Layout layout) {
  const Layout is = layout_of(sizes, strides);
  return is == layout || is == Layout::both;
}

bool writes_x(const PoolProblem& p) { return p.pass == Pass::grad_input; }

// Whether lanes can run along rows: what is written is dense, what is read has contiguous rows. (Rows of grad_output
// are copied before use, so but for max-pooling they may be anything.)
bool rows_fit(const PoolProblem& p) {
  if (writes_x(p) && p.kind == PoolKind::max &&
      (p.adaptive || p.stride_w > 2 || p.dilation_h != 1 || p.dilation_w != 1 || p.y_strides[3] != 1 ||
       p.offset_strides[3] != 1))
    return false;
  if (writes_x(p)) return is_dense(p.x_sizes(), p.x_strides, Layout::nchw);
  return is_dense(p.y_sizes(), p.y_strides, Layout::nchw) && (p.x_strides[3] == 1 || p.w == 1) &&
         (!p.offset_bytes || p.offset_strides == p.y_strides);
}

bool channels_fit(const PoolProblem& p) {
  const auto has_unit_channels = [&](const Strides4& strides) { return strides[1] == 1 || p.c == 1; };
  if (writes_x(p))
    return is_dense(p.x_sizes(), p.x_strides, Layout::nhwc) && has_unit_channels(p.y_strides) &&
           (!p.offset_bytes || has_unit_channels(p.offset_strides));
  return is_dense(p.y_sizes(), p.y_strides, Layout::nhwc) && has_unit_channels(p.x_strides) &&
         (!p.offset_bytes || p.offset_strides == p.y_strides);
}

// Whether the planes are runs of elements that one window covers each.
bool whole_fits(const PoolProblem& p) {
  const bool covered = p.adaptive || (p.r == p.h && p.s == p.w && p.dilation_h == 1 && p.dilation_w == 1 &&
                                      p.pad_top == 0 && p.pad_left == 0);
  if (p.p != 1 || p.q != 1 || !covered || p.offset_bytes) return false;
  if (writes_x(p)) return is_dense(p.x_sizes(), p.x_strides, Layout::nchw);
  return is_dense(p.y_sizes(), p.y_strides, Layout::nchw) && (p.x_strides[3] == 1 || p.w == 1) &&
         (p.x_strides[2] == p.w || p.h == 1);
}

// Workspace of a path: bytes for all threads together, and for each.
struct Memory {
  int64_t shared, scratch;
};

Memory memory_of(const PoolProblem& p, PoolPath path) {
  const bool max = p.kind == PoolKind::max;
  const Axis columns = horizontal(p);
  const int64_t value = std::max<int64_t>(size_of(p.dtype), 4);  // 16-bit types are summed in fp32
  if (path == PoolPath::rows && max && writes_x(p)) {
    const Lattice lattice(p);
    return {lattice.shared_bytes(p.r * p.s), lattice.scratch_bytes(value)};
  }
  if (path == PoolPath::rows) {
    const Phases phases(columns, writes_x(p) ? padded_outputs(columns) : p.q);
    const int64_t row = phases.slots * phases.pitch * value, linear = (p.w + kMargin) * value;
    const int64_t shared = kWord * (p.s + p.q + kMargin), ring = (p.r - 1) * p.dilation_h + 1;
    if (writes_x(p)) {
      const int64_t covers = CoverTable::bytes(vertical(p)) + CoverTable::bytes(p.adaptive ? columns : Axis{});
      return {shared + covers, phases.pitch * value + linear};
    }
    if (p.adaptive) return {shared + 2 * kWord * p.q, linear + (p.q + kMargin) * value};
    return {shared, max && p.offset_bytes ? ring * (kWord + row) + kWord * p.r + linear : row + linear};
  }
  if (p.pass == Pass::forward || path == PoolPath::whole) return {0, 0};
  if (p.pass == Pass::gather) return {2 * kWord * p.r * p.s, 0};
  if (path == PoolPath::channels || !max) {
    const int64_t taps = max ? kChannelTapBytes * most_covers(vertical(p)) * most_covers(columns) : 0;
    return {CoverTable::bytes(vertical(p)) + CoverTable::bytes(columns), taps};
  }
  const bool in_place = is_integer(p.dtype) || size_of(p.dtype) >= 4;
  return {2 * kWord * p.r * p.s, in_place ? 0 : 4 * p.h * p.w};  // times the channels of a block
}

// LP norms other than 1 and 2 take a power of the C library, some 20 ns, for every element of every window.
bool takes_powers(const PoolProblem& p) {
  return p.kind == PoolKind::lp && p.norm.value() != 1 && p.norm.value() != 2;
}

PoolPath choose_path(const PoolProblem& p) {
  if (is_integer(p.dtype) || p.offset_bytes > 1 || p.pass == Pass::gather || takes_powers(p)) return PoolPath::planes;
  if (whole_fits(p) && p.h * p.w > 1) return PoolPath::whole;
  const bool max_grad = p.kind == PoolKind::max && writes_x(p);
  // For each input, vectors compare the offsets of r s / stride^2 windows; a scatter adds one output out of stride^2.
  // Measured with AVX-512, 512 planes of 13 x 13, 5 x 5 with stride 1: 94 us against 197 over rows, 112 against 102
  // over channels, where scatters go along runs of addresses; with AVX2 171 against 170, and 200 against 100.
  const int64_t outputs = p.adaptive ? p.p * p.q : 1, inputs = p.adaptive ? p.h * p.w : p.stride_h * p.stride_w;
  const int64_t most = rows_fit(p) ? 32 : 16;
  if (max_grad && p.r * p.s * outputs > most * inputs) return PoolPath::planes;
  const bool tap_by_tap = p.kind == PoolKind::max && p.offset_bytes && !writes_x(p);
  const bool rows = rows_fit(p) && !(tap_by_tap && (p.adaptive || p.q < kFewColumns)) &&
                    memory_of(p, PoolPath::rows).scratch <= kScratchLimit;
  const bool channels = channels_fit(p);
  if (rows && channels) return p.c > p.q ? PoolPath::channels : PoolPath::rows;
  return rows ? PoolPath::rows : channels ? PoolPath::channels : PoolPath::planes;
}

void plan_pool(const PoolProblem& p, int threads, PoolPlan& plan) {
  const PoolPath path = choose_path(p);
  const bool scatters = p.kind == PoolKind::max && writes_x(p) && path == PoolPath::planes;
  int64_t units = path == PoolPath::channels ? p.n : p.n * p.c;
  int64_t rows = writes_x(p) && path != PoolPath::whole ? p.h : p.p;
  Memory memory = memory_of(p, path);
  if (scatters) {
    rows = 1;  // of tasks: a scatter owns whole planes
    const int64_t block = p.x_strides[1] == 1 ? std::min(kScratchLimit / (4 * p.h * p.w) + 1, kScatterChannels) : 1;
    plan.detail[kChannelBlock] = std::min(p.c, block);
    units = p.n * ((p.c + plan.detail[kChannelBlock] - 1) / plan.detail[kChannelBlock]);
    memory.scratch *= plan.detail[kChannelBlock];
  }

  const int64_t lanes = path == PoolPath::planes ? 1 : 32 / size_of(p.dtype);
  plan.cost = cost::seconds((takes_powers(p) ? 50 : 1) * p.flops(), lanes, 0.3, 1, p.minimum_bytes());
  // A few tasks a thread, so that uneven ones balance, of at least some microseconds each; units first, because bands
  // of rows read their neighbours' rows again.
  const int64_t wanted = threads <= 1 ? 1 : std::clamp<int64_t>(plan.cost / cost::kLaunchSeconds, 1, 4 * threads);
  const int64_t blocks = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(units, 1));
  // Bands only of single units: a task may write past its rows' ends as far as its own last row, see store_until.
  const int64_t split = blocks < units ? 1 : (wanted + blocks - 1) / blocks;
  const int64_t bands = std::clamp<int64_t>(split, 1, std::max<int64_t>(rows, 1));
  plan.detail[kPath] = static_cast<int64_t>(path);
  plan.detail[kUnits] = units;
  plan.detail[kUnitsPerTask] = std::max<int64_t>((units + blocks - 1) / blocks, 1);
  plan.detail[kRows] = rows;
  plan.detail[kRowsPerTask] = std::max<int64_t>((rows + bands - 1) / bands, 1);
  plan.threads = static_cast<int>(std::min<int64_t>(threads, wanted));
  plan.detail[kSharedBytes] = round_up(memory.shared, kLine);
  plan.detail[kScratchBytes] = round_up(memory.scratch, kLine);
  plan.workspace_bytes = plan.detail[kSharedBytes] + plan.threads * plan.detail[kScratchBytes];
  if (plan.threads > 1) plan.cost = plan.cost / plan.threads + cost::kLaunchSeconds;
}

Threads planned(const PoolPlan& plan, const Execution& execution) {
  Threads threads = execution.threads;
  threads.count = std::min(threads.count, plan.threads);
  return threads;
}

}  // namespace

Status max_pool_supports(const PoolProblem& p) {
  if (p.kind != PoolKind::max) return Status::refuse("computes maxima only");
  if (p.pass != Pass::forward && !p.offset_bytes) return Status::refuse("needs the forward's window offsets");
  return {};
}

void max_pool_plan(const PoolProblem& p, int threads, PoolPlan& plan) { plan_pool(p, threads, plan); }

Status max_pool_run(const PoolPlan& plan, const PoolOperands& operands, void* workspace, const Execution& execution) {
  const Threads threads = planned(plan, execution);
  if (plan.problem.pass == Pass::forward) {
    FASTCONV_DISPATCH(max_pool_forward, plan, operands, workspace, threads);
  } else if (plan.problem.pass == Pass::gather) {
    FASTCONV_DISPATCH(max_pool_gather, plan, operands, workspace, threads);
  } else {
    FASTCONV_DISPATCH(max_pool_grad, plan, operands, workspace, threads);
  }
  return {};
}

Status avg_pool_supports(const PoolProblem& p) {
  if (p.kind != PoolKind::avg) return Status::refuse("computes averages only");
  if (p.dilation_h != 1 || p.dilation_w != 1) return Status::refuse("has no dilated windows");
  return {};
}

void avg_pool_plan(const PoolProblem& p, int threads, PoolPlan& plan) { plan_pool(p, threads, plan); }

Status avg_pool_run(const PoolPlan& plan, const PoolOperands& operands, void* workspace, const Execution& execution) {
  const Threads threads = planned(plan, execution);
  if (plan.problem.pass == Pass::forward) {
    FASTCONV_DISPATCH(avg_pool_forward, plan, operands, workspace, threads);
  } else {
    FASTCONV_DISPATCH(avg_pool_grad, plan, operands, workspace, threads);
  }
  return {};
}

Status lp_pool_supports(const PoolProblem& p) {
  if (p.kind != PoolKind::lp) return Status::refuse("computes LP norms only");
  if (std::isinf(p.norm.value()))
    return Status::refuse("takes finite norms; an infinite one is a maximum of magnitudes");
  return {};
}

void lp_pool_plan(const PoolProblem& p, int threads, PoolPlan& plan) { plan_pool(p, threads, plan); }

Status lp_pool_run(const PoolPlan& plan, const PoolOperands& operands, void* workspace, const Execution& execution) {
  const Threads threads = planned(plan, execution);
  if (plan.problem.pass == Pass::forward) {
    FASTCONV_DISPATCH(lp_pool_forward, plan, operands, workspace, threads);
  } else {
    FASTCONV_DISPATCH(lp_pool_grad, plan, operands, workspace, threads);
  }
  return {};
}

}  // namespace fastconv::cpu
