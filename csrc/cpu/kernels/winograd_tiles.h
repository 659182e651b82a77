// Tiles of the output plane, in order across images, and the cache lines that they read or write.
#pragma once

#include "../../core/div_up.h"
#include "lines.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Tiles in order: image, row, column.
struct TileGrid {
  int64_t rows, cols;  // of tiles, per image
};
// Neighbours in a row.
struct Segment {
  int64_t image, row, col, count;
};
inline Segment segment_at(const TileGrid& grid, int64_t tile, int64_t end, int64_t most) {
  const int64_t row = tile / grid.cols, col = tile % grid.cols;
  return {row / grid.rows, row % grid.rows, col, smaller(smaller(most, grid.cols - col), end - tile)};
}

// A tensor as tiles see it. Tile (i, j) covers `extent` rows and columns from (step * i + row_low, step * j + col_low).
struct TiledTensor {
  const char* base;  // channel 0 of the group
  int64_t image, channel, row, col;  // strides in bytes
  int64_t bytes;                     // of an element
  int64_t height, width, row_low, col_low, step, extent;
};

template <class T>
inline TiledTensor tiled(const T* base, const Strides4& strides) {
  constexpr int64_t bytes = sizeof(T);
  TiledTensor t{};
  t.base = reinterpret_cast<const char*>(base);
  t.image = strides[0] * bytes;
  t.channel = strides[1] * bytes;
  t.row = strides[2] * bytes;
  t.col = strides[3] * bytes;
  t.bytes = bytes;
  return t;
}

// Walks the cache lines of a range of tiles and channels, as runs of lines at one distance: over pixels where channels
// are contiguous, else over channels.
class LineWalk {
 public:
  LineWalk() = default;
  LineWalk(const TiledTensor& t, const TileGrid& grid, int64_t begin, int64_t end, int64_t channel, int64_t channels)
      : tensor_(&t), grid_(grid), tile_(begin), end_(end), channel_(channel), channels_(channels) {
    open_segment();
  }

  LineRun next(int64_t most) {
    while (item_ >= items_) {
      item_ = 0;
      if (++line_ < lines_) continue;
      line_ = 0;
      if (++row_ < row_end_) continue;
      if (tile_ >= end_) return {reinterpret_cast<const char*>(this), 0, 0};
      open_segment();
    }
    const LineRun run{start_ + row_ * tensor_->row + line_ * kLineBytes + item_ * item_step_, item_step_,
                      smaller(most, items_ - item_)};
    item_ += most;
    return run;
  }

 private:
  void open_segment() {
    items_ = item_ = line_ = lines_ = row_ = row_end_ = 0;
    if (tile_ >= end_) return;
    const TiledTensor& t = *tensor_;
    const Segment s = segment_at(grid_, tile_, end_, end_ - tile_);
    tile_ += s.count;
    const int64_t top = s.row * t.step + t.row_low, left = s.col * t.step + t.col_low;
    const int64_t first = larger(left, 0), last = smaller(left + s.count * t.step + t.extent - t.step, t.width);
    row_ = larger(top, 0);
    row_end_ = smaller(top + t.extent, t.height);
    start_ = t.base + s.image * t.image + channel_ * t.channel + first * t.col;
    const bool pixels = t.channel == t.bytes;
    items_ = last <= first ? 0 : pixels ? last - first : channels_;
    item_step_ = pixels ? t.col : t.channel;
    // From the start of its first line; rows and items that are aligned otherwise miss at most one line.
    const int64_t before = reinterpret_cast<uintptr_t>(start_ + row_ * t.row) % kLineBytes;
    start_ -= before;
    lines_ = div_up(before + (pixels ? channels_ * t.bytes : (last - first) * t.col), kLineBytes);
    if (row_ >= row_end_) items_ = 0;
  }

  const TiledTensor* tensor_ = nullptr;
  TileGrid grid_{1, 1};
  int64_t tile_ = 0, end_ = 0, channel_ = 0, channels_ = 0;
  int64_t row_ = 0, row_end_ = 0, line_ = 0, lines_ = 0, item_ = 0, items_ = 0, item_step_ = 0;
  const char* start_ = nullptr;
};

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
