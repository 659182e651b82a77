// Rung two: register tiles. A block makes 8 filters for each of its 1 to 8 filter warps and 256 (128) pixels for each
// of the other warps' shares; it walks over the channels in chunks and over the window, with the chunk's part of the
// input (`patch`) and of the filter (`slice`) in shared memory. While it multiplies one slice, the next one and a part
// of the next patch are on their way from global memory to registers.
//
// Arithmetic intensity in fp32, 64 filters x 256 pixels, 3x3: a channel of the patch is 10 x 34 values for 8 x 32
// pixels, its filter slice 9 x 64; 2 x 9 x 64 x 256 FLOP for 3664 bytes of global memory (mostly of the second-level
// cache): 80 FLOP per byte, where an H200 balances at 14.
// Shared memory: for 3 taps of a row a thread reads 2 x 8 input values and 3 x 8 filter values, 16 bytes at a time, for
// 3 x 64 multiply-adds: 2.4 FLOP per byte. A warp's 10 reads take 40 cycles, its multiply-adds 48: they bound it. (With
// half the pixels, for small problems, 8 reads take 32 cycles where multiply-adds take 24.)
// Neighbouring pixels share what they read: a thread's piece of 4 pixels slides over a row of taps, and 4 + 3 values
// serve 4 taps. With stride or dilation M, a row of the patch is kept as M interleaved rows, so that this still holds.
// The next rungs, im2col and implicit_gemm, take windows of every shape as fast, since their depth is one dimension:
// here a row of 5 taps costs reads for 8, and tiles of rows fill a map of 7 x 7 by 77 %.
//
// First layers (1 to 4 channels, 7x7 or 11x11) are the case of one chunk: the patch of all channels is read once, taps
// and channels are one loop, and the block goes on with the next filters on the same patch.
#pragma once

#include "gather.cuh"

namespace fastconv::FASTCONV_GPU {

constexpr int kTiledThreads = 256, kTiledWarps = kTiledThreads / 32;
constexpr int kTiledFilters = 8;  // of a warp
constexpr int kTiledPhases = 8;   // along each axis

// What a thread carries from global to shared memory during one step, as much as registers are left for: values of the
// input, in accesses of so many, and 16-byte pieces of the filter.
constexpr int carried_values(int pieces, int64_t sum_bytes) { return pieces == 2 || sum_bytes == 8 ? 8 : 4; }
constexpr int carried_vectors(int pieces, int64_t sum_bytes) { return pieces == 2 || sum_bytes == 8 ? 3 : 2; }
constexpr int input_vector(int pieces, int64_t value_bytes) {
  const int most = carried_values(pieces, value_bytes), vector = 16 / static_cast<int>(value_bytes);
  return vector < most ? vector : most;
}

template <class T_, int Pieces>
struct DirectTile {
  using T = T_;
  using Sum = Compute<T>;
  static constexpr int kPieces = Pieces;  // of a thread, each 4 neighbouring pixels
  static constexpr int kPixels = Pieces * kPiece;
  // fp32 sums are chains of at least kChain products, then a sum of chains: see gemm.cuh.
  static constexpr bool kChained = sizeof(Sum) == 4;
  static constexpr int kInputValues = carried_values(Pieces, sizeof(Sum));
  static constexpr int kInputVector = input_vector(Pieces, sizeof(T));
  static constexpr int kFilterVectors = carried_vectors(Pieces, sizeof(Sum));
  static constexpr int kInputGroups = kInputValues / kInputVector;
  static constexpr int kFilterVector = 16 / static_cast<int>(sizeof(Sum));
  // 2 x 64 sums take some 200 registers: one block. 2 x 32 fit into 128: two.
  static constexpr int kBlocksPerSm = Pieces == 2 || sizeof(Sum) == 8 ? 1 : 2;
  static_assert(kInputGroups * kInputVector == kInputValues && kTiledFilters % kPiece == 0);
};

// How input comes from global memory: value by value, 16 bytes along a row, or 16 bytes along the channels.
enum class PatchAccess : int { single, columns, channels };

struct TiledPhase {
  int count = 1, out_start = 0, shift = 0, taps = 1, tap_start = 0;
};
// One spatial dimension. Patch position j of a tile that starts at pixel i is source index i * scale + shift + j *
// sample.
struct TiledAxis {
  int source = 1, scale = 1, sample = 1;
  int pixel = 1, tap = 1;             // patch positions from pixel to pixel, and from tap to tap
  int out_step = 1, filter_step = 1;  // of output indices, and of the filter's taps (-1: turned)
  int phases = 1;
  TiledPhase phase[kTiledPhases];
};

// A block's work and where it lies in shared memory.
struct TiledShape {
  int pieces = 1;                       // of a thread
  int filter_warps = 1;                 // the other warps differ by their pixels
  int images = 1, rows = 1, columns = 4;  // pixels of the tile
  int chunk = 1, slice_rows = 1;        // channels of a patch; window rows of a filter slice
  int filter_tiles = 1;                 // one after the other
  int patch_rows = 1, patch_columns = 4, interleave = 1;  // positions; a row is kept as `interleave` rows of slots
  int slots = 4, row_pitch = 4, image_pitch = 4, plane_pitch = 4;
  int piece_columns = 1, sub_columns = 1;  // pieces along a row of slots; rows of slots that hold pixels
  int input_units = 1, input_batches = 1;  // accesses for a patch, and steps that they take
  int slice_values = 0, patch_values = 0, patches = 1;
};

template <class T>
struct TiledGather {
  GradOutput<T, int32_t> source;  // forward: the input, without a mask
  PixelOutput<T> output;
  Compute<T>* packed = nullptr;  // [phase][group][filter tile][chunk][window row][channel][tap][filter]
  int64_t packed_stride = 0;     // of a phase and group
  int images = 1, channels = 1, filters = 1, groups = 1;  // channels and filters of a group
  int all_filter_tiles = 1;
  PatchAccess access = PatchAccess::single;
  TiledShape shape;
  TiledAxis rows, columns;
  Divider<int32_t> by_groups, by_column_phases, by_tile_rows, by_tile_columns;  // of the grid
  Divider<int32_t> by_piece_columns, by_sub_columns, by_rows;                   // of a tile's pieces
  Divider<int32_t> by_units, by_patch_columns, by_patch_rows, by_images;        // of a patch
};

// The filter in the order in which blocks read it, each tile's part contiguous, zeros where channels and filters end.
template <class T>
struct PackedFilter {
  const T* filter = nullptr;
  int group_stride = 0, filter_stride = 0, channel_stride = 0, row_stride = 0, column_stride = 0;
};

constexpr int kPackThreads = 256;

template <class T>
__global__ void __launch_bounds__(kPackThreads) direct_pack_filter(const TiledGather<T> g, const PackedFilter<T> from) {
  int group, column_phase;
  const int phase = g.by_groups.quotient(blockIdx.y, group);
  const int row_phase = g.by_column_phases.quotient(phase, column_phase);
  const TiledPhase& rows = g.rows.phase[row_phase];
  const TiledPhase& columns = g.columns.phase[column_phase];
  const int tile = g.shape.filter_warps * kTiledFilters, chunks = (g.channels + g.shape.chunk - 1) / g.shape.chunk;
  const int count = g.all_filter_tiles * chunks * rows.taps * g.shape.chunk * columns.taps * tile;
  Compute<T>* to = g.packed + blockIdx.y * g.packed_stride;
  for (int i = blockIdx.x * kPackThreads + threadIdx.x; i < count; i += gridDim.x * kPackThreads) {
    int rest = i / tile;
    int s = rest % columns.taps;
    rest /= columns.taps;
    const int in_chunk = rest % g.shape.chunk;
    rest /= g.shape.chunk;
    const int r = rest % rows.taps;
    rest /= rows.taps;
    const int c = rest % chunks * g.shape.chunk + in_chunk, f = rest / chunks * tile + i % tile;
    // The s-th tap in the order of slots: taps 0, M, 2 M, ... then 1, M + 1, ...
    int first = 0;
    for (int taps; s >= (taps = (columns.taps - first + g.columns.pixel - 1) / g.columns.pixel); ++first) s -= taps;
    const int tap = first + s * g.columns.pixel;
    const int at = group * from.group_stride + f * from.filter_stride + c * from.channel_stride +
                   (rows.tap_start + r * g.rows.filter_step) * from.row_stride +
                   (columns.tap_start + tap * g.columns.filter_step) * from.column_stride;
    to[i] = f < g.filters && c < g.channels ? widen(from.filter[at]) : 0;
  }
}

// Carries a patch from global to shared memory, `kInputValues` values of a thread at a time.
template <class Tile>
class PatchLoader {
  using T = typename Tile::T;
  using Sum = typename Tile::Sum;

 public:
  __device__ __forceinline__ PatchLoader(const TiledGather<T>& gather, int group, int first_image, int first_row,
                                         int first_column)
      : g(gather), image(first_image), h(first_row), w(first_column), group_channel(group * g.channels) {}

  __device__ __forceinline__ void load(int batch, int first_channel) {
    if (g.access == PatchAccess::single) {
      for (int i = 0; i < Tile::kInputValues; ++i)
        values[i / Tile::kInputVector][i % Tile::kInputVector] =
            read<1>(batch * Tile::kInputValues + i, first_channel)[0];
    } else {
      for (int i = 0; i < Tile::kInputGroups; ++i)
        values[i] = read<Tile::kInputVector>(batch * Tile::kInputGroups + i, first_channel);
    }
  }

  __device__ __forceinline__ void store(int batch, Sum* patch) const {
    const TiledShape& shape = g.shape;
    if (g.access == PatchAccess::single) {
      for (int i = 0; i < Tile::kInputValues; ++i) {
        const Place at = place((batch * Tile::kInputValues + i) * kTiledThreads + threadIdx.x, 1, 1);
        if (at.inside) patch[offset(at)] = widen(values[i / Tile::kInputVector][i % Tile::kInputVector]);
      }
      return;
    }
    const bool along_columns = g.access == PatchAccess::columns;
    for (int i = 0; i < Tile::kInputGroups; ++i) {
      const Place at = place((batch * Tile::kInputGroups + i) * kTiledThreads + threadIdx.x,
                             along_columns ? Tile::kInputVector : 1, along_columns ? 1 : Tile::kInputVector);
      if (!at.inside) continue;
      Sum* to = patch + offset(at);
      if (along_columns) {
        for (int j = 0; j < Tile::kInputVector; j += Tile::kFilterVector) {
          Vector<Sum, Tile::kFilterVector> v;
          for (int l = 0; l < Tile::kFilterVector; ++l) v[l] = widen(values[i][j + l]);
          store_vector(to + j, v);
        }
      } else {
        for (int j = 0; j < Tile::kInputVector; ++j) to[j * shape.plane_pitch] = widen(values[i][j]);
      }
    }
  }

 private:
  struct Place {
    int channel, image, row, column;
    bool inside;
  };
  __device__ __forceinline__ Place place(int unit, int columns, int channels) const {
    Place at;
    at.inside = unit < g.shape.input_units;
    at.channel = 0;
    int rest = unit;
    if (g.access == PatchAccess::channels) rest = g.by_units.quotient(rest, at.channel);
    rest = g.by_patch_rows.quotient(g.by_patch_columns.quotient(rest, at.column), at.row);
    if (g.access == PatchAccess::channels)
      at.image = rest;
    else
      at.channel = g.by_images.quotient(rest, at.image);
    at.column *= columns;
    at.channel *= channels;
    return at;
  }
  __device__ __forceinline__ int offset(const Place& at) const {
    const TiledShape& s = g.shape;
    int slot = at.column;
    if (s.interleave > 1) slot = at.column % s.interleave * s.slots + at.column / s.interleave;
    return at.channel * s.plane_pitch + at.image * s.image_pitch + at.row * s.row_pitch + slot;
  }
  template <int N>
  __device__ __forceinline__ Vector<T, N> read(int index, int first_channel) const {
    const bool along_columns = g.access == PatchAccess::columns;
    const Place at = place(index * kTiledThreads + threadIdx.x, along_columns ? N : 1, along_columns ? 1 : N);
    const int c = first_channel + at.channel, n = image + at.image;
    const int ih = h + at.row * g.rows.sample, iw = w + at.column * g.columns.sample;
    if (at.inside && c < g.channels && n < g.images &&
        static_cast<unsigned>(ih) < static_cast<unsigned>(g.rows.source) &&
        static_cast<unsigned>(iw) < static_cast<unsigned>(g.columns.source)) {
      const int mask_at = g.source.output ? g.source.output_strides.at(n, group_channel + c, ih, iw) : 0;
      return read_source<N>(g.source, g.source.strides.at(n, group_channel + c, ih, iw), mask_at);
    }
    Vector<T, N> zero;
    for (int j = 0; j < N; ++j) zero[j] = narrow<T>(0);
    return zero;
  }

  const TiledGather<T>& g;
  int image, h, w, group_channel;
  Vector<T, Tile::kInputVector> values[Tile::kInputGroups];
};

template <class Tile>
struct TiledSums {
  typename Tile::Sum v[kTiledFilters][Tile::kPixels];
};

// One filter slice against the patch: window rows [first, first + rows) of the chunk's channels.
template <class Tile>
__device__ __forceinline__ void multiply_slice(const TiledGather<typename Tile::T>& g, const typename Tile::Sum* patch,
                                               const typename Tile::Sum* filter, int first, int rows, int taps,
                                               const int (&base)[Tile::kPieces], TiledSums<Tile>& sums) {
  using Sum = typename Tile::Sum;
  const TiledShape& shape = g.shape;
  const int tile = shape.filter_warps * kTiledFilters, strides = g.columns.pixel;
  for (int r = first; r < first + rows; ++r)
    for (int c = 0; c < shape.chunk; ++c)
      for (int m = 0; m < strides; ++m) {
        const Sum* row = patch + c * shape.plane_pitch + r * g.rows.tap * shape.row_pitch + m * shape.slots;
        const int here = (taps - m + strides - 1) / strides;
        if (here <= 0) break;
        Sum window[Tile::kPieces][2 * kPiece];
        for (int p = 0; p < Tile::kPieces; ++p) read_piece(row + base[p], window[p]);
        for (int first_tap = 0; first_tap < here; first_tap += kPiece) {
          for (int p = 0; p < Tile::kPieces; ++p)
            if (first_tap + 1 < here)
              read_piece(row + base[p] + first_tap + kPiece, window[p] + kPiece);
            else
              for (int j = kPiece; j < 2 * kPiece; ++j) window[p][j] = 0;
          FASTCONV_UNROLL
          for (int t = 0; t < kPiece; ++t) {
            if (first_tap + t >= here) break;
            Sum f[kTiledFilters];
            for (int i = 0; i < kTiledFilters; i += kPiece) read_piece(filter + i, f + i);
            filter += tile;
            for (int i = 0; i < kTiledFilters; ++i)
              for (int p = 0; p < Tile::kPieces; ++p)
                for (int j = 0; j < kPiece; ++j) sums.v[i][p * kPiece + j] += f[i] * window[p][t + j];
          }
          for (int p = 0; p < Tile::kPieces; ++p)
            for (int j = 0; j < kPiece; ++j) window[p][j] = window[p][kPiece + j];
        }
      }
}

// Where a thread's piece lies in the tile: image, row, and its first pixel's column; the next pixel is `interleave` on.
struct PiecePlace {
  int image, row, sub, column;
};
template <class Tile>
__device__ __forceinline__ PiecePlace place_piece(const TiledGather<typename Tile::T>& g, int piece) {
  const int warp = threadIdx.x / 32 / g.shape.filter_warps;
  int at, sub, row;
  const int index = (warp * Tile::kPieces + piece) * 32 + threadIdx.x % 32;
  const int image = g.by_rows.quotient(g.by_sub_columns.quotient(g.by_piece_columns.quotient(index, at), sub), row);
  return {image, row, sub, at * kPiece};
}

template <class Tile>
__device__ __forceinline__ void store_tile(const TiledGather<typename Tile::T>& g, TiledSums<Tile>& sums, int group,
                                           int first_image, int first_row, int first_column,
                                           const TiledPhase& rows, const TiledPhase& columns, int first_filter) {
  using T = typename Tile::T;
  const PixelOutput<T>& o = g.output;
  const int first_k = group * g.filters;
  if (o.epilogue.scale)
    FASTCONV_UNROLL
    for (int f = 0; f < kTiledFilters; ++f) {
      if (first_filter + f >= g.filters) continue;
      const auto scale = o.epilogue.scale[first_k + first_filter + f];
      FASTCONV_UNROLL
      for (int j = 0; j < Tile::kPixels; ++j) sums.v[f][j] *= scale;
    }
  FASTCONV_UNROLL
  for (int p = 0; p < Tile::kPieces; ++p) {
    const PiecePlace at = place_piece<Tile>(g, p);
    const int image = first_image + at.image, row = first_row + at.row;
    if (at.image >= g.shape.images || image >= g.images || row >= rows.count) continue;
    const int h = rows.out_start + row * g.rows.out_step;
    const int step = g.shape.sub_columns, column = first_column + at.sub + at.column * step;
    const auto out_at = [&](int i, int f) {
      return group * o.group_stride +
             o.strides.at(image, f, h, columns.out_start + (column + i * step) * g.columns.out_step);
    };
    const auto finished = [&](int i, int f, int at_filter) {
      const int w = columns.out_start + (column + i * step) * g.columns.out_step;
      return o.epilogue.finish_scaled(sums.v[at_filter][p * kPiece + i], first_k + f,
                               o.epilogue.residual_strides.at(image, first_k + f, h, w));
    };
    if (o.run == Run::filters) {
      FASTCONV_UNROLL
      for (int i = 0; i < kPiece; ++i)
        FASTCONV_UNROLL
        for (int f = 0; f < kTiledFilters; f += kPiece)
          if (column + i * step < columns.count && first_filter + f < g.filters) {
            T values[kPiece];
            for (int j = 0; j < kPiece; ++j) values[j] = finished(i, first_filter + f + j, f + j);
            store_piece(o.out + out_at(i, first_filter + f), values);
          }
      continue;
    }
    FASTCONV_UNROLL
    for (int f = 0; f < kTiledFilters; ++f) {
      if (first_filter + f >= g.filters) break;
      if (o.run == Run::pixels) {
        if (column >= columns.count) continue;
        T values[kPiece];
        for (int i = 0; i < kPiece; ++i) values[i] = finished(i, first_filter + f, f);
        store_piece(o.out + out_at(0, first_filter + f), values);
      } else {
        FASTCONV_UNROLL
        for (int i = 0; i < kPiece; ++i)
          if (column + i * step < columns.count) o.out[out_at(i, first_filter + f)] = finished(i, first_filter + f, f);
      }
    }
  }
}

template <class Sum>
struct TiledShared {
  alignas(16) Sum values[16];
};

// One block: a tile of pixels of one phase and group, under one or more tiles of filters.
template <class Tile>
__global__ void __launch_bounds__(kTiledThreads, Tile::kBlocksPerSm)
    direct_tiled(const TiledGather<typename Tile::T> g) {
  using Sum = typename Tile::Sum;
  const TiledShape& shape = g.shape;
  int group, column_phase, tile_row, tile_column;
  const int phase = g.by_groups.quotient(blockIdx.z, group);
  const int row_phase = g.by_column_phases.quotient(phase, column_phase);
  const TiledPhase& rows = g.rows.phase[row_phase];
  const TiledPhase& columns = g.columns.phase[column_phase];
  const int tile_image = g.by_tile_rows.quotient(g.by_tile_columns.quotient(blockIdx.x, tile_column), tile_row);
  const int first_image = tile_image * shape.images, first_row = tile_row * shape.rows;
  const int first_column = tile_column * shape.columns;
  if (first_row >= rows.count || first_column >= columns.count) return;  // the grid has room for the largest phase

  Sum* const slices = dynamic_shared<TiledShared<Sum>>().values;
  Sum* const patches = slices + 2 * shape.slice_values;
  int base[Tile::kPieces];
  for (int p = 0; p < Tile::kPieces; ++p) {
    const PiecePlace at = place_piece<Tile>(g, p);
    base[p] = at.image * shape.image_pitch + at.row * g.rows.pixel * shape.row_pitch + at.sub * shape.slots + at.column;
    if (at.image >= shape.images) base[p] = 0;  // more pieces than pixels: computed, not stored
  }

  PatchLoader<Tile> input(g, group, first_image, first_row * g.rows.scale + rows.shift,
                          first_column * g.columns.scale + columns.shift);
  Vector<Sum, Tile::kFilterVector> filter[Tile::kFilterVectors];
  const int tile_filters = shape.filter_warps * kTiledFilters;
  const int chunks = (g.channels + shape.chunk - 1) / shape.chunk;
  const int window_row = shape.chunk * columns.taps * tile_filters;  // values of the packed filter
  const Sum* const packed = g.packed + blockIdx.z * g.packed_stride;
  const auto load_filter = [&](int tile, int chunk, int first) {
    const int64_t at = (int64_t{tile} * chunks + chunk) * rows.taps + first;
    const int left = rows.taps - first, count = (left < shape.slice_rows ? left : shape.slice_rows) * window_row;
    FASTCONV_UNROLL
    for (int i = 0; i < Tile::kFilterVectors; ++i) {
      const int v = (i * kTiledThreads + static_cast<int>(threadIdx.x)) * Tile::kFilterVector;
      if (v < count) filter[i] = load_vector<Tile::kFilterVector>(packed + at * window_row + v);
    }
  };
  const auto store_filter = [&](Sum* slice) {
    FASTCONV_UNROLL
    for (int i = 0; i < Tile::kFilterVectors; ++i) {
      const int v = (i * kTiledThreads + static_cast<int>(threadIdx.x)) * Tile::kFilterVector;
      if (v < shape.slice_values) store_vector(slice + v, filter[i]);
    }
  };

  const int first_tile = blockIdx.y * shape.filter_tiles;
  const int last_tile = first_tile + shape.filter_tiles < g.all_filter_tiles ? first_tile + shape.filter_tiles
                                                                              : g.all_filter_tiles;
  const int slices_each = columns.taps > 0 ? (rows.taps + shape.slice_rows - 1) / shape.slice_rows : 0;
  int slice_stage = 0, patch_stage = 0;
  if (slices_each > 0) {
    for (int i = 0; i < Tile::kFilterVectors; ++i) filter[i] = {};
    load_filter(first_tile, 0, 0);
    for (int b = 0; b < shape.input_batches; ++b) {
      input.load(b, 0);
      input.store(b, patches);
    }
    store_filter(slices);
    __syncthreads();
  }
  for (int tile = first_tile; tile < last_tile; ++tile) {
    const int warp_filter = threadIdx.x / 32 % shape.filter_warps * kTiledFilters;
    TiledSums<Tile> chain = {}, sums = {};
    int length = 0;
    if (slices_each > 0)
      for (int chunk = 0; chunk < chunks; ++chunk) {
        const bool last_chunk = chunk + 1 == chunks, next_patch = chunks > 1 && !(last_chunk && tile + 1 == last_tile);
        const int next_channel = last_chunk ? 0 : (chunk + 1) * shape.chunk;
        Sum* const to = patches + (patch_stage ^ 1) * shape.patch_values;
        for (int slice = 0; slice < slices_each; ++slice) {
          const bool last_slice = slice + 1 == slices_each, next_tile = last_slice && last_chunk;
          const bool next_slice = !(next_tile && tile + 1 == last_tile);
          if (next_slice)
            load_filter(tile + next_tile, last_slice ? (last_chunk ? 0 : chunk + 1) : chunk,
                        last_slice ? 0 : (slice + 1) * shape.slice_rows);
          const bool some_input = next_patch && slice < shape.input_batches;
          if (some_input) input.load(slice, next_channel);

          const int first = slice * shape.slice_rows, left = rows.taps - first;
          const int count = left < shape.slice_rows ? left : shape.slice_rows;
          multiply_slice<Tile>(g, patches + patch_stage * shape.patch_values,
                               slices + slice_stage * shape.slice_values + warp_filter, first, count, columns.taps,
                               base, chain);
          length += count * shape.chunk * columns.taps;
          if (Tile::kChained && length >= kChain) {
            length = 0;
            for (int i = 0; i < kTiledFilters; ++i)
              for (int j = 0; j < Tile::kPixels; ++j) {
                sums.v[i][j] += chain.v[i][j];
                chain.v[i][j] = 0;
              }
          }

          if (next_slice) store_filter(slices + (slice_stage ^ 1) * shape.slice_values);
          if (some_input) input.store(slice, to);
          // A phase with fewer window rows than the patch has batches: the rest, unhidden.
          if (next_patch)
            for (int b = slice + slices_each; b < shape.input_batches; b += slices_each) {
              input.load(b, next_channel);
              input.store(b, to);
            }
          __syncthreads();
          slice_stage ^= 1;
        }
        if (chunks > 1) patch_stage ^= 1;
      }
    if (Tile::kChained)
      for (int i = 0; i < kTiledFilters; ++i)
        for (int j = 0; j < Tile::kPixels; ++j) chain.v[i][j] += sums.v[i][j];
    store_tile<Tile>(g, chain, group, first_image, first_row, first_column, rows, columns,
                     tile * tile_filters + warp_filter);
  }
}

}  // namespace fastconv::FASTCONV_GPU
