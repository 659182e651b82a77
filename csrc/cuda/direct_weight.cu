#include "direct_weight.cuh"

#include <algorithm>
#include <numeric>

#include "direct.cuh"
#include "direct_any.cuh"
#include "implicit_gemm.cuh"

namespace fastconv::FASTCONV_GPU {
namespace {

constexpr int64_t kMostShared = 64 << 10;  // what sm_75 has

WeightAxis weight_axis(int64_t source, int64_t count, int64_t taps, int64_t stride, int64_t pad, int64_t dilation) {
  WeightAxis a;
  const int64_t step = taps > 1 ? dilation : 0, scale = count > 1 ? stride : std::max<int64_t>(step, 1);
  const int64_t sample = std::gcd(scale, step);  // the patch leaves out what nothing reads
  a.source = static_cast<int>(source);
  a.count = static_cast<int>(count);
  a.scale = static_cast<int>(scale);
  a.shift = static_cast<int>(-pad);
  a.sample = static_cast<int>(sample);
  a.pixel = static_cast<int>(scale / sample);
  a.tap = static_cast<int>(step / sample);
  a.dilation = static_cast<int>(step);
  a.taps = static_cast<int>(taps);
  return a;
}

int64_t patch_of(const WeightAxis& a, int64_t tile, int64_t taps) {
  return (tile - 1) * a.pixel + (taps - 1) * a.tap + 1;
}

// What a block makes and the parts of the pixels.
struct WeightShape {
  int64_t octets = 0, quads = 1, tap_rows = 1, rows = 1, columns = 1, splits = 1;
  int64_t blocks = 0, macs = 0;
  double seconds = 0;
};

WeightShape choose_shape(const ConvProblem& p, const WeightAxis& rows, const WeightAxis& columns) {
  constexpr double kCarry = 25, kStep = 80, kShare = 0.8;  // as in direct_tiled.cu
  constexpr int64_t kPartialBytes = int64_t{256} << 20, kMostPixels = 16384;
  constexpr int kInput = DirectWeightTile<float>::kInput, kGrad = DirectWeightTile<float>::kGrad;
  const int64_t sum_bytes = p.dtype == DType::f64 ? 8 : 4, lots_of_thread = sum_bytes == 8 ? 1 : 2;
  const int64_t all_quads = div_up(p.group_c(), kQuad), elements = p.k * (p.group_c() * p.r * p.s + p.bias);
  WeightShape best;
  for (int64_t octets = 8; octets >= 1; octets /= 2) {
    const int64_t room = kWeightThreads / octets * lots_of_thread;
    const auto fewer = [](int64_t rows) { return rows > 1 ? div_up(rows, 2) : 0; };
    for (int64_t tap_rows = std::min<int64_t>(p.r, room / p.s); tap_rows >= 1; tap_rows = fewer(tap_rows)) {
      WeightShape s;
      s.octets = octets;
      s.tap_rows = div_up(p.r, div_up(p.r, tap_rows));
      const int64_t most_quads = std::min(all_quads, room / (s.tap_rows * p.s));
      if (most_quads < 1) continue;
      s.quads = div_up(all_quads, div_up(all_quads, most_quads));
      // The largest tile of pixels that a thread can carry and shared memory can hold.
      int64_t most = 0;
      for (int64_t parts = 1; parts <= 64; ++parts) {
        const int64_t width = div_up(columns.count, parts);
        if (parts > 1 && width == div_up(columns.count, parts - 1)) continue;
        const auto fits = [&](int64_t height) {
          const int64_t positions = patch_of(rows, height, s.tap_rows) * patch_of(columns, width, p.s);
          const int64_t pixels = height * width, filters = octets * kWeightFilters;
          if (positions * s.quads * kQuad > kInput * kWeightThreads) return false;
          if (pixels * filters > kGrad * kWeightThreads) return false;
          const int64_t values = positions * pitch_of(static_cast<int>(s.quads)) +
                                 pixels * pitch_of(static_cast<int>(filters / kQuad));
          return 2 * values * sum_bytes <= kMostShared;
        };
        if (!fits(1)) continue;
        int64_t height = 1;
        while (height < rows.count && fits(height + 1)) ++height;
        height = div_up(rows.count, div_up(rows.count, height));
        if (height * width > most) {
          most = height * width;
          s.rows = height;
          s.columns = width;
        }
      }
      if (most == 0) continue;
      const int64_t tiles = p.n * div_up(rows.count, s.rows) * div_up(columns.count, s.columns);
      const int64_t places = div_up(p.r, s.tap_rows) * div_up(all_quads, s.quads) *
                             div_up(p.group_k(), octets * kWeightFilters) * p.groups;
      const int64_t pixels = p.n * rows.count * columns.count;
      for (int64_t waves = 1; waves <= 4; ++waves) {
        int64_t splits = std::max<int64_t>(1, waves * DirectMachine::kMultiprocessors / places);
        splits = std::max(splits, div_up(pixels, kMostPixels));
        const int64_t most_splits = std::clamp<int64_t>(kPartialBytes / (elements * sum_bytes), 1, 65535);
        splits = std::min({splits, tiles, most_splits});
        const int64_t each = div_up(tiles, splits);
        s.splits = div_up(tiles, each);
        s.blocks = places * s.splits;
        const int64_t pixel_macs = kWeightThreads * kWeightFilters * kQuad * lots_of_thread;
        s.macs = places * pixels * pixel_macs;
        const double real = static_cast<double>(each) * pixels / tiles;  // pixels of a split
        const double carried = (kInput + kGrad) / 2.0;  // accesses of a thread for each tile: some are wide
        const double cycles = real * pixel_macs / (128 * kShare) * (sum_bytes == 8 ? 2 : 1) +
                              each * (carried * kCarry * kWeightThreads / 128 + kStep);
        s.seconds = div_up(s.blocks, DirectMachine::kMultiprocessors) * cycles / DirectMachine::kClock +
                    2.0 * s.splits * elements * sum_bytes / DirectMachine::kBytesPerSecond;
        if (best.octets == 0 || s.seconds < best.seconds) best = s;
      }
    }
  }
  return best;
}

template <class T>
Status run_weight(const ConvPlan& plan, const ConvOperands& o, void* workspace, void* stream) {
  using Tile = DirectWeightTile<T>;
  using Sum = Compute<T>;
  const ConvProblem& p = plan.problem;
  const auto detail = [&](int i) { return static_cast<int>(plan.detail[i]); };
  const int64_t splits = plan.detail[DirectDetail::splits];
  DirectWeight<T> g;
  g.x = static_cast<const T*>(o.x);
  g.x_strides = Strides<int32_t>(p.x_strides);
  g.dy = GradOutput<T, int32_t>(p, o);
  g.images = static_cast<int>(p.n);
  g.channels = static_cast<int>(p.group_c());
  g.filters = static_cast<int>(p.group_k());
  g.octets = detail(DirectDetail::weight_octets);
  g.quads = detail(DirectDetail::weight_quads);
  g.tap_rows = detail(DirectDetail::weight_tap_rows);
  g.rows = weight_axis(p.h, p.p(), p.r, p.stride_h, p.pad_top, p.dilation_h);
  g.columns = weight_axis(p.w, p.q(), p.s, p.stride_w, p.pad_left, p.dilation_w);
  g.rows.tile = detail(DirectDetail::weight_rows);
  g.columns.tile = detail(DirectDetail::weight_columns);
  g.rows.patch = static_cast<int>(patch_of(g.rows, g.rows.tile, g.tap_rows));
  g.columns.patch = static_cast<int>(patch_of(g.columns, g.columns.tile, p.s));
  g.quad_tiles = static_cast<int>(div_up(div_up(g.channels, kQuad), g.quads));
  g.row_tiles = static_cast<int>(div_up(p.r, g.tap_rows));
  const int64_t tile_rows = div_up(g.rows.count, g.rows.tile), tile_columns = div_up(g.columns.count, g.columns.tile);
  g.tiles = static_cast<int>(p.n * tile_rows * tile_columns);
  g.split_tiles = static_cast<int>(div_up(g.tiles, splits));
  g.by_tile_rows = Divider<int32_t>(tile_rows);
  g.by_tile_columns = Divider<int32_t>(tile_columns);
  g.by_patch_columns = Divider<int32_t>(g.columns.patch);
  g.by_patch_rows = Divider<int32_t>(g.rows.patch);
  g.by_patch_vectors = Divider<int32_t>(g.quads * kQuad / Tile::kVector);
  g.patch_pitch = pitch_of(g.quads);
  g.grad_pitch = pitch_of(g.octets * kWeightFilters / kQuad);
  g.by_columns = Divider<int32_t>(g.columns.tile);
  g.by_pixels = Divider<int32_t>(int64_t{g.rows.tile} * g.columns.tile);
  g.partial = static_cast<Sum*>(workspace);
  const int64_t weights = p.k * p.group_c() * p.r * p.s, elements = weights + (p.bias ? p.k : 0);
  g.pitch = elements;

  const auto wide = [&](const T* at, const Strides<int32_t>& s, int64_t channels) {
    return s.c == 1 && is_aligned(at, Tile::kVector * sizeof(T)) &&
           is_multiple({channels, s.n, s.h, s.w}, Tile::kVector);
  };
  g.x_along_channels = g.x_strides.c == 1 && g.channels > 1;
  g.dy_along_filters = g.dy.strides.c == 1 && g.filters > 1;
  g.x_wide = g.x_along_channels && wide(g.x, g.x_strides, g.channels);
  g.dy_wide = g.dy_along_filters && wide(g.dy.dy, g.dy.strides, g.filters) &&
              (!g.dy.output || wide(g.dy.output, g.dy.output_strides, g.filters));

  const int64_t patch = int64_t{g.rows.patch} * g.columns.patch * g.patch_pitch;
  const int64_t grad = int64_t{g.rows.tile} * g.columns.tile * g.grad_pitch;
  const int64_t places = int64_t{g.row_tiles} * g.quad_tiles * div_up(g.filters, g.octets * kWeightFilters);
  const dim3 grid{static_cast<unsigned>(places), static_cast<unsigned>(p.groups), static_cast<unsigned>(splits)};
  Status status = launch("direct weight", direct_weight<Tile>, grid, dim3{kWeightThreads, 1, 1},
                         2 * (patch + grad) * static_cast<int64_t>(sizeof(Sum)), stream, g);
  if (status && p.bias)
    status = direct_any_partial(p, o, workspace, splits, elements, weights, elements, false, stream);
  return status ? direct_reduce_splits<T>(p, o, workspace, splits, elements, stream) : status;
}

}  // namespace

bool direct_weight_plan(const ConvProblem& p, ConvPlan& plan) {
  constexpr int64_t kMost = 1 << 24;
  if (p.pass != Pass::grad_weight || !refuse_large(p).ok() || p.n * p.c * p.k == 0 || p.s > 256 ||
      std::max({p.stride_h, p.stride_w, p.dilation_h, p.dilation_w, p.r, p.k * p.r}) > kMost)
    return false;
  const WeightAxis rows = weight_axis(p.h, p.p(), p.r, p.stride_h, p.pad_top, p.dilation_h);
  const WeightAxis columns = weight_axis(p.w, p.q(), p.s, p.stride_w, p.pad_left, p.dilation_w);
  const WeightShape s = choose_shape(p, rows, columns);
  if (s.octets == 0) return false;
  plan.detail[DirectDetail::form] = static_cast<int64_t>(DirectForm::weight);
  plan.detail[DirectDetail::splits] = s.splits;
  plan.detail[DirectDetail::weight_octets] = s.octets;
  plan.detail[DirectDetail::weight_quads] = s.quads;
  plan.detail[DirectDetail::weight_tap_rows] = s.tap_rows;
  plan.detail[DirectDetail::weight_rows] = s.rows;
  plan.detail[DirectDetail::weight_columns] = s.columns;
  plan.workspace_bytes = s.splits * p.k * (p.group_c() * p.r * p.s + p.bias) * (p.dtype == DType::f64 ? 8 : 4);
  plan.executed_macs = s.macs;
  const double moved = static_cast<double>(p.minimum_bytes());
  plan.cost = (p.bias ? 3 : 2) * DirectMachine::kLaunch + std::max(s.seconds, moved / DirectMachine::kBytesPerSecond);
  return true;
}

Status direct_weight_run(const ConvPlan& plan, const ConvOperands& operands, void* workspace, void* stream) {
  return with_float(plan.problem.dtype,
                    [&](auto v) { return run_weight<decltype(v)>(plan, operands, workspace, stream); });
}

}  // namespace fastconv::FASTCONV_GPU
