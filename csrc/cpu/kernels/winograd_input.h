// From pixels to transformed tiles, lanes along channels: columns of a whole segment first, shared by overlapping tiles
// (m instead of n column transforms per tile), then rows. The matrix is B^T for a convolution's input, whose tiles
// overlap, or G for the grad_output that a filter's gradient is made from, whose tiles do not.
#pragma once

#include "../winograd.h"
#include "pack.h"
#include "winograd_lanes.h"
#include "winograd_tiles.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// Sums of a vector of channels over pixels, for grad_bias: in lanes along channels, and in lanes along pixels for each
// channel; their total is wanted.
struct PixelSums {
  Lanes channels;
  Lanes pixels[kLanes<float>];
};

// The pixels of one group, of x or grad_output. grad_output may be masked by the forward's output.
template <class T>
struct TileSource {
  const T* p;
  Strides4 strides;  // batch, channel, row, column
  const T* mask;
  Strides4 mask_strides;
  int64_t height, width, row_low, col_low, channels;
  OutputGradient<float> gradient{};
};

// `count` <= lanes values that are contiguous along j, starting at (i, j), masked.
template <class T>
inline Lanes read_part(const Reader<T>& reader, int64_t i, int64_t j, int64_t count) {
  if (count >= kLanes<float>) return reader.lanes_at(i, j);
  if constexpr (sizeof(T) == sizeof(float)) {
    const Lanes v = load_part(reader.p + i * reader.si + j, count);
    if (!reader.mask) return v;
    return reader.gradient(v, load_part(reader.mask + i * reader.mask_si + j, count));
  } else {
    float values[kLanes<float>] = {};
    for (int64_t l = 0; l < count; ++l) values[l] = reader.at(i, j + l);
    return load(values);
  }
}

// Columns of the rows at `rows` (each advancing by its step per column) -> dst[n][pitch][L].
template <class Matrix>
inline void transform_columns(const float* const (&rows)[Matrix::columns], const int64_t (&steps)[Matrix::columns],
                              int64_t begin, int64_t end, int64_t cols, int64_t pitch, float* dst, PixelSums* sums) {
  constexpr int R = Matrix::columns, N = Matrix::rows, L = kLanes<float>;
  Lanes sum{};
  for (int64_t col = 0; col < cols; ++col) {
    Lanes d[R], v[N];
    if (col < begin || col >= end) {
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) store(dst + (i * pitch + col) * L, Lanes{});
      continue;
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) d[i] = load(rows[i] + (col - begin) * steps[i]);
    if (sums)
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) sum += d[i];
    analyse<Matrix>(d, v);
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) store(dst + (i * pitch + col) * L, v[i]);
  }
  if (sums) sums->channels += sum;
}

// The same where pixels are contiguous: lanes along pixels at first, channel by channel, turned afterwards.
// `scratch` holds [n][L][pixels of a segment].
template <class Matrix, class T>
inline void transform_columns_of_planes(const Reader<T> (&rows)[Matrix::columns], int64_t begin, int64_t end,
                                        int64_t cols, int64_t pitch, int64_t lanes, float* scratch, float* dst,
                                        PixelSums* sums) {
  constexpr int R = Matrix::columns, N = Matrix::rows, L = kLanes<float>;
  constexpr int64_t width = winograd::kSegmentPixels;
  for (int64_t l = 0; l < lanes; ++l)
    for (int64_t j = 0; j < end - begin; j += L) {
      Lanes d[R], v[N];
      const int64_t count = end - begin - j;
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) d[i] = rows[i].p ? read_part(rows[i], l, j, count) : Lanes{};
      if (sums)
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) sums->pixels[l] += d[i];
      analyse<Matrix>(d, v);
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) store(scratch + (i * L + l) * width + j, v[i]);
    }
  for (int i = 0; i < N; ++i) {
    float* to = dst + i * pitch * L;
    for (int64_t l = lanes; l < L; ++l) zero(scratch + (i * L + l) * width, width);
    zero(to, begin * L);
    for (int64_t j = 0; j < end - begin; j += L) {
      Lanes block[L];
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) block[l] = load(scratch + (i * L + l) * width + j);
      transpose_registers<float>(block);
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) store(to + (begin + j + l) * L, block[l]);
    }
    if (end < cols) zero(to + end * L, (cols - end) * L);
  }
}

// Where transformed tiles go, in rows: frequencies and tiles this many floats apart. at(t): tile t's first frequency.
struct TransformedRows {
  float* v;
  int64_t frequency, tile;
  float* at(int64_t t) const { return v + t * tile; }
};

// Rows of src[n][pitch][L], tiles `step` columns apart. `Transformed`: TransformedRows, or what has its two members.
template <class Matrix, class Transformed>
inline void transform_rows(const float* src, int64_t pitch, int64_t step, int64_t tiles, const Transformed& to) {
  constexpr int R = Matrix::columns, N = Matrix::rows, L = kLanes<float>;
  for (int i = 0; i < N; ++i)
    for (int64_t t = 0; t < tiles; ++t) {
      Lanes d[R], u[N];
      const float* from = src + (i * pitch + t * step) * L;
      float* at = to.at(t);
#pragma GCC unroll 8
      for (int j = 0; j < R; ++j) d[j] = load(from + j * L);
      analyse<Matrix>(d, u);
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) store(at + (i * N + j) * to.frequency, u[j]);
    }
}

// One segment and one vector of channels. `staged` and `columns` hold segment_floats each.
template <class Matrix, int Step, class T, class Transformed>
inline void transform_tiles(const TileSource<T>& s, const Segment& segment, int64_t channel, float* staged,
                            float* columns, const Transformed& to, PixelSums* sums = nullptr) {
  constexpr int N = Matrix::columns, L = kLanes<float>;
  static constexpr float zeros[L] = {};
  const int64_t top = segment.row * Step + s.row_low, left = segment.col * Step + s.col_low;
  const int64_t cols = segment.count * Step + N - Step, pitch = winograd::kSegmentPixels + L;
  const int64_t begin = smaller(cols, larger(0, -left)), end = larger(begin, smaller(cols, s.width - left));
  const int64_t lanes = smaller(L, s.channels - channel);
  const T* p = s.p + segment.image * s.strides[0] + channel * s.strides[1] + (left + begin) * s.strides[3];
  const T* mask = !s.mask ? nullptr
                          : s.mask + segment.image * s.mask_strides[0] + channel * s.mask_strides[1] +
                                (left + begin) * s.mask_strides[3];
  Reader<T> readers[N];
  for (int i = 0; i < N; ++i) {
    const int64_t row = top + i;
    const bool inside = row >= 0 && row < s.height && end > begin;
    readers[i] = {inside ? p + row * s.strides[2] : nullptr, s.strides[1], s.strides[3]};
    if (mask && inside) {
      readers[i].mask = mask + row * s.mask_strides[2];
      readers[i].mask_si = s.mask_strides[1];
      readers[i].mask_sj = s.mask_strides[3];
      readers[i].gradient = s.gradient;
    }
  }
  if (s.strides[3] == 1 && (!mask || s.mask_strides[3] == 1) && s.strides[1] != 1) {
    transform_columns_of_planes<Matrix>(readers, begin, end, cols, pitch, lanes, staged, columns, sums);
  } else {
    const bool in_place = sizeof(T) == sizeof(float) && s.strides[1] == 1 && lanes == L && !mask;
    const float* rows[N];
    int64_t steps[N];
    for (int i = 0; i < N; ++i) {
      rows[i] = zeros;
      steps[i] = 0;
      if (!readers[i].p) continue;
      if (in_place) {
        rows[i] = reinterpret_cast<const float*>(readers[i].p);
        steps[i] = s.strides[3];
      } else {
        float* at = staged + i * pitch * L;
        if (lanes < L) zero(at, (end - begin) * L);
        pack(readers[i], lanes, end - begin, [&](int64_t j) { return at + j * L; });
        rows[i] = at;
        steps[i] = L;
      }
    }
    transform_columns<Matrix>(rows, steps, begin, end, cols, pitch, columns, sums);
  }
  transform_rows<Matrix>(columns, pitch, Step, segment.count, to);
}

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
