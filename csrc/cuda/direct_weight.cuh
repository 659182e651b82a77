// The filter's gradient in register tiles: grad_weight[k][c][r][s] = sum over pixels of grad_output[k] * input[c],
// moved by the tap. A block makes 64 (down to 8) filters x up to 64 (512) `lots`, each a tap and 4 neighbouring
// channels; it walks over tiles of pixels with grad_output and the input under all of its taps in shared memory,
// channels innermost, while the next tile is on its way to registers. Pixels are shared by splits whose number follows
// from the problem alone; their partial sums are added by a second kernel in a fixed order.
//
// Arithmetic intensity in fp32 for 3x3: 8 x 8 pixels bring 64 x 64 values of grad_output and 10 x 10 x 28 of the input,
// 27.6 KB, for 64 pixels x 64 filters x 252 weights: 75 FLOP per byte, where an H200 balances at 14. Shared memory: for
// each pixel a thread reads 8 values of grad_output and 2 x 4 of the input, 16 bytes at a time, for 64 multiply-adds: 2
// FLOP per byte, and 16 cycles of a multiprocessor for either. Both bound it. One patch serves all taps; implicit_gemm,
// the next rung, reads the input once for each tap, but has no lots to fill: 9 taps x 7 quads of channels are 63 of 64,
// 25 taps x 2 quads only 50.
#pragma once

#include "gather.cuh"

namespace fastconv::FASTCONV_GPU {

constexpr int kWeightThreads = 256;
constexpr int kWeightFilters = 8;  // of a thread
constexpr int kQuad = 4;           // channels of a lot

template <class T_>
struct DirectWeightTile {
  using T = T_;
  using Sum = Compute<T>;
  static constexpr int kLots = sizeof(Sum) == 4 ? 2 : 1;  // of a thread; fp64 sums take twice the registers
  static constexpr bool kChained = sizeof(Sum) == 4;      // chains of kChain products or more: see gemm.cuh
  // Values of the input and of grad_output that a thread carries to shared memory, in accesses of up to 16 bytes.
  static constexpr int kInput = 12, kGrad = 16;
  static constexpr int kVector = sizeof(T) == 8 ? 2 : 4;
  static_assert(kInput % kVector == 0 && kGrad % kVector == 0 && kQuad % kVector == 0);
};

// A spatial dimension: patch position j of a tile that starts at pixel i is source index i * scale + shift + j *
// sample.
struct WeightAxis {
  int source = 1, count = 1;  // of the input, and of grad_output
  int scale = 1, shift = 0, sample = 1;
  int pixel = 1, tap = 1;  // patch positions from pixel to pixel, and from tap to tap
  int dilation = 1, taps = 1, tile = 1, patch = 1;
};

// Values from pixel to pixel in shared memory, quads of them in use. Neighbouring lanes read the quads of neighbouring
// taps, best without a gap; or write one quad each of neighbouring pixels: an even number of quads of all banks is 8
// lanes in one.
constexpr int pitch_of(int quads) { return (quads % 8 == 0 ? quads + 1 : quads) * kQuad; }

template <class T>
struct DirectWeight {
  const T* x = nullptr;
  Strides<int32_t> x_strides;
  GradOutput<T, int32_t> dy;
  bool x_along_channels = false, dy_along_filters = false;  // neighbours in memory, for neighbouring threads
  bool x_wide = false, dy_wide = false;                     // and for one access
  int images = 1, channels = 1, filters = 1;                // of a group
  int octets = 8, quads = 1, tap_rows = 1;  // of a block: 8 filters each; lots are quads x tap rows x taps
  int quad_tiles = 1, row_tiles = 1;
  WeightAxis rows, columns;
  int patch_pitch = 4, grad_pitch = 4;  // from pixel to pixel in shared memory, see pitch_of
  int tiles = 1, split_tiles = 1;        // of pixels
  Divider<int32_t> by_tile_rows, by_tile_columns;                        // a tile's number
  Divider<int32_t> by_patch_columns, by_patch_rows, by_patch_vectors;    // a patch's values
  Divider<int32_t> by_columns, by_pixels;                                // a tile's pixels
  Compute<T>* partial = nullptr;  // [split][weights and biases]
  int64_t pitch = 0;
};

// The tile of pixels that a block is at.
struct PixelTile {
  int image, row, column;
};
template <class T>
__device__ __forceinline__ PixelTile pixel_tile(const DirectWeight<T>& g, int tile) {
  PixelTile t;
  t.image = g.by_tile_rows.quotient(g.by_tile_columns.quotient(tile, t.column), t.row);
  t.row *= g.rows.tile;
  t.column *= g.columns.tile;
  return t;
}

// Carries a tile of pixels, the input's patch and grad_output, from global to shared memory.
template <class Tile>
class WeightLoader {
  using T = typename Tile::T;
  using Sum = typename Tile::Sum;
  static constexpr int kVector = Tile::kVector;

 public:
  __device__ __forceinline__ WeightLoader(const DirectWeight<T>& gradient, int group_, int first_channel_,
                                          int first_tap_, int first_filter_)
      : g(gradient), first_channel(group_ * g.channels + first_channel_), end_channel((group_ + 1) * g.channels),
        first_tap(first_tap_), first_filter(group_ * g.filters + first_filter_), end_filter((group_ + 1) * g.filters) {}

  __device__ __forceinline__ void load(int tile) {
    const PixelTile t = pixel_tile(g, tile);
    const int h = t.row * g.rows.scale + g.rows.shift + first_tap * g.rows.dilation;
    const int w = t.column * g.columns.scale + g.columns.shift;
    FASTCONV_UNROLL
    for (int i = 0; i < Tile::kInput / kVector; ++i) {
      const Place at = patch_place(i);
      const int ih = h + at.row * g.rows.sample, iw = w + at.column * g.columns.sample, c = first_channel + at.value;
      const bool inside = at.inside && static_cast<unsigned>(ih) < static_cast<unsigned>(g.rows.source) &&
                          static_cast<unsigned>(iw) < static_cast<unsigned>(g.columns.source);
      x[i] = {};
      if (g.x_wide) {
        if (inside && c < end_channel) x[i] = load_vector<kVector>(g.x + g.x_strides.at(t.image, c, ih, iw));
      } else {
        FASTCONV_UNROLL
        for (int j = 0; j < kVector; ++j)
          if (inside && c + j < end_channel) x[i][j] = g.x[g.x_strides.at(t.image, c + j, ih, iw)];
      }
    }
    FASTCONV_UNROLL
    for (int i = 0; i < Tile::kGrad / kVector; ++i) {
      const Place at = grad_place(i);
      const int p = t.row + at.row, q = t.column + at.column, k = first_filter + at.value;
      const bool inside = at.inside && p < g.rows.count && q < g.columns.count;
      dy[i] = {};
      const auto read = [&](auto n, int filter) {
        const int mask_at = g.dy.output ? g.dy.output_strides.at(t.image, filter, p, q) : 0;
        return read_source<decltype(n)::value>(g.dy, g.dy.strides.at(t.image, filter, p, q), mask_at);
      };
      if (g.dy_wide) {
        if (inside && k < end_filter) dy[i] = read(std::integral_constant<int, kVector>{}, k);
      } else {
        FASTCONV_UNROLL
        for (int j = 0; j < kVector; ++j)
          if (inside && k + j < end_filter) dy[i][j] = read(std::integral_constant<int, 1>{}, k + j)[0];
      }
    }
  }

  __device__ __forceinline__ void store(Sum* patch, Sum* grad) const {
    FASTCONV_UNROLL
    for (int i = 0; i < Tile::kInput / kVector; ++i) {
      const Place at = patch_place(i);
      if (at.inside) store_wide(patch + (at.row * g.columns.patch + at.column) * g.patch_pitch + at.value, x[i]);
    }
    FASTCONV_UNROLL
    for (int i = 0; i < Tile::kGrad / kVector; ++i) {
      const Place at = grad_place(i);
      if (at.inside) store_wide(grad + (at.row * g.columns.tile + at.column) * g.grad_pitch + at.value, dy[i]);
    }
  }

 private:
  struct Place {
    int row, column, value;  // value: the first channel or filter
    bool inside;
  };
  __device__ __forceinline__ Place patch_place(int index) const {
    const int unit = index * kWeightThreads + threadIdx.x, vectors = g.quads * kQuad / kVector;
    Place at;
    if (g.x_along_channels)
      at.row = g.by_patch_columns.quotient(g.by_patch_vectors.quotient(unit, at.value), at.column);
    else
      at.value = g.by_patch_rows.quotient(g.by_patch_columns.quotient(unit, at.column), at.row);
    at.inside = at.row < g.rows.patch && at.value < vectors;
    at.value *= kVector;
    return at;
  }
  __device__ __forceinline__ Place grad_place(int index) const {
    const int unit = index * kWeightThreads + threadIdx.x, vectors = g.octets * (kWeightFilters / kVector);
    Place at;
    int pixel;
    if (g.dy_along_filters) {
      pixel = unit / vectors;
      at.value = unit % vectors;
    } else {
      at.value = g.by_pixels.quotient(unit, pixel);
    }
    at.row = g.by_columns.quotient(pixel, at.column);
    at.inside = at.row < g.rows.tile && at.value < vectors;
    at.value *= kVector;
    return at;
  }
  static __device__ __forceinline__ void store_wide(Sum* to, const Vector<T, kVector>& from) {
    Vector<Sum, kVector> v;
    for (int j = 0; j < kVector; ++j) v[j] = widen(from[j]);
    store_vector(to, v);
  }

  const DirectWeight<T>& g;
  int first_channel, end_channel, first_tap, first_filter, end_filter;
  Vector<T, kVector> x[Tile::kInput / kVector], dy[Tile::kGrad / kVector];
};

template <class Sum>
struct WeightShared {
  alignas(16) Sum values[16];
};

// One block: its filters and lots of one group over one split of the pixels.
template <class Tile>
__global__ void __launch_bounds__(kWeightThreads, 1) direct_weight(const DirectWeight<typename Tile::T> g) {
  using Sum = typename Tile::Sum;
  const int row_tile = blockIdx.x % g.row_tiles, rest = blockIdx.x / g.row_tiles;
  const int first_channel = rest % g.quad_tiles * g.quads * kQuad;
  const int first_filter = rest / g.quad_tiles * g.octets * kWeightFilters;
  const int first_tap = row_tile * g.tap_rows, group = blockIdx.y;
  const int threads_of_octet = kWeightThreads / g.octets;
  const int octet = threadIdx.x / threads_of_octet;
  const int patch_pitch = g.patch_pitch, grad_pitch = g.grad_pitch;

  // A thread's lots: a tap and four channels. Those past the end read the first lot and store nothing.
  int lot[Tile::kLots];
  const int lots = g.quads * g.tap_rows * g.columns.taps;
  FASTCONV_UNROLL
  for (int i = 0; i < Tile::kLots; ++i) {
    const int l = threadIdx.x % threads_of_octet + i * threads_of_octet;
    const int tap = l / g.quads, r = tap / g.columns.taps, s = tap % g.columns.taps;
    lot[i] = l < lots ? (r * g.rows.tap * g.columns.patch + s * g.columns.tap) * patch_pitch + l % g.quads * kQuad : 0;
  }

  Sum* const shared = dynamic_shared<WeightShared<Sum>>().values;
  const int patch_values = g.rows.patch * g.columns.patch * patch_pitch;
  const int stage_values = patch_values + g.rows.tile * g.columns.tile * grad_pitch;
  const int first = blockIdx.z * g.split_tiles;
  const int last = first + g.split_tiles < g.tiles ? first + g.split_tiles : g.tiles;
  WeightLoader<Tile> loader(g, group, first_channel, first_tap, first_filter);
  Sum sums[kWeightFilters][Tile::kLots][kQuad] = {}, chain[kWeightFilters][Tile::kLots][kQuad] = {};
  int stage = 0, length = 0;
  if (first < last) {
    loader.load(first);
    loader.store(shared, shared + patch_values);
    __syncthreads();
  }
  for (int tile = first; tile < last; ++tile) {
    const bool more = tile + 1 < last;
    if (more) loader.load(tile + 1);
    const PixelTile t = pixel_tile(g, tile);
    const int rows = g.rows.count - t.row < g.rows.tile ? g.rows.count - t.row : g.rows.tile;
    const int columns = g.columns.count - t.column < g.columns.tile ? g.columns.count - t.column : g.columns.tile;
    const Sum* const patch = shared + stage * stage_values;
    const Sum* const grad = patch + patch_values + octet * kWeightFilters;
    for (int row = 0; row < rows; ++row) {
      const Sum* x = patch + row * g.rows.pixel * g.columns.patch * patch_pitch;
      const Sum* dy = grad + row * g.columns.tile * grad_pitch;
      for (int column = 0; column < columns; ++column) {
        Sum k[kWeightFilters], c[Tile::kLots][kQuad];
        for (int i = 0; i < kWeightFilters; i += kPiece) read_piece(dy + i, k + i);
        for (int l = 0; l < Tile::kLots; ++l) read_piece(x + lot[l], c[l]);
        for (int i = 0; i < kWeightFilters; ++i)
          for (int l = 0; l < Tile::kLots; ++l)
            for (int j = 0; j < kQuad; ++j) chain[i][l][j] += k[i] * c[l][j];
        x += g.columns.pixel * patch_pitch;
        dy += grad_pitch;
      }
    }
    length += rows * columns;
    if (Tile::kChained && length >= kChain) {
      length = 0;
      for (int i = 0; i < kWeightFilters; ++i)
        for (int l = 0; l < Tile::kLots; ++l)
          for (int j = 0; j < kQuad; ++j) {
            sums[i][l][j] += chain[i][l][j];
            chain[i][l][j] = 0;
          }
    }
    stage ^= 1;
    if (more) loader.store(shared + stage * stage_values, shared + stage * stage_values + patch_values);
    __syncthreads();
  }

  Sum* const to = g.partial + blockIdx.z * g.pitch;
  FASTCONV_UNROLL
  for (int l = 0; l < Tile::kLots; ++l) {
    const int index = threadIdx.x % threads_of_octet + l * threads_of_octet;
    const int tap = index / g.quads, r = first_tap + tap / g.columns.taps, s = tap % g.columns.taps;
    if (index >= lots || r >= g.rows.taps) continue;
    FASTCONV_UNROLL
    for (int i = 0; i < kWeightFilters; ++i) {
      const int f = first_filter + octet * kWeightFilters + i;
      FASTCONV_UNROLL
      for (int j = 0; j < kQuad; ++j) {
        const int c = first_channel + index % g.quads * kQuad + j;
        if (f >= g.filters || c >= g.channels) continue;
        const int64_t plane = (int64_t{group} * g.filters + f) * g.channels + c;
        to[(plane * g.rows.taps + r) * g.columns.taps + s] = sums[i][l][j] + chain[i][l][j];
      }
    }
  }
}

}  // namespace fastconv::FASTCONV_GPU
