// Row `direct` on the CPU: register-tiled direct convolution, any parameters, any strides.
#pragma once

#include "../core/table.h"
#include "isa.h"

namespace fastconv::cpu {

Status direct_supports(const ConvProblem&);
void direct_plan(const ConvProblem&, int threads, ConvPlan&);
Status direct_run(const ConvPlan&, const ConvOperands&, void* workspace, const Execution&);
Status direct_prepack(const ConvPlan&, const ConvOperands&, void* prepacked, const Execution&);
constexpr bool direct_max_pools = false;

// Names for ConvPlan::detail of this row. Forward and grad_input ("gather": every output value gathers its inputs):
enum GatherDetail { kBandRows, kBandCols, kFilterChunks, kBandValues, kChunkChannels, kPackedFilter, kThreadBytes };
// grad_weight:
enum WeightDetail { kChannelChunk, kFilterChunk, kSplits, kWeightBandRows, kSumValues, kBandXValues, kBandYValues,
                    kWeightThreadBytes };

// ReLU keeps an integer one; the other activations are for floating point, as in torch.
static inline Status takes_activation(const ConvProblem& p) {
  if (is_integer(p.dtype) && p.activation > Activation::relu)
    return Status::refuse(std::string("knows no activation of integers but relu"));
  return {};
}

namespace direct {
// Tiles that share a packed chunk of the filter, at most; their sums take 57 KB in fp32.
constexpr int64_t kGroupTiles = 32;
// With few channels a tile's walk lists every product, channels too, and is one flat loop: a loop over three channels for
// each tap costs as much as its products. How many of a chunk's channels are listed for each tap.
static inline int64_t listed_channels(int64_t chunk, int64_t channels) {
  return chunk < 8 && channels % chunk == 0 ? chunk : 1;
}
}  // namespace direct

// The number of output pixels and filters of one register tile, for the ISA that is planned for and a problem's dtype.
struct TileShape {
  int64_t height, width;
};
TileShape tile_shape(DType);

// With few channels the filter's gradient takes the taps of a filter row and their channels as one run of neighbours (in
// [column][channel] order they are), so that its tiles are full: 33 values in 3 tiles for 11 x 11 x 3 instead of 11 tiles
// of 3. Such rows are packed with their padding, to this many columns; 0 where it does not pay or dilation forbids it.
static inline int64_t merged_columns(const ConvProblem& p, int64_t tile_height) {
  const bool merge = p.dilation_w == 1 && p.s > 1 && p.group_c() < tile_height;
  return merge ? (p.q() - 1) * p.stride_w + p.s : 0;
}

FASTCONV_KERNEL(Status, direct_gather, const ConvPlan&, const ConvOperands&, void* workspace, const Execution&)
FASTCONV_KERNEL(Status, direct_weight, const ConvPlan&, const ConvOperands&, void* workspace, const Execution&)

}  // namespace fastconv::cpu
