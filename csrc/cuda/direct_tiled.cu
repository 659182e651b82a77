#include "direct_tiled.cuh"

#include <algorithm>
#include <numeric>

#include "direct.cuh"
#include "implicit_gemm.cuh"

namespace fastconv::FASTCONV_GPU {
namespace {

constexpr int64_t kMostShared = 64 << 10;  // what sm_75 has; two blocks share an sm_80's 164 KiB

// A pass as the plan sees it.
struct DirectPass {
  TiledAxis rows, columns;
  int64_t images, channels, filters, groups, sum_bytes, value_bytes;
  bool fits = false;
};

int64_t round_up(int64_t v, int64_t to) { return div_up(v, to) * to; }

int most_taps(const TiledAxis& a) {
  int taps = 0;
  for (int i = 0; i < a.phases; ++i) taps = std::max(taps, a.phase[i].taps);
  return taps;
}

// The tile's view of an axis and its phases. Taps are put in the order in which their sources lie.
TiledAxis tiled_axis(const std::vector<Axis>& phases) {
  TiledAxis t;
  t.phases = static_cast<int>(phases.size());
  int step = 0, taps = 0, count = 0;
  for (int i = 0; i < t.phases; ++i) {
    Axis a = phases[i];
    if (a.shift_step < 0 && a.taps > 0) {
      a.shift += (a.taps - 1) * a.shift_step;
      a.tap_start += (a.taps - 1) * a.tap_step;
      a.shift_step = -a.shift_step;
      a.tap_step = -a.tap_step;
    }
    t.phase[i] = {a.count, a.out_start, a.shift, a.taps, a.tap_start};
    t.source = a.source;
    t.scale = a.scale;
    t.out_step = a.out_step;
    if (a.taps > taps) t.filter_step = a.tap_step;
    if (a.taps > 1) step = a.shift_step;
    taps = std::max(taps, a.taps);
    count = std::max(count, a.count);
  }
  if (count == 1) t.scale = std::max(step, 1);  // no second pixel: any stride will do
  // A window of one tap, or a stride that divides the dilation: the patch leaves out what nothing reads.
  t.sample = std::gcd(t.scale, step);
  t.pixel = t.scale / t.sample;
  t.tap = taps > 1 ? step / t.sample : 1;
  return t;
}

DirectPass pass_of(const ConvProblem& p) {
  DirectPass pass;
  const bool forward = p.pass == Pass::forward;
  constexpr int64_t kMost = 1 << 24;  // of single numbers: their products with tile sizes stay below 2^31
  if (p.pass == Pass::grad_weight || !refuse_large(p).ok() ||
      std::max({p.stride_h, p.stride_w, p.dilation_h, p.dilation_w, p.r, p.s}) > kMost ||
      (!forward && std::max(p.stride_h, p.stride_w) > kTiledPhases))
    return pass;
  std::vector<Axis> rows, columns;
  if (forward) {
    rows = {forward_axis(p.h, p.p(), p.r, p.stride_h, p.pad_top, p.dilation_h)};
    columns = {forward_axis(p.w, p.q(), p.s, p.stride_w, p.pad_left, p.dilation_w)};
  } else {
    for (int64_t a = 0; a < std::min(p.stride_h, p.h); ++a)
      rows.push_back(backward_axis(p.h, p.p(), p.r, p.stride_h, p.pad_top, p.dilation_h, a));
    for (int64_t a = 0; a < std::min(p.stride_w, p.w); ++a)
      columns.push_back(backward_axis(p.w, p.q(), p.s, p.stride_w, p.pad_left, p.dilation_w, a));
  }
  const bool pointwise = p.r == 1 && p.s == 1 && p.stride_h == 1 && p.stride_w == 1 && p.pad_top == 0 &&
                         p.pad_left == 0 && p.pad_bottom == 0 && p.pad_right == 0;
  const auto one_row = [&](const Strides4& s) { return p.h == 1 || (p.w > 1 && s[2] == p.w * s[3]); };
  if (pointwise && one_row(p.x_strides) && one_row(p.y_strides) && (!p.has_aux() || one_row(p.aux_strides))) {
    rows[0].source = rows[0].count = 1;
    columns[0].source = columns[0].count = static_cast<int>(p.h * p.w);
  }
  pass.rows = tiled_axis(rows);
  pass.columns = tiled_axis(columns);
  pass.images = p.n;
  pass.channels = forward ? p.group_c() : p.group_k();
  pass.filters = forward ? p.group_k() : p.group_c();
  pass.groups = p.groups;
  pass.value_bytes = size_of(p.dtype);
  pass.sum_bytes = std::max<int64_t>(pass.value_bytes, 4);
  pass.fits = std::min(pass.columns.pixel, pass.columns.tap) == 1 && pass.images * pass.channels * pass.filters > 0 &&
              pass.rows.phases * pass.columns.phases * p.groups <= 65535;
  return pass;
}

// Fills in what follows from the tile's sizes. False if 32 bits or the block's shared memory do not hold it.
bool derive(const DirectPass& pass, PatchAccess access, TiledShape& s) {
  const TiledAxis &rows = pass.rows, &columns = pass.columns;
  const int64_t row_taps = most_taps(rows), taps = most_taps(columns);
  const int64_t vector = input_vector(s.pieces, pass.value_bytes);
  s.interleave = std::max(columns.pixel, columns.tap);
  s.sub_columns = columns.tap;
  const int64_t sub = s.columns / s.sub_columns;  // pixels along a row of slots
  s.piece_columns = static_cast<int>(sub / kPiece);
  // A window of 4 + 4 slots that slides by 4: from the first slot of a tap group on.
  const int64_t farthest = std::max<int64_t>(taps - 1, 0) / columns.pixel;
  int64_t slots = sub + round_up(farthest, kPiece);
  if (access == PatchAccess::columns) slots = round_up(slots, vector);
  const int64_t patch_columns = s.interleave * slots;
  const int64_t patch_rows = (s.rows - 1) * int64_t{rows.pixel} + std::max<int64_t>(row_taps - 1, 0) * rows.tap + 1;
  // The pitches are padded for reads of pieces without bank conflicts, as far as that goes.
  const auto cycles = [&](int64_t row_pitch, int64_t image_pitch) {
    int64_t sum = 0;
    for (int64_t first = 0; first < 32; first += 8) {
      int64_t most = 0, lanes[8] = {};  // of a quarter of a warp, by the 4 banks that they read
      for (int64_t i = first; i < first + 8; ++i) {
        const int64_t in_row = i % s.piece_columns, sub_row = i / s.piece_columns, row = sub_row / s.sub_columns;
        const int64_t at = row / s.rows * image_pitch + row % s.rows * rows.pixel * row_pitch +
                           sub_row % s.sub_columns * slots + in_row * kPiece;
        most = std::max(most, ++lanes[at / kPiece % 8]);
      }
      sum += most;
    }
    return sum;
  };
  int64_t row_pitch = patch_columns, least = cycles(patch_columns, patch_rows * patch_columns);
  for (int64_t more = 1; more < 8 && least > 4; ++more) {
    const int64_t pitch = patch_columns + more * kPiece, now = cycles(pitch, patch_rows * pitch);
    if (now < least) {
      least = now;
      row_pitch = pitch;
    }
  }
  int64_t image_pitch = patch_rows * row_pitch;
  for (int64_t more = 1; s.images > 1 && more < 8 && least > 4; ++more) {
    const int64_t pitch = patch_rows * row_pitch + more * kPiece, now = cycles(row_pitch, pitch);
    if (now < least) {
      least = now;
      image_pitch = pitch;
    }
  }
  int64_t plane = s.images * image_pitch;
  if (access == PatchAccess::channels && plane % 8 == 0) plane += 4;  // channels are written side by side
  const int64_t units = s.chunk * s.images * patch_rows * patch_columns / (access == PatchAccess::single ? 1 : vector);
  const int64_t at_once = kTiledThreads * carried_values(s.pieces, pass.sum_bytes) /
                          (access == PatchAccess::single ? 1 : vector);
  const int64_t chunks = div_up(pass.channels, s.chunk);
  const int64_t slice = std::min<int64_t>(s.slice_rows, row_taps) * s.chunk * taps * s.filter_warps * kTiledFilters;
  s.patches = chunks > 1 ? 2 : 1;
  if ((s.patches * plane * s.chunk + 2 * slice) * pass.sum_bytes > kMostShared) return false;
  s.slots = static_cast<int>(slots);
  s.patch_columns = static_cast<int>(patch_columns);
  s.patch_rows = static_cast<int>(patch_rows);
  s.row_pitch = static_cast<int>(row_pitch);
  s.image_pitch = static_cast<int>(image_pitch);
  s.plane_pitch = static_cast<int>(plane);
  s.input_units = static_cast<int>(units);
  s.input_batches = static_cast<int>(div_up(units, at_once));
  s.slice_values = static_cast<int>(slice);
  s.patch_values = static_cast<int>(plane * s.chunk);
  return true;
}

int64_t shared_bytes(const DirectPass& pass, const TiledShape& s) {
  return (int64_t{s.patches} * s.patch_values + 2 * s.slice_values) * pass.sum_bytes;
}

struct TiledChoice {
  TiledShape shape;
  int64_t blocks = 0, macs = 0;  // no blocks: the form does not fit
  double seconds = 0;
};

int64_t tiles_of(const TiledAxis& a, int64_t tile) { return div_up(a.phase[0].count, tile); }

// What one choice costs: the multiply-adds of whole tiles, and what is carried to shared memory, on the multiprocessor
// that got most blocks.
void predict(const DirectPass& pass, TiledChoice& c) {
  constexpr double kCarry = 25, kStep = 60;  // instructions for one input access; cycles around a barrier
  constexpr double kShare[3] = {0, 0.65, 0.85};  // of the rate of multiply-adds, by pieces: see direct_tiled.cuh
  const TiledShape& s = c.shape;
  const double fp64 = pass.sum_bytes == 8 ? 2 : 1;
  const int64_t filters = s.filter_warps * kTiledFilters, all_tiles = div_up(pass.filters, filters);
  const int64_t pixels = kTiledThreads / s.filter_warps * s.pieces * kPiece;
  const int64_t chunks = div_up(pass.channels, s.chunk), tiles = div_up(pass.images, s.images) *
                                                                 tiles_of(pass.rows, s.rows) *
                                                                 tiles_of(pass.columns, s.columns);
  double cycles = 0;
  c.blocks = 0;
  c.macs = 0;
  for (int i = 0; i < pass.rows.phases; ++i)
    for (int j = 0; j < pass.columns.phases; ++j) {
      const int64_t taps = int64_t{pass.rows.phase[i].taps} * pass.columns.phase[j].taps;
      const int64_t blocks = tiles * div_up(all_tiles, s.filter_tiles) * pass.groups;
      const int64_t macs = chunks * s.chunk * taps * filters * pixels * s.filter_tiles;  // of a block
      const double slices = chunks * div_up(pass.rows.phase[i].taps, s.slice_rows) * s.filter_tiles;
      const double carried = static_cast<double>(s.input_units) * chunks * (chunks > 1 ? s.filter_tiles : 1);
      cycles += static_cast<double>(div_up(blocks, DirectMachine::kMultiprocessors)) *
                (macs / (128 * kShare[s.pieces]) * fp64 + carried * kCarry / 128 + slices * kStep +
                 filters * pixels * 8.0 / 128 * s.filter_tiles);
      c.blocks += blocks;
      c.macs += macs * blocks;
    }
  c.seconds = cycles / DirectMachine::kClock;
}

// The largest chunk of channels, and window rows of it, that a step can carry.
bool choose_chunk(const DirectPass& pass, TiledShape& s) {
  const int64_t taps = std::max(most_taps(pass.columns), 1), row_taps = std::max(most_taps(pass.rows), 1);
  const int64_t filters = s.filter_warps * kTiledFilters;
  const int64_t vectors = kTiledThreads * carried_vectors(s.pieces, pass.sum_bytes);
  const int64_t carried = vectors * (16 / pass.sum_bytes) / filters;  // taps of a slice
  if (taps > carried) return false;
  constexpr int64_t kFewChannels = 4;
  if (pass.channels <= kFewChannels && taps * pass.channels <= carried) {
    s.chunk = static_cast<int>(pass.channels);
    s.slice_rows = static_cast<int>(std::min(row_taps, carried / (taps * s.chunk)));
    if (derive(pass, PatchAccess::single, s)) return true;
    s.chunk = 1;
  }
  s.slice_rows = static_cast<int>(std::min(row_taps, carried / taps));
  if (!derive(pass, PatchAccess::single, s)) return false;
  if (s.slice_rows < row_taps) return true;
  // As many patches as one step carries.
  const int64_t values = kTiledThreads * carried_values(s.pieces, pass.sum_bytes);
  const int64_t at_once = std::max<int64_t>(1, values / s.input_units);
  int64_t chunk = std::min({carried / (taps * row_taps), at_once, pass.channels, int64_t{64}});
  if (chunk >= 8) chunk = chunk / 8 * 8;
  else if (chunk >= 4) chunk = 4;
  else chunk = std::max<int64_t>(chunk, 1);
  for (; chunk >= 1; chunk = chunk > 8 ? chunk - 8 : chunk / 2) {
    s.chunk = static_cast<int>(chunk);
    if (derive(pass, PatchAccess::single, s)) return true;
  }
  return false;
}

TiledChoice choose_tile(const DirectPass& pass) {
  TiledChoice best;
  if (!pass.fits) return best;
  const int64_t rows = pass.rows.phase[0].count, columns = pass.columns.phase[0].count;
  const int64_t interleave = pass.columns.tap;
  for (int pieces = pass.sum_bytes == 8 ? 1 : 2; pieces >= 1; --pieces)
    for (int warps = kTiledWarps; warps >= 1; warps /= 2) {
      const int64_t room = int64_t{kTiledWarps} / warps * pieces * 32;  // pieces of a tile
      for (int64_t parts = 1, before = 0; parts <= 16; ++parts) {
        const int64_t width = round_up(div_up(div_up(columns, parts), interleave), kPiece) * interleave;
        if (width == before) continue;
        before = width;
        if (width / kPiece > room) continue;
        TiledChoice c;
        TiledShape& s = c.shape;
        s.pieces = pieces;
        s.filter_warps = warps;
        s.columns = static_cast<int>(width);
        const int64_t most_rows = std::min(rows, room / (width / kPiece));
        s.rows = static_cast<int>(div_up(rows, div_up(rows, most_rows)));
        if (s.rows >= rows && width >= columns) {
          const int64_t most_images = std::min(pass.images, room / (s.rows * (width / kPiece)));
          s.images = static_cast<int>(div_up(pass.images, div_up(pass.images, most_images)));
        }
        if (!choose_chunk(pass, s)) continue;
        // Blocks that keep their patch go on with the next filters, if enough blocks are left for the machine.
        const int64_t all_tiles = div_up(pass.filters, int64_t{warps} * kTiledFilters);
        predict(pass, c);
        if (div_up(pass.channels, s.chunk) == 1 && c.blocks / all_tiles >= 4 * DirectMachine::kMultiprocessors) {
          s.filter_tiles = static_cast<int>(all_tiles);
          predict(pass, c);
        }
        if (div_up(all_tiles, s.filter_tiles) > 65535) continue;
        if (best.blocks == 0 || c.seconds < best.seconds) best = c;
      }
    }
  return best;
}

int64_t packed_values(const DirectPass& pass, const TiledShape& s) {
  const int64_t filters = s.filter_warps * kTiledFilters;
  return round_up(div_up(pass.filters, filters) * filters * round_up(pass.channels, s.chunk) * most_taps(pass.rows) *
                      most_taps(pass.columns),
                  4);
}

template <class T>
class TiledLaunch {
 public:
  TiledLaunch(const ConvPlan& plan, const ConvOperands& o, void* workspace)
      : p(plan.problem), pass(pass_of(plan.problem)) {
    const bool forward = p.pass == Pass::forward;
    if (forward) {
      g.source.dy = static_cast<const T*>(o.x);
      g.source.strides = Strides<int32_t>(p.x_strides);
    } else {
      g.source = GradOutput<T, int32_t>(p, o);
    }
    g.output.out = static_cast<T*>(forward ? o.y : o.x);
    g.output.strides = Strides<int32_t>(forward ? p.y_strides : p.x_strides);
    g.output.epilogue = Epilogue<T, int32_t>(p, o);
    g.packed = static_cast<Compute<T>*>(workspace);
    g.images = static_cast<int>(pass.images);
    g.channels = static_cast<int>(pass.channels);
    g.filters = static_cast<int>(pass.filters);
    g.groups = static_cast<int>(pass.groups);
    g.rows = pass.rows;
    g.columns = pass.columns;
    g.output.group_stride = g.filters * g.output.strides.c;
    from.filter = static_cast<const T*>(o.weight);
    from.group_stride = static_cast<int>(p.group_k() * p.weight_strides[0]);
    from.filter_stride = static_cast<int>(p.weight_strides[forward ? 0 : 1]);
    from.channel_stride = static_cast<int>(p.weight_strides[forward ? 1 : 0]);
    from.row_stride = static_cast<int>(p.weight_strides[2]);
    from.column_stride = static_cast<int>(p.weight_strides[3]);

    const auto detail = [&](int i) { return static_cast<int>(plan.detail[i]); };
    TiledShape& s = g.shape;
    s.pieces = detail(DirectDetail::pieces);
    s.filter_warps = detail(DirectDetail::filter_warps);
    s.images = detail(DirectDetail::images);
    s.rows = detail(DirectDetail::rows);
    s.columns = detail(DirectDetail::columns);
    s.chunk = detail(DirectDetail::chunk);
    s.slice_rows = detail(DirectDetail::slice_rows);
    s.filter_tiles = detail(DirectDetail::filter_tiles);
    choose_accesses();
    const int64_t tile_filters = s.filter_warps * kTiledFilters;
    g.all_filter_tiles = static_cast<int>(div_up(g.filters, tile_filters));
    g.packed_stride = packed_values(pass, s);
    g.by_groups = Divider<int32_t>(g.groups);
    g.by_column_phases = Divider<int32_t>(g.columns.phases);
    g.by_tile_rows = Divider<int32_t>(tiles_of(g.rows, s.rows));
    g.by_tile_columns = Divider<int32_t>(tiles_of(g.columns, s.columns));
    g.by_piece_columns = Divider<int32_t>(s.piece_columns);
    g.by_sub_columns = Divider<int32_t>(s.sub_columns);
    g.by_rows = Divider<int32_t>(s.rows);
    const int vector = input_vector(s.pieces, sizeof(T));
    g.by_units = Divider<int32_t>(std::max(1, s.chunk / vector));
    g.by_patch_columns = Divider<int32_t>(s.patch_columns / (g.access == PatchAccess::columns ? vector : 1));
    g.by_patch_rows = Divider<int32_t>(s.patch_rows);
    g.by_images = Divider<int32_t>(s.images);
  }

  Status run(void* stream) const {
    const unsigned z = static_cast<unsigned>(g.rows.phases * g.columns.phases * g.groups);
    if (g.packed_stride > 0) {
      const int64_t most = 8 * DirectMachine::kMultiprocessors;
      const int64_t blocks = std::min(div_up(g.packed_stride, kPackThreads), most);
      const Status packed = launch("direct pack", direct_pack_filter<T>, dim3{static_cast<unsigned>(blocks), z, 1},
                                   dim3{kPackThreads, 1, 1}, 0, stream, g, from);
      if (!packed) return packed;
    }
    const TiledShape& s = g.shape;
    const int64_t tiles = div_up(pass.images, s.images) * tiles_of(g.rows, s.rows) * tiles_of(g.columns, s.columns);
    const dim3 grid{static_cast<unsigned>(tiles), static_cast<unsigned>(div_up(g.all_filter_tiles, s.filter_tiles)), z};
    const dim3 block{kTiledThreads, 1, 1};
    if constexpr (sizeof(Compute<T>) == 4)
      if (s.pieces == 2)
        return launch("direct tiled", direct_tiled<DirectTile<T, 2>>, grid, block, shared_bytes(pass, s), stream, g);
    return launch("direct tiled", direct_tiled<DirectTile<T, 1>>, grid, block, shared_bytes(pass, s), stream, g);
  }

 private:
  void choose_accesses() {
    const int wide = input_vector(g.shape.pieces, sizeof(T));
    const bool one_phase = g.rows.phases == 1 && g.columns.phases == 1;
    const auto aligned = [&](const T* at, const Strides<int32_t>& s) {
      return is_aligned(at, 16) && is_multiple({int64_t{g.channels} * s.c, s.n}, wide);
    };
    const auto both = [&](auto&& good) {
      return aligned(g.source.dy, g.source.strides) && good(g.source.strides) &&
             (!g.source.output || (aligned(g.source.output, g.source.output_strides) &&
                                   good(g.source.output_strides)));
    };
    TiledShape& s = g.shape;
    if (is_multiple({g.channels, s.chunk}, wide) &&
        both([&](const Strides<int32_t>& t) { return t.c == 1 && is_multiple({t.h, t.w}, wide); }))
      g.access = PatchAccess::channels;
    else if (one_phase && g.columns.sample == 1 && g.columns.pixel == 1 && g.columns.tap == 1 &&
             is_multiple({g.columns.phase[0].shift, g.columns.source, s.columns * g.columns.scale}, wide) &&
             both([&](const Strides<int32_t>& t) { return t.w == 1 && is_multiple({t.c, t.h}, wide); }))
      g.access = PatchAccess::columns;
    if (!derive(pass, g.access, s)) {
      g.access = PatchAccess::single;
      derive(pass, g.access, s);
    }

    const Strides<int32_t>& out = g.output.strides;
    const bool pieces_aligned = is_aligned(g.output.out, std::min<int64_t>(16, kPiece * sizeof(T))) &&
                                is_multiple({g.output.group_stride, out.n}, kPiece);
    if (pieces_aligned && out.c == 1 && is_multiple({g.filters, out.h, out.w}, kPiece))
      g.output.run = Run::filters;
    else if (pieces_aligned && one_phase && g.columns.tap == 1 && g.columns.out_step == 1 && out.w == 1 &&
             is_multiple({g.columns.phase[0].count, out.c, out.h}, kPiece))
      g.output.run = Run::pixels;
  }

  const ConvProblem& p;
  DirectPass pass;
  TiledGather<T> g;
  PackedFilter<T> from;
};

}  // namespace

bool direct_tiled_plan(const ConvProblem& p, ConvPlan& plan) {
  const DirectPass pass = pass_of(p);
  const TiledChoice c = choose_tile(pass);
  if (c.blocks == 0) return false;
  const TiledShape& s = c.shape;
  plan.detail[DirectDetail::form] = static_cast<int64_t>(DirectForm::tiled);
  plan.detail[DirectDetail::pieces] = s.pieces;
  plan.detail[DirectDetail::filter_warps] = s.filter_warps;
  plan.detail[DirectDetail::images] = s.images;
  plan.detail[DirectDetail::rows] = s.rows;
  plan.detail[DirectDetail::columns] = s.columns;
  plan.detail[DirectDetail::chunk] = s.chunk;
  plan.detail[DirectDetail::slice_rows] = s.slice_rows;
  plan.detail[DirectDetail::filter_tiles] = s.filter_tiles;
  plan.workspace_bytes =
      pass.rows.phases * pass.columns.phases * pass.groups * packed_values(pass, s) * pass.sum_bytes;
  plan.executed_macs = c.macs;
  const double moved = static_cast<double>(p.minimum_bytes() + 2 * plan.workspace_bytes);
  plan.cost = 2 * DirectMachine::kLaunch + std::max(c.seconds, moved / DirectMachine::kBytesPerSecond);
  return true;
}

Status direct_tiled_run(const ConvPlan& plan, const ConvOperands& operands, void* workspace, void* stream) {
  return with_float(plan.problem.dtype, [&](auto v) {
    return TiledLaunch<decltype(v)>(plan, operands, workspace).run(stream);
  });
}

}  // namespace fastconv::FASTCONV_GPU
