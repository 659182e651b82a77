// From sums in the frequency domain to finished output pixels: inverse transform, bias, residual, activation, store; or to
// the largest of each 2x2 of them, which lie in one tile, because m is even.
#pragma once

#include "../winograd.h"
#include "pack.h"
#include "winograd_lanes.h"
#include "winograd_tiles.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// The output of one group.
template <class T>
struct TileTarget {
  T* p;
  Strides4 strides;  // batch, filter, row, column
  const T* residual;
  Strides4 residual_strides;
  const float* scale;
  const T* bias;
  Activated<float> activation;
  int64_t height, width, filters;  // of the output
};

// a, or b where that is larger; NaN wins, as in torch's max_pool2d.
FASTCONV_INLINE Lanes larger_or_nan(const Lanes& a, const Lanes& b) { return (a > b) | (a != a) ? a : b; }

// y[i][j] = pixel (i, j) of a tile for L filters, from n x n sums at `from`.
template <class F>
FASTCONV_INLINE void inverse(const float* from, int64_t stride, Lanes (&y)[F::outputs][F::outputs]) {
  constexpr int N = F::size, M = F::outputs;
  Lanes half[M][N];
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) {
    Lanes m[N], column[M];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) m[i] = load(from + (i * N + j) * stride);
    synthesise<F>(m, column);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) half[i][j] = column[i];
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) synthesise<F>(half[i], y[i]);
}

// Finished pixels of one tile, up to the residual: `Side` x `Side` of them. Of a max-pool, the activation is done too.
template <class F, int Side>
FASTCONV_INLINE void finish_tile(const float* sums, int64_t stride, const Lanes& scale, const Lanes& bias,
                                 const Activated<float>& activation, Lanes (&pixels)[Side][Side]) {
  constexpr int M = F::outputs, L = kLanes<float>;
  if constexpr (Side == M) {
    inverse<F>(sums, stride, pixels);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < M; ++j) pixels[i][j] = pixels[i][j] * scale + bias;
  } else {
    static_assert(2 * Side == M);
    Lanes tile[M][M];
    inverse<F>(sums, stride, tile);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < M; ++j) tile[i][j] = activation.in_registers(tile[i][j] * scale + bias);
    if (activation.in_memory()) {
      alignas(64) float values[M * M * L];
      for (int i = 0; i < M * M; ++i) store(values + i * L, tile[i / M][i % M]);
      activation.apply(values, M * M * L);
      for (int i = 0; i < M * M; ++i) tile[i / M][i % M] = load(values + i * L);
    }
#pragma GCC unroll 4
    for (int i = 0; i < Side; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < Side; ++j)
        pixels[i][j] = larger_or_nan(larger_or_nan(tile[2 * i][2 * j], tile[2 * i][2 * j + 1]),
                                     larger_or_nan(tile[2 * i + 1][2 * j], tile[2 * i + 1][2 * j + 1]));
  }
}

// Lanes along filters, contiguous in the output; L of them.
template <class F, int M>
inline void write_filters(const float* sums, int64_t stride, int64_t sum_step, const Segment& segment, Lanes scale,
                          Lanes bias, Activated<float> given, float* y, int64_t row_stride, int64_t col_stride,
                          const float* residual, int64_t residual_row, int64_t residual_col, int64_t rows,
                          int64_t cols) {
  const Activated<float> activation = M == F::outputs ? given : Activated<float>();
  for (int64_t t = 0; t < segment.count; ++t) {
    Lanes tile[M][M];
    finish_tile<F>(sums + t * sum_step, stride, scale, bias, given, tile);
    float* to = y + t * M * col_stride;
    if (rows >= M && cols - t * M >= M) {
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < M; ++j) {
          Lanes v = tile[i][j];
          if (residual) v += load(residual + i * residual_row + (t * M + j) * residual_col);
          store(to + i * row_stride + j * col_stride, activation.in_registers(v));
        }
      continue;
    }
    float spill[M * M * kLanes<float>];
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < M; ++j) store(spill + (i * M + j) * kLanes<float>, tile[i][j]);
    for (int i = 0; i < M && i < rows; ++i)
      for (int j = 0; j < M && j < cols - t * M; ++j) {
        Lanes v = load(spill + (i * M + j) * kLanes<float>);
        if (residual) v += load(residual + i * residual_row + (t * M + j) * residual_col);
        store(to + i * row_stride + j * col_stride, activation.in_registers(v));
      }
  }
  if (activation.in_memory())
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < cols; ++j) activation.apply(y + i * row_stride + j * col_stride, kLanes<float>);
}

// Pixels of one row, [cols][L], to a row of contiguous pixels for each filter. Each filter's row is written at once,
// because the planes' lines often share a set of the first-level cache.
template <class T>
inline void write_planes(const float* pixels, int64_t filters, int64_t cols, Activated<float> activation, T* y,
                         int64_t filter_stride, const T* residual, int64_t residual_filter) {
  constexpr int L = kLanes<float>;
  constexpr int64_t pitch = winograd::kSegmentPixels;
  alignas(64) float rows[L * pitch];
  for (int64_t j = 0; j < cols; j += L) {
    Lanes block[L];
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) block[i] = load(pixels + (j + i) * L);
    transpose_registers<float>(block);
#pragma GCC unroll 16
    for (int l = 0; l < L; ++l) store(rows + l * pitch + j, block[l]);
  }
  for (int64_t l = 0; l < filters; ++l) {
    float* from = rows + l * pitch;
    T* to = y + l * filter_stride;
    const T* more = residual ? residual + l * residual_filter : nullptr;
    if (activation.in_memory()) {
      for (int64_t j = 0; more && j < cols; ++j) from[j] += widen(more[j]);
      activation.apply(from, cols);
      more = nullptr;
    }
    if constexpr (sizeof(T) == sizeof(float)) {
      for (int64_t j = 0; j < cols; j += L) {
        const int64_t count = smaller(L, cols - j);
        Lanes v = load(from + j);
        if (count == L) {
          if (more) v += load(more + j);
          store(to + j, activation.in_registers(v));
        } else {
          if (more) v += load_part(more + j, count);
          store_part(to + j, activation.in_registers(v), count);
        }
      }
    } else {
      for (int64_t j = 0; j < cols; ++j) {
        const float v = more ? from[j] + widen(more[j]) : from[j];
        to[j] = narrow<T>(activation.relu() && v <= 0.0f ? 0.0f : v);
      }
    }
  }
}

// One segment and one vector of filters. sums: n x n of them `stride` floats apart, tiles `sum_step` apart.
// `pixels` holds segment_floats. M: pixels of a tile along each side, F::outputs or, with a max-pool, half as many.
template <class F, int M, class T>
inline void transform_output(const TileTarget<T>& target, const Segment& segment, int64_t filter, const float* sums,
                             int64_t stride, int64_t sum_step, float* pixels) {
  constexpr int L = kLanes<float>;
  const Activated<float> activation = M == F::outputs ? target.activation : Activated<float>();
  const int64_t top = segment.row * M, left = segment.col * M, filters = smaller(L, target.filters - filter);
  const int64_t rows = smaller(M, target.height - top), cols = smaller(segment.count * M, target.width - left);
  float scale_values[L], bias_values[L];
  for (int64_t l = 0; l < L; ++l) {
    scale_values[l] = target.scale && l < filters ? target.scale[filter + l] : 1.0f;
    bias_values[l] = target.bias && l < filters ? widen(target.bias[filter + l]) : 0.0f;
  }
  const Lanes scale = load(scale_values), bias = load(bias_values);
  const Strides4& ys = target.strides;
  const Strides4& rs = target.residual_strides;
  T* y = target.p + segment.image * ys[0] + filter * ys[1] + top * ys[2] + left * ys[3];
  const T* residual = !target.residual ? nullptr
                                       : target.residual + segment.image * rs[0] + filter * rs[1] + top * rs[2] +
                                             left * rs[3];
  if constexpr (sizeof(T) == sizeof(float)) {
    if (ys[1] == 1 && filters == L && (!residual || rs[1] == 1))
      return write_filters<F, M>(sums, stride, sum_step, segment, scale, bias, target.activation, y, ys[2], ys[3], residual,
                              rs[2], rs[3], rows, cols);
  }
  constexpr int64_t pitch = winograd::kSegmentPixels;
  for (int64_t t = 0; t < segment.count; ++t) {
    Lanes tile[M][M];
    finish_tile<F>(sums + t * sum_step, stride, scale, bias, target.activation, tile);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < M; ++j) store(pixels + (i * pitch + t * M + j) * L, tile[i][j]);
  }
  for (int64_t i = 0; i < rows; ++i) {
    const float* from = pixels + i * pitch * L;
    if (ys[3] == 1 && (!residual || rs[3] == 1)) {
      write_planes<T>(from, filters, cols, activation, y + i * ys[2], ys[1],
                      residual ? residual + i * rs[2] : nullptr, rs[1]);
      continue;
    }
    const bool whole = filters == L && ys[1] == 1;
    for (int64_t j = 0; j < cols; ++j) {
      float values[L] = {};
      T* to = y + i * ys[2] + j * ys[3];
      Lanes v = load(from + j * L);
      if (residual) {
        for (int64_t l = 0; l < filters; ++l) values[l] = widen(residual[i * rs[2] + j * rs[3] + l * rs[1]]);
        v += load(values);
      }
      store(values, activation.in_registers(v));
      if (activation.in_memory()) activation.apply(values, filters);
      if (whole) {  // a loop of constant length and stride, to be vectorised
        for (int l = 0; l < L; ++l) to[l] = narrow<T>(values[l]);
      } else {
        for (int64_t l = 0; l < filters; ++l) to[l * ys[1]] = narrow<T>(values[l]);
      }
    }
  }
}

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
