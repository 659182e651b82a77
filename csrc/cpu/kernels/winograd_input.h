// From input pixels to transformed tiles, lanes along channels: columns of a whole segment first, shared by overlapping
// tiles (m instead of n column transforms per tile), then rows.
#pragma once

#include "../winograd.h"
#include "pack.h"
#include "winograd_lanes.h"
#include "winograd_tiles.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// The input of one group. In grad_input it is grad_output, and the mask is the forward's output.
template <class T>
struct TileSource {
  const T* p;
  Strides4 strides;  // batch, channel, row, column
  const T* mask;
  Strides4 mask_strides;
  int64_t height, width, row_low, col_low, channels;
};

// `count` <= lanes values that are contiguous along j, starting at (i, j), masked.
template <class T>
inline Lanes read_part(const Reader<T>& reader, int64_t i, int64_t j, int64_t count) {
  if (count >= kLanes<float>) return reader.lanes_at(i, j);
  if constexpr (sizeof(T) == sizeof(float)) {
    const Lanes v = load_part(reader.p + i * reader.si + j, count);
    if (!reader.mask) return v;
    return load_part(reader.mask + i * reader.mask_si + j, count) <= 0.0f ? Lanes{} : v;
  } else {
    float values[kLanes<float>] = {};
    for (int64_t l = 0; l < count; ++l) values[l] = reader.at(i, j + l);
    return load(values);
  }
}

// Columns of the n rows at `rows` (each advancing by its step per column) -> dst[n][pitch][L].
template <class F>
inline void transform_columns(const float* const (&rows)[F::size], const int64_t (&steps)[F::size], int64_t begin,
                              int64_t end, int64_t cols, int64_t pitch, float* dst) {
  constexpr int N = F::size, L = kLanes<float>;
  for (int64_t col = 0; col < cols; ++col) {
    Lanes d[N], v[N];
    if (col < begin || col >= end) {
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) store(dst + (i * pitch + col) * L, Lanes{});
      continue;
    }
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) d[i] = load(rows[i] + (col - begin) * steps[i]);
    analyse<typename F::B>(d, v);
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) store(dst + (i * pitch + col) * L, v[i]);
  }
}

// The same where pixels are contiguous: lanes along pixels at first, channel by channel, turned afterwards.
// `scratch` holds [n][L][pixels of a segment].
template <class F, class T>
inline void transform_columns_of_planes(const Reader<T> (&rows)[F::size], int64_t begin, int64_t end, int64_t cols,
                                        int64_t pitch, int64_t lanes, float* scratch, float* dst) {
  constexpr int N = F::size, L = kLanes<float>;
  constexpr int64_t width = winograd::kSegmentPixels;
  for (int64_t l = 0; l < lanes; ++l)
    for (int64_t j = 0; j < end - begin; j += L) {
      Lanes d[N], v[N];
      const int64_t count = end - begin - j;
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) d[i] = rows[i].p ? read_part(rows[i], l, j, count) : Lanes{};
      analyse<typename F::B>(d, v);
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

// Rows of src[n][pitch][L] -> v[frequency][tile][L], frequencies `stride` floats apart.
template <class F>
inline void transform_rows(const float* src, int64_t pitch, int64_t tiles, float* v, int64_t stride) {
  constexpr int N = F::size, L = kLanes<float>;
  for (int i = 0; i < N; ++i)
    for (int64_t t = 0; t < tiles; ++t) {
      Lanes d[N], u[N];
      const float* from = src + (i * pitch + t * F::outputs) * L;
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) d[j] = load(from + j * L);
      analyse<typename F::B>(d, u);
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) store(v + (i * N + j) * stride + t * L, u[j]);
    }
}

// One segment and one vector of channels. `staged` and `columns` hold segment_floats each.
template <class F, class T>
inline void transform_input(const TileSource<T>& s, const Segment& segment, int64_t channel, float* staged,
                            float* columns, float* v, int64_t stride) {
  constexpr int N = F::size, M = F::outputs, L = kLanes<float>;
  static constexpr float zeros[L] = {};
  const int64_t top = segment.row * M + s.row_low, left = segment.col * M + s.col_low;
  const int64_t cols = segment.count * M + N - M, pitch = winograd::kSegmentPixels + L;
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
    }
  }
  if (s.strides[3] == 1 && (!mask || s.mask_strides[3] == 1) && s.strides[1] != 1) {
    transform_columns_of_planes<F>(readers, begin, end, cols, pitch, lanes, staged, columns);
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
    transform_columns<F>(rows, steps, begin, end, cols, pitch, columns);
  }
  transform_rows<F>(columns, pitch, segment.count, v, stride);
}

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
