// The form of row `direct` for 1x1 convolutions: a matrix product, with no window to unfold.
#pragma once

#include "../core/table.h"
#include "gather.h"
#include "isa.h"

namespace fastconv::cpu {

namespace pointwise {

// Names for ConvPlan::detail. kForm must not be one of the names in direct.h.
enum Detail {
  kPixels,        // of a task, at most
  kPixelSplits,   // tasks that share an image's pixels
  kFilterSplits,  // and its filters
  kChunk,         // channels whose products are summed in registers
  kGroup,         // steps that are packed and worked on together: tiles of pixels, or (pixel_lanes) tile widths of them
  kPanelValues,   // packed operand that gives the tile's rows
  kPiecesValues,  // and the other one: all of it, or one chunk of one tile's width
  kSumValues,
  kWholeFilter,   // filter_lanes: whether a task's filters are packed once and stay in the second-level cache
  kThreadBytes,
  kForm = 11,     // one of Form; none: the general loops of direct_gather.cpp
};
enum Form { none, pixel_lanes, filter_lanes, weight };
// For grad_weight: a task sums over all pixels for some filters and channels of a group.
enum WeightDetail {
  kDepth,          // pixels whose grad_output is packed at a time
  kFilterTasks,    // tasks that share a group's filters,
  kChannelTasks,   // and its channels
  kPixelChunk,     // pixels whose products are summed in registers
  kDepthValues,    // packed grad_output
  kWeightSums,     // of a task
  kWeightBytes,    // of a thread
};

// Tiles that share a packed chunk of filters: at most; and at least where all filters stay packed, where few tiles are
// better if the filters are many: their results, residuals and pixels then lie next to each other.
constexpr int64_t kGroupTiles = 32, kNearGroupTiles = 4;
// pixel_lanes: tile widths of pixels that are packed together, at most, and tiles of filters that share them: about 28
// filters, so that a packed piece of pixels is read from the second-level cache that seldom.
constexpr int64_t kPixelGroup = 16;
constexpr int64_t filter_group(int64_t tile_height) { return 28 / tile_height; }

// The forms' common view: images of `rows` rows of pixels, or one long row. Of grad_input the channels are the filters.
struct View {
  Gather g;
  int64_t images, pixels;  // pixels: of an image's output
  bool fits;               // the results of an image follow each other, with one stride
};
View view_of(const ConvProblem&);
// Of a filter's gradient: source is x, result is grad_output.
View weight_view_of(const ConvProblem&);

}  // namespace pointwise

// Whether the problem has this form; if so, the plan.
bool pointwise_plan(const ConvProblem&, int threads, ConvPlan&);

FASTCONV_KERNEL(Status, direct_pointwise_weight, const ConvPlan&, const ConvOperands&, void* workspace, const Execution&)
FASTCONV_KERNEL(Status, direct_pointwise, const ConvPlan&, const ConvOperands&, void* workspace, const Execution&)

}  // namespace fastconv::cpu
