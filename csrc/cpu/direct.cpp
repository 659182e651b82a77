#include "../core/div_up.h"
#include "direct.h"

#include <algorithm>

#include "arena.h"
#include "cost.h"
#include "gather.h"
#include "pointwise.h"

namespace fastconv::cpu {
namespace {

// Packed input per thread: half of the second-level cache.
int64_t band_bytes() { return processor().second_level / 2; }
// Products that are summed in registers: a chunk of the filter, which shares the first-level cache with a tile's input.
constexpr int64_t kChunkProducts = 147;

constexpr int64_t kSmallFilter = 64 << 10;

int64_t value_bytes(DType t) { return t == DType::f64 || is_integer(t) ? 8 : 4; }

struct Band {
  int64_t rows, cols, values, slots;
};

Band band_size(const Gather& g, int64_t rows, int64_t cols, int64_t lanes) {
  Band b{rows, cols, 0, 0};
  b.slots = source_span(g.rows, rows);
  const int64_t packed_rows = std::min({b.slots, rows * g.rows.taps, g.rows.src});
  const int64_t column_phases = std::min(g.cols.step, tap_span(g.cols) + 1);
  const int64_t pitch = column_phases * (cols + tap_span(g.cols) / g.cols.step) + lanes;
  b.values = std::max<int64_t>(packed_rows, 1) * g.channels * pitch;
  return b;
}

// The largest band whose packed input fits: whole rows if one fits, else part of a row.
Band choose_band(const Gather& g, TileShape tile, int64_t bytes_per_value) {
  const int64_t lanes = tile.width / 2;
  const auto fits = [&](int64_t rows, int64_t cols) {
    return band_size(g, rows, cols, lanes).values * bytes_per_value <= band_bytes();
  };
  int64_t cols = std::max<int64_t>(g.cols.out, 1), rows = 1;
  while (cols > tile.height && !fits(1, cols)) cols = div_up(div_up(cols, tile.height), 2) * tile.height;
  while (rows < g.rows.out && fits(rows + 1, cols)) ++rows;
  return band_size(g, rows, cols, lanes);
}

// Channels whose taps are about kChunkProducts products: even shares, whole vectors where there is more than one.
int64_t chunk_channels(int64_t channels, int64_t taps, int64_t lanes) {
  const int64_t most = std::max<int64_t>(1, kChunkProducts / taps);
  const int64_t even = div_up(channels, div_up(channels, most));
  return std::min(channels, even > lanes ? div_up(even, lanes) * lanes : even);
}

}  // namespace

TileShape tile_shape(DType dtype) {
  const Isa isa = processor().isa();
  return {tile_height(isa), kTileVectors * vector_bytes(isa) / value_bytes(dtype)};
}

Status direct_supports(const ConvProblem& p) { return takes_activation(p); }

namespace {

void plan_gather(const ConvProblem& p, int available, ConvPlan& plan) {
  const int threads = plan.threads = cost::useful_threads(p.macs(), available);
  const TileShape tile = tile_shape(p.dtype);
  const int64_t bytes = value_bytes(p.dtype);
  const Gather g = gather_of(p, 0);
  const int64_t blocks = div_up(g.filters, tile.width);
  Band band = choose_band(g, tile, bytes);

  // Even shares: among a few more bands and a split of the filter blocks, the smallest estimated longest thread.
  // Packing the input again for every chunk of filters costs about 1 per value against 2 * taps per block.
  const int64_t taps = g.rows.taps * g.cols.taps;
  const int64_t images = p.n * p.groups * gather_phases(p);
  const int64_t first = std::max<int64_t>(1, div_up(g.rows.out, band.rows));
  const int64_t last = std::min(std::max<int64_t>(1, g.rows.out), first + 2 * threads);
  double best = 0;
  int64_t best_rows = band.rows, best_chunks = 1;
  for (int64_t bands = first; bands <= last; ++bands) {
    const int64_t rows = div_up(std::max<int64_t>(1, g.rows.out), bands);
    for (int64_t chunks = 1; chunks <= std::min<int64_t>(blocks, 4 * threads); ++chunks) {
      const int64_t tasks = images * div_up(g.rows.out, rows) * div_up(g.cols.out, band.cols) * chunks;
      const double task = static_cast<double>(rows) * band.cols * (2.0 * taps * div_up(blocks, chunks) + 1);
      const double longest = static_cast<double>(div_up(tasks, threads)) * task;
      if (best == 0 || longest < best * 0.98) {
        best = longest;
        best_rows = rows;
        best_chunks = chunks;
      }
    }
  }
  band = band_size(g, best_rows, band.cols, tile.width / 2);

  plan.detail[kBandRows] = band.rows;
  plan.detail[kBandCols] = band.cols;
  plan.detail[kFilterChunks] = best_chunks;
  plan.detail[kBandValues] = band.values;
  const int64_t all_taps = p.r * p.s, chunk = chunk_channels(g.channels, all_taps, tile.width / 2);
  const int64_t group_rows = std::min(direct::kGroupTiles, band.rows);
  plan.detail[kChunkChannels] = chunk;
  plan.detail[kThreadBytes] =
      (band.values + (chunk * all_taps + direct::kGroupTiles * tile.height) * tile.width) * bytes +
      (band.slots + group_rows * (2 * all_taps * direct::listed_channels(chunk, g.channels) + 1)) * 8 + 7 * kArenaSlack;
  // Packed as a whole where phases share it, or where a small one would be packed again for every group of tiles.
  const int64_t all_values = p.groups * blocks * tile.width * all_taps * div_up(g.channels, chunk) * chunk;
  const int64_t tiles = images * g.rows.out * div_up(g.cols.out, tile.height);
  const bool small = all_values * bytes <= kSmallFilter && tiles > 4 * direct::kGroupTiles;
  plan.detail[kPackedFilter] = gather_phases(p) > 1 || small ? all_values : 0;
  plan.workspace_bytes =
      plan.detail[kPackedFilter] * bytes + threads * arena_round(plan.detail[kThreadBytes]) + 2 * kArenaSlack;
  // A last block of at most one vector of filters takes one.
  const int64_t lanes = tile.width / 2, vectors = div_up(g.filters, lanes);
  plan.executed_macs = p.macs() / g.filters * vectors * lanes;

  // Short sums pay more for starting; strides leave gaps in what is packed. With eight lanes measured on an AMD EPYC.
  const bool narrow = lanes <= 8, listed = direct::listed_channels(chunk, g.channels) > 1;
  const double efficiency = taps == 1            ? (narrow ? 0.55 : 0.74)
                            : narrow && listed   ? 0.8
                            : p.stride_h > 1     ? (narrow ? 0.5 : 0.66)
                                                 : 0.85;
  // A channels_last weight is packed from stretches of one tap each, at half the speed.
  const int64_t weight = p.groups * blocks * tile.width * taps * g.channels * bytes;
  const bool stretches = all_taps > 1 && p.weight_strides[1] == 1;
  plan.cost = cost::seconds(plan.executed_macs, lanes, efficiency, threads, stretches ? 2 * weight : weight);
}

void plan_weight(const ConvProblem& p, int available, ConvPlan& plan) {
  const int threads = plan.threads = cost::useful_threads(p.macs(), available);
  const TileShape tile = tile_shape(p.dtype);
  const int64_t bytes = value_bytes(p.dtype);
  const int64_t blocks = div_up(p.group_k(), tile.width), taps = p.r * p.s;
  const int64_t rows = p.p(), cols = p.q();

  // Chunks of channels and filter blocks that give every thread work; the input is packed again for every chunk of
  // filters and grad_output for every chunk of channels, so chunks are as large as that allows.
  // Where taps and channels are merged the channels stay together; they are few.
  int64_t channels = std::min<int64_t>(p.group_c(), 64), filters = std::min<int64_t>(blocks, 8);
  const auto tasks = [&] { return p.groups * div_up(p.group_c(), channels) * div_up(blocks, filters); };
  while (filters > 1 && tasks() < 2 * threads) filters = div_up(filters, 2);
  while (channels > 2 * tile.height && tasks() < 2 * threads) channels = div_up(channels, 2);

  const auto x_values = [&](int64_t band) {
    const int64_t span = std::min({(band - 1) * p.stride_h + (p.r - 1) * p.dilation_h + 1, band * p.r, p.h});
    return span * std::max(p.w, merged_columns(p, tile.height)) * channels;
  };
  const auto y_values = [&](int64_t band) { return band * cols * tile.width; };
  int64_t band = 1;
  while (band < rows && (x_values(band + 1) + y_values(band + 1)) * bytes <= band_bytes()) ++band;
  if (p.n * div_up(rows, band) < 2 && rows > 1) band = div_up(rows, 2);

  // Where filters and channels are too few, threads share the images and rows: partial sums, added in a fixed order.
  int64_t splits = 1;
  if (tasks() < threads) splits = std::min<int64_t>(div_up(threads, tasks()), p.n * div_up(rows, band));

  const int64_t sums = p.groups * blocks * tile.width * taps * p.group_c();
  plan.detail[kChannelChunk] = channels;
  plan.detail[kFilterChunk] = filters;
  plan.detail[kSplits] = splits;
  plan.detail[kWeightBandRows] = band;
  plan.detail[kSumValues] = sums;
  plan.detail[kBandXValues] = x_values(band);
  plan.detail[kBandYValues] = y_values(band);
  const int64_t bias = p.groups * blocks * tile.width;
  const int64_t slots = (band - 1) * p.stride_h + (p.r - 1) * p.dilation_h + 1;
  plan.detail[kWeightThreadBytes] = (x_values(band) + y_values(band)) * bytes + (slots + 2 * band) * 8 + 6 * kArenaSlack;
  plan.workspace_bytes =
      splits * (sums + bias) * bytes + threads * arena_round(plan.detail[kWeightThreadBytes]) + 4 * kArenaSlack;
  plan.executed_macs = p.macs() / p.group_k() * blocks * tile.width;
  // Sums over few rows of one tap: im2col makes longer ones of them.
  const double efficiency = taps == 1 ? 0.5 : 0.75;
  plan.cost = cost::seconds(plan.executed_macs, tile.width / 2, efficiency, threads, 3 * sums * bytes * splits);
}

}  // namespace

void direct_plan(const ConvProblem& p, int threads, ConvPlan& plan) {
  if (pointwise_plan(p, threads, plan)) return;
  if (p.pass == Pass::grad_weight)
    plan_weight(p, threads, plan);
  else
    plan_gather(p, threads, plan);
}

Status direct_run(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  if (plan.detail[pointwise::kForm] == pointwise::weight)
    return FASTCONV_DISPATCH(direct_pointwise_weight, plan, operands, workspace, exec);
  if (plan.problem.pass == Pass::grad_weight)
    return FASTCONV_DISPATCH(direct_weight, plan, operands, workspace, exec);
  if (plan.detail[pointwise::kForm] != pointwise::none)
    return FASTCONV_DISPATCH(direct_pointwise, plan, operands, workspace, exec);
  return FASTCONV_DISPATCH(direct_gather, plan, operands, workspace, exec);
}

Status direct_prepack(const ConvPlan&, const ConvOperands&, void*, const Execution&) { return {}; }

}  // namespace fastconv::cpu
