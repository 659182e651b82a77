#include "pointwise.h"

#include <algorithm>

#include "../core/div_up.h"
#include "arena.h"
#include "cost.h"
#include "direct.h"

namespace fastconv::cpu {
namespace pointwise {

View view_of(const ConvProblem& p) {
  View v{gather_of(p, 0), p.n, 0, true};
  Gather& g = v.g;
  v.pixels = g.rows.out * g.cols.out;
  const auto follows = [&](const Strides4& s) { return g.rows.out == 1 || s[2] == g.cols.out * s[3]; };
  v.fits = follows(g.dst) && (!p.residual || p.pass != Pass::forward || follows(g.residual));
  // Images whose pixels follow each other, too, are one long row.
  const bool flat = g.rows.out == 1 && g.rows.src == 1 && g.cols.step == 1;
  const auto images_follow = [&](const Strides4& s) { return s[0] == v.pixels * s[3]; };
  if (flat && p.n > 1 && images_follow(g.src) && images_follow(g.dst) &&
      (!p.has_aux() || p.pass == Pass::forward || images_follow(g.mask)) && (!p.residual || images_follow(g.residual))) {
    v.images = 1;
    v.pixels *= p.n;
    g.cols.src = g.cols.out = v.pixels;
  }
  return v;
}

View weight_view_of(const ConvProblem& p) {
  ConvProblem forward = p;
  forward.pass = Pass::forward;
  forward.residual = false;
  return view_of(forward);
}

}  // namespace pointwise

namespace {

using namespace pointwise;

constexpr int64_t kChainChannels = 144;  // as in direct

bool applies(const ConvProblem& p) {
  const bool floating = p.dtype == DType::f32 || p.dtype == DType::f16 || p.dtype == DType::bf16;
  return floating && p.r == 1 && p.s == 1 && p.pad_top == 0 && p.pad_left == 0 && p.pad_bottom == 0 &&
         p.pad_right == 0 && (p.pass != Pass::grad_input || (p.stride_h == 1 && p.stride_w == 1));
}

double packing_seconds(int64_t values, int64_t lanes, int threads) {
  return static_cast<double>(values) / static_cast<double>(lanes) * 4 / cost::kCyclesPerSecond / threads;
}
// What sums of `products` in `chunks` parts leave of 83 % of the peak, with `rows` of them at a time at most.
double efficiency(int64_t products, int64_t chunks, int64_t rows) {
  const auto real = [](int64_t v) { return static_cast<double>(v); };
  return 0.83 * real(products) / real(products + 4 * chunks) * std::min(1.0, real(rows + 2) / 14);
}

bool plan_weight(const ConvProblem& p, int available, TileShape tile, ConvPlan& plan) {
  if (p.has_aux() && p.aux_strides != p.y_strides) return false;
  const View v = weight_view_of(p);
  const Gather& g = v.g;
  const int64_t lanes = tile.width / 2, depth = v.images * v.pixels;
  if (depth == 0) return false;
  const int threads = plan.threads = cost::useful_threads(p.macs(), available);

  // Shares of filters as long as they are two tiles high: each packs grad_output once. Then of channels.
  int64_t filter_tasks = 1, channel_tasks = 1;
  while (p.groups * filter_tasks < threads && g.filters / (filter_tasks + 1) >= 2 * tile.height) ++filter_tasks;
  while (p.groups * filter_tasks * channel_tasks < threads && channel_tasks < div_up(g.channels, tile.width))
    ++channel_tasks;
  const int64_t filters = div_up(g.filters, filter_tasks);
  const int64_t blocks = div_up(div_up(g.channels, tile.width), channel_tasks);
  const int64_t chunk = std::min<int64_t>(128, div_up(depth, lanes) * lanes);
  // Packed grad_output stays in half of the second-level cache.
  const int64_t fit = processor().second_level / 2 / 4 / filters / chunk * chunk;
  const int64_t packed = std::min(std::max(chunk, fit), div_up(depth, lanes) * lanes);

  plan.detail[kForm] = weight;
  plan.detail[kDepth] = packed;
  plan.detail[kFilterTasks] = filter_tasks;
  plan.detail[kChannelTasks] = channel_tasks;
  plan.detail[kPixelChunk] = chunk;
  plan.detail[kDepthValues] = packed * filters;
  // Sums of one chunk are written at once.
  const int64_t tiles = depth <= chunk ? 1 : blocks * div_up(filters, tile.height);
  plan.detail[kWeightSums] = tiles * tile.height * tile.width;
  plan.detail[kWeightBytes] =
      4 * (plan.detail[kDepthValues] + plan.detail[kWeightSums] + chunk * tile.width + filters) + 5 * kArenaSlack;
  plan.workspace_bytes = threads * arena_round(plan.detail[kWeightBytes]) + kArenaSlack;
  plan.executed_macs = p.groups * depth * g.filters * div_up(g.channels, lanes) * lanes;
  plan.variant = "1x1: filters x channels";
  const double share = lanes <= 8 ? 0.92 : 1.0;  // measured on an AMD EPYC
  plan.cost = cost::seconds(plan.executed_macs, lanes, share * efficiency(depth, div_up(depth, chunk), g.filters), threads, 0) +
              packing_seconds(p.groups * depth * (g.filters * channel_tasks + 2 * g.channels * filter_tasks), lanes, threads) +
              static_cast<double>(p.minimum_bytes()) / (2 * cost::kBytesPerSecond) / threads;
  return true;
}

// Lanes along what is contiguous in the result. But few pixels fill lanes badly, and a large filter, packed, falls out of
// the second-level cache: then pixels are the tile's rows in any layout, and tiles are turned when written.
Form form_of(const View& v, TileShape tile) {
  if (!v.fits || v.pixels == 0) return none;
  const int64_t lanes = tile.width / 2;
  if (v.g.dst[1] == 1 && v.g.filters > 1) return filter_lanes;
  if (v.g.dst[3] != 1 && v.pixels > 1) return none;
  const int64_t padded = div_up(v.pixels, lanes) * lanes;
  const bool large = v.g.filters * v.g.channels * 4 > processor().second_level / 2;
  return v.g.filters >= tile.width && (large || padded * 8 > v.pixels * 9) ? filter_lanes : pixel_lanes;
}

}  // namespace

bool pointwise_plan(const ConvProblem& p, int available, ConvPlan& plan) {
  const TileShape tile = tile_shape(DType::f32);
  if (!applies(p)) return false;
  if (p.pass == Pass::grad_weight) return plan_weight(p, available, tile, plan);
  const View v = view_of(p);
  const Form form = form_of(v, tile);
  if (form == none) return false;
  const Gather& g = v.g;
  const int threads = plan.threads = cost::useful_threads(p.macs(), available);
  const int64_t lanes = tile.width / 2, images = v.images * p.groups;
  const bool by_pixels = form == pixel_lanes;

  const int64_t chunks = div_up(g.channels, kChainChannels);
  const int64_t chunk = chunks == 1 ? g.channels : div_up(div_up(g.channels, chunks), lanes) * lanes;
  const int64_t cache = processor().second_level;
  const int64_t padded_filters = div_up(g.filters, tile.width) * tile.width;
  const bool whole_filter = !by_pixels && padded_filters * g.channels * 4 <= cache / 2;
  int64_t pixel_splits = 1, filter_splits = 1;
  if (!by_pixels && !whole_filter) {  // as many pixels as stay in half of the cache
    const int64_t fit = cache / 2 / 4 / std::max<int64_t>(g.channels, 1);
    pixel_splits = div_up(v.pixels, std::clamp<int64_t>(fit, 4 * tile.height, kGroupTiles * tile.height));
  }
  // Even shares for the threads, of pixels as long as there are enough of them, else of filters.
  const int64_t least = by_pixels ? 4 * tile.width : 4 * tile.height;
  while (images * pixel_splits < 2 * threads && threads > 1 && v.pixels / (pixel_splits + 1) >= least) ++pixel_splits;
  const int64_t filter_step = by_pixels ? tile.height : tile.width;
  while (images * pixel_splits * filter_splits < threads && filter_splits < div_up(g.filters, filter_step))
    ++filter_splits;

  const int64_t pixels = div_up(v.pixels, pixel_splits), depth = div_up(g.channels, lanes) * lanes;
  const int64_t values = std::max<int64_t>(g.channels, 1) * tile.width;  // of one tile's width, packed
  // Few filters take more tiles, as far as a quarter of the cache holds their pixels: 32 filters 1.25 times as fast.
  const int64_t fitting = cache / 4 / 4 / tile.height / std::max<int64_t>(depth, 1);
  const int64_t near_group = std::clamp<int64_t>(std::min(1024 / std::max<int64_t>(padded_filters, 1), fitting),
                                                 kNearGroupTiles, kGroupTiles);
  const int64_t pixel_group =
      std::clamp<int64_t>(cache / 4 / 4 / values, 1, std::min(kPixelGroup, div_up(pixels, tile.width)));
  const int64_t group = by_pixels ? pixel_group : whole_filter ? near_group : kGroupTiles;
  plan.detail[kForm] = form;
  plan.detail[kPixels] = pixels;
  plan.detail[kPixelSplits] = pixel_splits;
  plan.detail[kFilterSplits] = filter_splits;
  plan.detail[kChunk] = chunk;
  plan.detail[kGroup] = group;
  plan.detail[kWholeFilter] = whole_filter;
  plan.detail[kPanelValues] = depth * (by_pixels ? g.filters : std::min(pixels, group * tile.height));
  plan.detail[kPiecesValues] = by_pixels      ? group * (values + tile.width)
                               : whole_filter ? div_up(div_up(g.filters, tile.width), filter_splits) * values
                                              : chunk * tile.width;
  plan.detail[pointwise::kSumValues] = group * (by_pixels ? filter_group(tile.height) : 1) * tile.height * tile.width;
  plan.detail[pointwise::kThreadBytes] =
      4 * (plan.detail[kPanelValues] + plan.detail[kPiecesValues] + plan.detail[pointwise::kSumValues]) +
      4 * kArenaSlack;
  plan.workspace_bytes = threads * arena_round(plan.detail[pointwise::kThreadBytes]) + kArenaSlack;

  const int64_t across = by_pixels ? v.pixels : g.filters, down = by_pixels ? g.filters : v.pixels;
  const int64_t padded = div_up(across, lanes) * lanes;
  plan.executed_macs = images * down * padded * g.channels;
  plan.variant = by_pixels ? "1x1: filters x pixels" : "1x1: pixels x filters";
  // Planes of pixels are packed at a quarter of the speed: each is a place of its own in memory. A residual is read as
  // the results are written, in order.
  const int64_t packed_pixels = g.channels * v.pixels * (by_pixels ? 4 : 1);
  const int64_t packed_filters = g.channels * g.filters * pixel_splits * (by_pixels || whole_filter ? 1 : 2);
  const int64_t residual = p.residual ? images * v.pixels * g.filters * 4 : 0;
  // With eight lanes (an AMD EPYC) planes of pixels leave four fifths of that, and a large filter nine tenths.
  const double share = lanes > 8 || whole_filter ? 1.0 : g.dst[1] == 1 ? 0.9 : 0.8;
  plan.cost = cost::seconds(plan.executed_macs, lanes, share * efficiency(g.channels, chunks, down), threads, residual) +
              packing_seconds(images * (packed_pixels + packed_filters), lanes, threads);
  return true;
}

}  // namespace fastconv::cpu
