// How the memory-bound kernels (pooling, depthwise) spread a tensor over blocks and threads, and what that costs.
//
// NHWC: a block takes 128 bytes of channels of a few neighbouring columns and walks down rows: a warp's loads are whole
// cache lines, and neighbouring windows overlap inside the block, where the first-level cache serves them.
// NCHW: consecutive rows of a plane, or consecutive planes, are one run of memory. A block copies it to shared memory
// with accesses of 16 bytes, whatever the row's length, and windows are read from there.
#pragma once

#include <algorithm>

#include "index.cuh"

namespace fastconv::FASTCONV_GPU {

constexpr int kTileThreads = 256;
constexpr int64_t kMultiprocessors = 132;                     // H200, as are the figures below
constexpr int64_t kFullThreads = kMultiprocessors * 1024;     // enough loads in flight to fill the memory pipe
constexpr double kBytesPerSecond = 4.2e12, kLaunchSeconds = 3e-6;

// Seconds of kernels that only move memory; fewer threads than fill the machine move it slower.
inline double memory_seconds(int64_t bytes, int64_t threads, int launches) {
  const double filled = std::min(1.0, static_cast<double>(std::max<int64_t>(threads, 32)) / kFullThreads);
  return static_cast<double>(bytes) / (kBytesPerSecond * filled) + launches * kLaunchSeconds;
}

template <class T>
constexpr int kFullVector = 16 / static_cast<int>(sizeof(T));

inline bool is_dense(const Sizes4& sizes, const Strides4& strides, Layout layout) {
  const Layout is = layout_of(sizes, strides);
  return is == layout || is == Layout::both;
}

// Whether vectors of `count` neighbouring channels may be loaded from a tensor at any pixel, if its address allows.
inline bool has_channel_vectors(const Sizes4& sizes, const Strides4& strides, int64_t count) {
  return sizes[1] % count == 0 && (count == 1 || strides[1] == 1) && strides[0] % count == 0 &&
         strides[2] % count == 0 && strides[3] % count == 0;
}

inline dim3 grid_of(int64_t blocks) { return dim3{static_cast<unsigned>(blocks), 1, 1}; }
inline dim3 block_of(int64_t threads) { return dim3{static_cast<unsigned>(threads), 1, 1}; }
inline int64_t blocks_for(int64_t threads) { return div_up(threads, kTileThreads); }

inline bool is_aligned(const void* p, int64_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

// --- any strides -----------------------------------------------------------------------------------------------------

// Coordinates of a tensor's elements in an order in which neighbours are neighbours in memory.
template <class Index>
struct Elements {
  Divider<Index> d1, d2, d3;  // sizes of the three fastest dimensions, the fastest last
  bool channels_last = false;
  Index count = 0;

  Elements() = default;
  Elements(const Sizes4& sizes, bool by_pixels)
      : channels_last(by_pixels), count(static_cast<Index>(sizes[0] * sizes[1] * sizes[2] * sizes[3])) {
    d1 = Divider<Index>(channels_last ? sizes[2] : sizes[1]);
    d2 = Divider<Index>(channels_last ? sizes[3] : sizes[2]);
    d3 = Divider<Index>(channels_last ? sizes[1] : sizes[3]);
  }
  Elements(const Sizes4& sizes, const Strides4& strides)
      : Elements(sizes, sizes[1] > 1 && strides[1] <= (sizes[3] > 1 ? strides[3] : strides[2])) {}
  __device__ __forceinline__ void at(Index i, Index& n, Index& c, Index& h, Index& w) const {
    Index a, b, d;
    n = d1.quotient(d2.quotient(d3.quotient(i, d), b), a);
    c = channels_last ? d : a;
    h = channels_last ? a : b;
    w = channels_last ? b : d;
  }
};

// --- NHWC ------------------------------------------------------------------------------------------------------------

// A thread has one vector of channels, one column, and one strip of rows of an image. Threads of a block: channel
// vectors (fastest), columns, strips. Blocks: the same order.
struct ChannelTiles {
  int32_t vectors = 0, width = 0, units = 0;  // of the tensor; a unit is a strip of an image
  int32_t rows = 0, strip = 0;                // of an image; of a unit, except the last ones of images
  Divider<int32_t> lanes, columns;            // of a block
  Divider<int32_t> vector_blocks, column_blocks;
  Divider<int32_t> strips;  // of an image
  int32_t units_per_block = 1, unit_blocks = 0;
  int64_t blocks = 0;

  ChannelTiles() = default;
  // `line`: channel vectors in 128 bytes. `most_threads`: of a block.
  ChannelTiles(int64_t images, int64_t all_rows, int64_t all_columns, int64_t all_vectors, int64_t line,
               int64_t least_strip, int64_t most_threads = kTileThreads) {
    const int64_t lane_count = std::min(all_vectors, line);
    const int64_t most_columns = most_threads / lane_count;
    const int64_t column_count = div_up(all_columns, div_up(all_columns, most_columns));
    const int64_t threads = images * all_columns * all_vectors;
    const int64_t wanted = std::clamp<int64_t>(div_up(kFullThreads, std::max<int64_t>(threads, 1)), 1,
                                               std::max<int64_t>(all_rows / least_strip, 1));
    vectors = static_cast<int32_t>(all_vectors);
    width = static_cast<int32_t>(all_columns);
    rows = static_cast<int32_t>(all_rows);
    strip = static_cast<int32_t>(div_up(all_rows, wanted));
    const int64_t strip_count = div_up(all_rows, strip);
    units = static_cast<int32_t>(images * strip_count);
    units_per_block =
        static_cast<int32_t>(std::clamp<int64_t>(most_threads / (lane_count * column_count), 1, units));
    lanes = Divider<int32_t>(lane_count);
    columns = Divider<int32_t>(column_count);
    vector_blocks = Divider<int32_t>(div_up(all_vectors, lane_count));
    column_blocks = Divider<int32_t>(div_up(all_columns, column_count));
    strips = Divider<int32_t>(strip_count);
    unit_blocks = static_cast<int32_t>(div_up(units, units_per_block));
    blocks = int64_t{vector_blocks.divisor} * column_blocks.divisor * unit_blocks;
  }
  // At most so many blocks beside each other along the units: their threads go on to units() further on.
  void fold_units(int64_t most) {
    unit_blocks = static_cast<int32_t>(std::min<int64_t>(unit_blocks, most));
    blocks = int64_t{vector_blocks.divisor} * column_blocks.divisor * unit_blocks;
  }
  __host__ __device__ int32_t threads() const {
    return static_cast<int32_t>(lanes.divisor * columns.divisor) * units_per_block;
  }

  struct Place {
    int32_t vector, column, unit, lane, sum_block;  // sum_block: of columns and units together
    int32_t image, row, row_end;
    bool inside;
  };
  __device__ __forceinline__ Place place(int32_t thread, int32_t block) const {
    Place at;
    int32_t column_in_block, vector_block, column_block;
    const int32_t unit_in_block = columns.quotient(lanes.quotient(thread, at.lane), column_in_block);
    at.sum_block = vector_blocks.quotient(block, vector_block);
    const int32_t unit_block = column_blocks.quotient(at.sum_block, column_block);
    at.vector = vector_block * static_cast<int32_t>(lanes.divisor) + at.lane;
    at.column = column_block * static_cast<int32_t>(columns.divisor) + column_in_block;
    set_unit(at, unit_block * units_per_block + unit_in_block);
    return at;
  }
  __device__ __forceinline__ void set_unit(Place& at, int32_t unit) const {
    at.unit = unit;
    at.inside = at.vector < vectors && at.column < width && unit < units;
    int32_t first;
    at.image = strips.quotient(unit, first);
    at.row = first * strip;
    at.row_end = at.row + strip < rows ? at.row + strip : rows;
  }
};

// --- NCHW ------------------------------------------------------------------------------------------------------------

constexpr int64_t kTileBytes = 24 << 10;  // 9 blocks on a multiprocessor
constexpr int64_t kMostTileBytes = 48 << 10;

// The rows of a plane that a tile's outputs read: for outputs [p0, p1), from p0 * step / by + low on to before
// ((p1 - 1) * step + last) / by + high. Quotients are rounded down; but for adaptive windows they are by 1.
struct TileReach {
  int32_t step, low, high, last = 0;
  Divider<int32_t> by{};

  // The most rows that n neighbouring outputs read, and the most outputs that read no more than n rows (0 or less: none).
  int64_t rows(int64_t n) const { return ((n - 1) * step + last) / by.divisor + high - low + (by.divisor > 1); }
  int64_t outputs(int64_t n) const {
    return ((n - (high - low) - (by.divisor > 1) + 1) * by.divisor - 1 - last) / step + 1;
  }
};

// A block has the output rows [row, row_end) of `planes` planes: a band of one, or all rows of several.
struct PlaneTiles {
  int32_t source_rows = 0, source_width = 0, rows = 0, width = 0;
  TileReach reach{};
  int32_t planes = 0, band = 0, strip = 0;
  Divider<int32_t> bands, columns, strips;
  int64_t all_planes = 0, blocks = 0, shared_bytes = 0;  // none: a row does not fit

  PlaneTiles() = default;
  // Columns and rows that threads walk over; a thread has one column of one strip at a time.
  PlaneTiles(int64_t plane_count, int64_t in_rows, int64_t in_width, int64_t out_rows, int64_t out_width,
             TileReach how, int64_t element_bytes)
      : source_rows(static_cast<int32_t>(in_rows)),
        source_width(static_cast<int32_t>(in_width)),
        rows(static_cast<int32_t>(out_rows)),
        width(static_cast<int32_t>(out_width)),
        reach(how),
        all_planes(plane_count) {
    const int64_t row_bytes = in_width * element_bytes, margin = 32;  // of the alignment on both sides
    const auto source_bytes = [&](int64_t n) {
      return std::min(how.rows(n), in_rows) * row_bytes + margin;
    };
    if (source_bytes(1) > kMostTileBytes) return;
    int64_t band_rows = out_rows, plane_group = 1;
    if (source_bytes(out_rows) > kTileBytes) {
      band_rows = std::clamp<int64_t>(how.outputs(kTileBytes / row_bytes), 1, out_rows);
      band_rows = div_up(out_rows, div_up(out_rows, band_rows));
    } else {
      const int64_t fit = kTileBytes / (in_rows * row_bytes);
      // As many as fit, but no fewer blocks than two for each multiprocessor.
      plane_group = std::clamp<int64_t>(plane_count / (2 * kMultiprocessors), 1, std::max<int64_t>(fit, 1));
    }
    planes = static_cast<int32_t>(plane_group);
    band = static_cast<int32_t>(band_rows);
    const int64_t strip_count = std::clamp<int64_t>(kTileThreads / (plane_group * out_width), 1, band_rows);
    strip = static_cast<int32_t>(div_up(band_rows, strip_count));
    bands = Divider<int32_t>(div_up(out_rows, band_rows));
    strips = Divider<int32_t>(div_up(band_rows, strip));
    columns = Divider<int32_t>(out_width);
    blocks = div_up(plane_count, plane_group) * bands.divisor;
    shared_bytes = plane_group == 1 ? source_bytes(band_rows) : plane_group * in_rows * row_bytes + margin;
  }

  struct Tile {
    int64_t plane;                      // the first
    int32_t planes, row, row_end;       // output rows
    int32_t source_row, source_end;     // the rows that are copied, of each plane
  };
  __device__ __forceinline__ Tile tile(int32_t block) const {
    Tile t;
    int32_t b;
    t.plane = int64_t{bands.quotient(block, b)} * planes;
    t.planes = all_planes - t.plane < planes ? static_cast<int32_t>(all_planes - t.plane) : planes;
    t.row = b * band;
    t.row_end = t.row + band < rows ? t.row + band : rows;
    t.source_row = reach.by.quotient(t.row * reach.step) + reach.low;
    t.source_end = reach.by.quotient((t.row_end - 1) * reach.step + reach.last) + reach.high;
    if (t.source_row < 0 || planes > 1) t.source_row = 0;
    if (t.source_end > source_rows || planes > 1) t.source_end = source_rows;
    if (t.source_end < t.source_row) t.source_end = t.source_row;
    return t;
  }
  // The range of x that the tile copies.
  __device__ __forceinline__ int64_t source_begin(const Tile& t) const {
    return (t.plane * source_rows + t.source_row) * source_width;
  }
  __device__ __forceinline__ int32_t source_count(const Tile& t) const {
    return ((t.planes - 1) * source_rows + t.source_end - t.source_row) * source_width;
  }

  struct Place {
    int32_t plane, column, row, row_end;  // the plane within the tile
  };
  __device__ __forceinline__ int32_t items(const Tile& t) const {
    return t.planes * static_cast<int32_t>(strips.divisor) * width;
  }
  __device__ __forceinline__ Place place(const Tile& t, int32_t item) const {
    Place at;
    int32_t s;
    at.plane = strips.quotient(columns.quotient(item, at.column), s);
    at.row = t.row + s * strip;
    at.row_end = at.row + strip < t.row_end ? at.row + strip : t.row_end;
    return at;
  }
};

// Elements by which p lies behind a multiple of 16 bytes.
template <class T>
__host__ __device__ __forceinline__ int32_t lead_of(const T* p) {
  return static_cast<int32_t>(reinterpret_cast<uintptr_t>(p) % 16 / sizeof(T));
}

// Copies `count` values to `to`, which stands lead_of(from) elements behind a multiple of 16 bytes. The whole block
// calls it. change(value, i): what is kept of element i; change(vector, i): of the vector that begins with it.
template <class T, class Change>
__device__ __forceinline__ void copy_run(const T* from, int32_t count, T* to, Change&& change) {
  constexpr int N = kFullVector<T>, kInFlight = 4;
  const int32_t threads = static_cast<int32_t>(blockDim.x), thread = static_cast<int32_t>(threadIdx.x);
  const int32_t lead = lead_of(from), head = lead ? (N - lead < count ? N - lead : count) : 0;
  const int32_t whole = (count - head) / N;
  for (int32_t i = thread; i < head; i += threads) to[i] = change(from[i], i);
  for (int32_t i = head + whole * N + thread; i < count; i += threads) to[i] = change(from[i], i);
  for (int32_t v = thread; v < whole; v += threads * kInFlight) {
    Vector<T, N> some[kInFlight];
    for (int j = 0; j < kInFlight; ++j)
      if (v + j * threads < whole) some[j] = load_vector<N>(from + head + (v + j * threads) * N);
    for (int j = 0; j < kInFlight; ++j) {
      const int32_t i = head + (v + j * threads) * N;
      if (v + j * threads < whole) store_vector<N>(to + i, change(some[j], i));
    }
  }
}
template <class T>
__device__ __forceinline__ void copy_run(const T* from, int32_t count, T* to) {
  copy_run(from, count, to, [](const auto& values, int32_t) { return values; });
}

// The tile's memory, and where a run that comes from `from` begins in it.
template <class T>
__device__ __forceinline__ T* tile_memory(const T* from) {
  return reinterpret_cast<T*>(&dynamic_shared<Vector<T, kFullVector<T>>>()) + lead_of(from);
}

}  // namespace fastconv::FASTCONV_GPU
