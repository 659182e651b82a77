#include "../core/div_up.h"
#include "winograd.h"

#include <algorithm>

#include "arena.h"
#include "cost.h"
#include "direct.h"
#include "gather.h"
#include "processor.h"

namespace fastconv::cpu {
namespace {

using winograd::odd_lines;
using winograd::segment_floats;

bool is_half(DType t) { return t == DType::f16 || t == DType::bf16; }

// Largest m of F(m x m, r x r) whose error stays in the problem's class; 0: none. Measured, as max |err| / max |y| with
// normal inputs: F(2,3) 2 to 4e-7, F(4,3) 0.8 to 1.5e-6 (above 2e-6 in 1 of 3000 small random problems, by 5 %), F(2,5)
// 1.2e-6, F(6,3) 4 to 7e-6, F(4,5) 4 to 6e-6; gradients of the filter by F(3,2) 3 to 5e-7, F(3,4) 1 to 1.6e-6, F(5,2)
// 2e-6. Half types round their results to 5e-4 and 4e-3, so that every form is in the class "torch".
int64_t largest_outputs(const ConvProblem& p) {
  const bool five = p.r == 5, half = is_half(p.dtype), fast = half || p.accuracy != Accuracy::torch;
  if (p.pass == Pass::grad_weight) return !five ? (fast ? 4 : 2) : half || p.accuracy == Accuracy::fastest ? 2 : 0;
  if (p.accuracy == Accuracy::fastest) return five ? 4 : 6;
  return five ? (fast ? 2 : 0) : fast ? 4 : 2;
}

struct Geometry {
  Gather g;
  int64_t m, n, tiles, filter_blocks;
  TileShape shape;
  int64_t lanes() const { return shape.width / 2; }
  // Vectors of at most eight lanes, AVX2: constants for them were measured on an AMD EPYC of the third generation.
  bool narrow() const { return lanes() <= 8; }
};

Geometry geometry_of(const ConvProblem& p, int64_t m) {
  Geometry s{gather_of(p, 0), m, m + p.r - 1, 0, 0, tile_shape(DType::f32)};
  s.tiles = p.n * div_up(s.g.rows.out, m) * div_up(s.g.cols.out, m);
  s.filter_blocks = div_up(s.g.filters, s.shape.width);
  return s;
}

// Whether the transformed filter of a group stays in the second-level cache beside a block of tiles.
bool stays_near(const Geometry& s) {
  return s.filter_blocks * s.shape.width * s.g.channels * s.n * s.n * 4 < processor().second_level / 2;
}

// How a kept filter streams by, once for each block of tiles: bytes per cycle in the first block, to which it comes from
// memory because a network's other filters have passed through the caches, and in later ones; and whether the first one
// waits for it instead of multiplying meanwhile.
struct Stream {
  double first, later;
  bool waits;
};
Stream stream_of(const Geometry& s, double bytes) {
  if (stays_near(s)) return {32, 32, false};
  if (s.narrow()) return {2.2, 10, false};  // an AMD EPYC with AVX2, where the next frequency is prefetched
  if (processor().multiply_adds == 1) return bytes > 16e6 ? Stream{6, 6, false} : Stream{14, 14, false};  // with AVX-512
  return {2.5, 9, true};  // an Intel Xeon
}

// Cycles that one core would take, at the rate that cost::seconds assumes.
double seconds(const Geometry& s, const ConvProblem& p, int64_t blocks, bool kept, int threads) {
  const auto real = [](int64_t v) { return static_cast<double>(v); };
  const int64_t parts = blocks * div_up(div_up(s.tiles, blocks), s.shape.height);
  const int64_t frequencies = s.n * s.n, steps = s.filter_blocks * s.g.channels * frequencies;
  // A step of the inner loop: two multiply-adds per tile, no fewer than the loads' latency and the sums' stores hide.
  const double multiply =
      real(steps) * (2 * real(s.tiles) / (0.93 * processor().multiply_adds) + 2 * real(parts));
  const double bytes_kept = real(steps * s.shape.width) * 4;
  const Stream stream = stream_of(s, bytes_kept);
  const double first = bytes_kept / stream.first, later = bytes_kept / stream.later;
  const double with_kept = stream.waits ? std::max(multiply, real(blocks) * later) + first
                                        : std::max(multiply, first + real(blocks - 1) * later);
  // The weight of a kept filter is read for the hash, by one thread. A fresh one costs its transform: cycles per channel
  // and filter block. Its blocks of tiles are larger, so that their products come from the second-level cache. Measured
  // on the Xeon, and with eight lanes on the EPYC.
  const double hash = real(s.filter_blocks * s.shape.width * s.g.channels * p.r * p.s * 4) / 4;
  const double fresh = real(blocks * s.filter_blocks * s.g.channels) * (20.0 * real(p.r * p.s) + 3.5 * real(frequencies));
  const double with_fresh = s.narrow() ? 1.4 * multiply + 1.55 * fresh : 1.1 * multiply + fresh;
  // Of 5x5 filters, with eight lanes: as measured beside direct, whose model takes padded taps for work.
  const double products = (s.narrow() && p.r == 5 ? 0.6 : 1.0) * (kept ? with_kept : with_fresh);
  // Cycles per value of a tile and vector of channels: the transforms, and turning planes into lanes of channels.
  const double in = s.g.src[1] == 1 ? 5 : 10, out = s.g.dst[1] == 1 ? 3.6 : 7;
  const double transforms = real(s.tiles * frequencies) * (in * real(div_up(s.g.channels, s.lanes())) +
                                                            out * real(div_up(s.g.filters, s.lanes())));
  const double work = real(p.groups) * (products + transforms + (kept ? hash * threads : 0));
  const double bytes = real(p.minimum_bytes());
  return (work / cost::kCyclesPerSecond + bytes / cost::kBytesPerSecond) / threads +
         (threads > 1 ? cost::kLaunchSeconds : 0) + 1e-6;
}

}  // namespace

Status winograd_supports(const ConvProblem& p) {
  const auto times = [](int64_t a, int64_t b) { return std::to_string(a) + "x" + std::to_string(b); };
  if (p.r != p.s || (p.r != 3 && p.r != 5))
    return Status::refuse("winograd needs a 3x3 or 5x5 filter, not " + times(p.r, p.s));
  if (p.stride_h != 1 || p.stride_w != 1)
    return Status::refuse("winograd needs stride 1, not " + times(p.stride_h, p.stride_w));
  if (p.dilation_h != 1 || p.dilation_w != 1)
    return Status::refuse("winograd needs dilation 1, not " + times(p.dilation_h, p.dilation_w));
  if (largest_outputs(p) == 0)
    return Status::refuse(std::string("winograd for 5x5 filters in fp32 exceeds the error of the accuracy class '") +
                          name(p.accuracy) + "'");
  if (p.groups > 1 && (p.group_c() < 4 || p.group_k() < 4))
    return Status::refuse("winograd needs at least 4 channels and 4 filters per group, not " +
                          std::to_string(p.group_c()) + " and " + std::to_string(p.group_k()));
  return {};
}

namespace {

void plan_gather(const ConvProblem& p, int64_t m, bool kept, int available, ConvPlan& plan) {
  const Geometry s = geometry_of(p, m);
  const int64_t n = s.n, lanes = s.lanes(), width = s.shape.width, channels = s.g.channels;
  const int64_t macs = p.groups * s.tiles * n * n * channels * s.filter_blocks * width;
  const int threads = plan.threads = cost::useful_threads(macs, available);

  // About one register tile of tiles (two where that is small): more only takes cache. At 14 x 32 the transformed
  // filter streams by at 128 bytes per 28 cycles, which the third-level cache sustains; at 8 x 32 it does not, so that
  // 16 tiles are one block of twice 8. At 6 x 16 it is 64 bytes per 6 cycles and register tile: with 24 tiles and the
  // next frequency's filter prefetched, 256 channels at 56x56 take 0.6 of the time that 12 take without.
  int64_t good_tiles = s.narrow() ? 24 : s.shape.height * (s.shape.height < 8 ? 2 : 1);
  if (n == 4) good_tiles *= 2;
  // A block that transforms its filters for itself: as many as leave room for them in three quarters of the cache.
  if (!kept) good_tiles = std::max(good_tiles, (processor().second_level * 3 / 4 / 4 / (n * n) - 1024) / (channels + width));
  const int64_t blocks = std::max<int64_t>(1, kept ? (s.tiles + good_tiles / 2 - 1) / good_tiles : div_up(s.tiles, good_tiles));
  const int64_t block_tiles = div_up(s.tiles, blocks);
  // Threads share the filters of a block where blocks are few, and transform its input each for themselves.
  int64_t splits = 1;
  while (splits < s.filter_blocks && splits < threads && p.groups * blocks * splits < 3 * threads) ++splits;

  plan.detail[winograd::kOutputs] = m;
  plan.detail[winograd::kBlocks] = blocks;
  plan.detail[winograd::kBlockTiles] = block_tiles;
  plan.detail[winograd::kSplits] = splits;
  plan.detail[winograd::kInputStride] = odd_lines(div_up(channels, lanes) * lanes * block_tiles);
  plan.detail[winograd::kSumStride] = odd_lines(width * block_tiles);
  plan.detail[winograd::kFilterValues] = kept ? p.groups * s.filter_blocks * width * n * n * channels : 0;
  const int64_t frequencies = plan.detail[winograd::kInputStride] + plan.detail[winograd::kSumStride];
  plan.detail[winograd::kThreadBytes] =
      4 * (n * n * frequencies + (kept ? 0 : winograd::chunk_floats(p.r, width) + n * winograd::chunk_stride(width)) +
           2 * segment_floats(static_cast<int>(n), lanes)) +
      winograd::kPlaceBytes * block_tiles + 7 * kArenaSlack;
  // With one multiply-add per cycle (an AMD EPYC) prefetching gains most of all. With two (an Intel Xeon) a line costs the
  // products 30 cycles: that pays only in NHWC with few channels. In NCHW every line is in a page of its own: without,
  // 64 channels at 224x224 take 0.80 of the time, 256 at 56x56 0.84. With eight lanes it pays in NCHW (0.83 and 1.0).
  const bool nhwc = s.g.src[1] == 1 && s.g.dst[1] == 1;
  const bool pixels = nhwc ? channels + s.g.filters <= 128 : s.narrow();
  plan.detail[winograd::kPrefetch] = (processor().multiply_adds == 1 || pixels ? winograd::kPrefetchPixels : 0) +
                                     (s.narrow() ? winograd::kPrefetchFilters : 0);
  // Sums of twice the length take 0.93 of the time with eight lanes. Their larger rounding shows with few channels: F(4,3)
  // with 64 and 128 then errs by up to 2.2e-6 instead of 1.4e-6, with 256 and 512 by 1.4e-6 either way.
  plan.detail[winograd::kChunk] = winograd::kChunkChannels * (s.narrow() && channels >= 256 ? 2 : 1);
  plan.prepack_bytes = plan.detail[winograd::kFilterValues] * 4;
  plan.prepack_key = m;
  plan.workspace_bytes =
      plan.prepack_bytes + threads * arena_round(plan.detail[winograd::kThreadBytes]) + 2 * kArenaSlack;
  plan.executed_macs = macs;

  plan.cost = seconds(s, p, blocks, kept, threads);
}

void plan_weight(const ConvProblem& p, int64_t m, int available, ConvPlan& plan) {
  const TileShape shape = tile_shape(DType::f32);
  const int64_t lanes = shape.width / 2, n = m + p.r - 1, taps = p.r * p.s;
  const int64_t channels = p.group_c(), blocks = div_up(p.group_k(), shape.width);
  const int64_t tiles = p.n * div_up(p.p(), m) * div_up(p.q(), m);
  const int64_t macs = p.groups * tiles * n * n * channels * blocks * shape.width;
  const int threads = plan.threads = cost::useful_threads(macs, available);

  // 64 x 64 filters per task: 36 frequencies of sums take 590 KB, and transforming x and grad_output again for every
  // task 8 % each of the multiplications' time. 28 tiles: 260 KB each, and adding a block's sums to memory 7 %.
  const int64_t task_channels = div_up(channels, div_up(channels, 64));
  const int64_t task_filters = std::min(blocks, std::max<int64_t>(1, 64 / shape.width));
  const int64_t channel_tasks = div_up(channels, task_channels), filter_tasks = div_up(blocks, task_filters);
  const int64_t block = std::min<int64_t>(tiles, 28);
  const int64_t splits =
      std::clamp<int64_t>(div_up(threads, p.groups * channel_tasks * filter_tasks), 1, div_up(tiles, block));

  plan.detail[winograd::kWeightOutputs] = m;
  plan.detail[winograd::kTaskTiles] = block;
  plan.detail[winograd::kTaskChannels] = task_channels;
  plan.detail[winograd::kTaskFilters] = task_filters;
  plan.detail[winograd::kTileSplits] = splits;
  plan.detail[winograd::kXStride] = odd_lines(block * div_up(task_channels, lanes) * lanes);
  plan.detail[winograd::kYStride] = odd_lines(block * task_filters * shape.width);
  plan.detail[winograd::kProductStride] = odd_lines(task_channels * task_filters * shape.width);
  plan.detail[winograd::kSumValues] = p.groups * blocks * channels * taps * shape.width;
  plan.detail[winograd::kWeightThreadBytes] =
      4 * (n * n * (plan.detail[winograd::kXStride] + plan.detail[winograd::kYStride] +
                    plan.detail[winograd::kProductStride]) +
           2 * segment_floats(static_cast<int>(n), lanes)) +
      6 * kArenaSlack;
  plan.workspace_bytes = splits * 4 * (plan.detail[winograd::kSumValues] + p.groups * blocks * shape.width) +
                         threads * arena_round(plan.detail[winograd::kWeightThreadBytes]) + 3 * kArenaSlack;
  plan.executed_macs = macs;

  // Cycles, as in seconds() above.
  const auto real = [](int64_t v) { return static_cast<double>(v); };
  const double sums = real(n * n * channels * blocks), rounds = real(std::max(splits, div_up(tiles, block)));
  const double multiply = sums * (2 * real(tiles) / 0.93 + 6 * rounds);
  const double in = p.x_strides[1] == 1 ? 5 : 10, out = p.y_strides[1] == 1 ? 4 : 8;
  const double transforms = real(tiles * n * n) * (in * real(div_up(channels, lanes) * filter_tasks) +
                                                   out * real(div_up(p.group_k(), lanes) * channel_tasks));
  const double finish = real(splits) * (8 * sums + real(channels * blocks * taps) * 30);
  const double share = lanes <= 8 ? 0.77 : 1.0;  // as measured on an AMD EPYC
  const double work = share * real(p.groups) * (multiply + transforms + finish) / cost::kCyclesPerSecond;
  plan.cost = (work + real(p.minimum_bytes()) / cost::kBytesPerSecond) / threads +
              (threads > 1 ? cost::kLaunchSeconds : 0) + 1e-6;
}

void plan_form(const ConvProblem& p, int64_t m, int threads, ConvPlan& plan) {
  if (p.pass == Pass::grad_weight) return plan_weight(p, m, threads, plan);
  ConvPlan fresh = plan;
  plan_gather(p, m, true, threads, plan);
  if (stays_near(geometry_of(p, m)) && !processor().always_fresh) return;
  plan_gather(p, m, false, threads, fresh);
  if (fresh.cost > 1.1 * plan.cost && !processor().always_fresh) return;
  fresh.cost = std::min(fresh.cost, plan.cost);  // near equals: the one that keeps no memory is taken for the other
  plan = fresh;
}

// Minimal filtering F(m x m, r x r) by its name: for grad_weight the filter is the output, and m x m pixels the filter.
const char* variant(const ConvPlan& plan) {
  const bool weight = plan.problem.pass == Pass::grad_weight, fresh = !weight && plan.prepack_bytes == 0;
#define FASTCONV_FRESH(name) (fresh ? name ", filters transformed per block" : name)
  switch (plan.problem.r * 10 + plan.detail[winograd::kOutputs]) {
    case 32: return weight ? "F(3x3,2x2)" : FASTCONV_FRESH("F(2x2,3x3)");
    case 34: return weight ? "F(3x3,4x4)" : FASTCONV_FRESH("F(4x4,3x3)");
    case 36: return FASTCONV_FRESH("F(6x6,3x3)");
    case 52: return weight ? "F(5x5,2x2)" : FASTCONV_FRESH("F(2x2,5x5)");
    default: return FASTCONV_FRESH("F(4x4,5x5)");
  }
#undef FASTCONV_FRESH
}

}  // namespace

void winograd_plan(const ConvProblem& p, int threads, ConvPlan& plan) {
  plan_form(p, 2, threads, plan);
  for (int64_t m = 4; m <= largest_outputs(p); m += 2) {
    ConvPlan candidate = plan;
    plan_form(p, m, threads, candidate);
    if (candidate.cost < 0.95 * plan.cost) plan = candidate;  // of near equals the one with the smaller error
  }
  plan.variant = variant(plan);
}

Status winograd_run(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  if (plan.problem.pass == Pass::grad_weight)
    return FASTCONV_DISPATCH(winograd_weight, plan, operands, workspace, exec);
  return FASTCONV_DISPATCH(winograd_gather, plan, operands, workspace, exec);
}

Status winograd_prepack(const ConvPlan& plan, const ConvOperands& operands, void* prepacked, const Execution& exec) {
  if (plan.prepack_bytes == 0) return {};
  Threads threads = exec.threads;
  threads.count = std::min(threads.count, plan.threads);
  FASTCONV_DISPATCH(winograd_filter, plan, operands.weight, prepacked, threads);
  return {};
}

}  // namespace fastconv::cpu
