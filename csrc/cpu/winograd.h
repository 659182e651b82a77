// Row `winograd` on the CPU: minimal filtering for 3x3 and 5x5 filters of stride 1.
//
// Inputs that are not finite: the transforms add and subtract neighbours, so that one NaN or infinity makes every output
// of the tiles that read it NaN (infinity minus infinity, too), where a direct convolution spoils only those outputs
// whose window holds it. Nothing else changes: outputs of other tiles are exact as ever. For the same reason sums of
// magnitudes near the largest float may overflow earlier, by the transforms' gain (below 100 for F(4x4,3x3)).
#pragma once

#include "../core/table.h"
#include "isa.h"

namespace fastconv::cpu {

Status winograd_supports(const ConvProblem&);
void winograd_plan(const ConvProblem&, int threads, ConvPlan&);
Status winograd_run(const ConvPlan&, const ConvOperands&, void* workspace, const Execution&);
Status winograd_prepack(const ConvPlan&, const ConvOperands&, void* prepacked, const Execution&);
constexpr bool winograd_max_pools = true;

namespace winograd {

// Names for ConvPlan::detail of this row, forward and grad_input.
enum Detail {
  kOutputs,       // m of F(m x m, r x r)
  kBlocks,        // of tiles; a block is transformed, multiplied and written by one task
  kBlockTiles,    // in the largest of them
  kSplits,        // tasks that share a block's filters
  kInputStride,   // floats from one frequency to the next, of the transformed input
  kSumStride,     // and of the sums
  kFilterValues,  // transformed filter; 0: every block transforms it for itself, chunk by chunk
  kThreadBytes,
  kPrefetch,      // what the products prefetch: the sum of
  kChunk,         // channels whose products are summed in registers, with a kept filter
};
enum Prefetch {
  kPrefetchPixels = 1,   // what the next block reads and this one writes
  kPrefetchFilters = 2,  // a kept filter's next frequency
};
// For grad_weight. Tiles are of grad_output, m x m pixels.
enum WeightDetail {
  kWeightOutputs = kOutputs,
  kTaskTiles,      // of a block, the largest
  kTaskChannels,   // a task sums for so many channels
  kTaskFilters,    // and filter blocks of the register tile's width
  kTileSplits,     // tasks that share the tiles: partial sums, added in a fixed order
  kXStride,        // floats from one frequency to the next, of transformed x,
  kYStride,        // of transformed grad_output,
  kProductStride,  // and of the sums
  kSumValues,      // of one split, back in the filter's domain
  kWeightThreadBytes,
};

// The stride between frequencies is an odd number of cache lines: a tile's n x n values are stored and loaded together
// and would otherwise share a few cache sets.
inline int64_t odd_lines(int64_t floats) { return (((floats + 15) / 16) | 1) * 16; }

// What is noted of each tile of a block: where its transformed input lies.
constexpr int64_t kPlaceBytes = 24;
// Tiles that are transformed together are neighbours in a row: with their margins, at most 32 pixels.
constexpr int kSegmentPixels = 32;
// Channels whose products are summed in registers, and whose filters are transformed together where blocks do that.
constexpr int kChunkChannels = 32;
constexpr int segment_tiles(int outputs, int taps) { return (kSegmentPixels - taps + 1) / outputs; }
// Floats from one frequency to the next of such a chunk, for filter blocks of this width.
constexpr int64_t chunk_stride(int64_t width) { return kChunkChannels * width + 16; }
// From a chunk's taps to the row of frequencies that is made from them: half a page away from a whole number of pages,
// because a load waits for earlier stores whose addresses equal its own in the low 12 bits.
constexpr int64_t chunk_floats(int64_t taps, int64_t width) {
  return (taps * taps * chunk_stride(width) + 1023) / 1024 * 1024 + 512;
}
// Scratch of one segment: n rows of pixels before and after the transform of columns, or m rows of output.
constexpr int64_t segment_floats(int size, int64_t lanes) { return size * (kSegmentPixels + lanes) * lanes; }

}  // namespace winograd

FASTCONV_KERNEL(Status, winograd_gather, const ConvPlan&, const ConvOperands&, void* workspace, const Execution&)
FASTCONV_KERNEL(Status, winograd_weight, const ConvPlan&, const ConvOperands&, void* workspace, const Execution&)
FASTCONV_KERNEL(void, winograd_filter, const ConvPlan&, const void* weight, void* packed, const Threads&)

}  // namespace fastconv::cpu
