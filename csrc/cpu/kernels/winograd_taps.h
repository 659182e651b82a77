// From a filter's taps to the frequency domain, G g G^T, one piece at a time: filters of one register tile's width and a
// few channels, staged as [tap][channel][tile width].
#pragma once

#include "filter_source.h"
#include "pack.h"
#include "tile.h"
#include "winograd_lanes.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// Taps and frequencies lie an odd number of lines apart: at multiples of 4 KiB loads would wait for stores to others.
constexpr int64_t kPieceChannels = 16, kPieceStride = kPieceChannels * kTileWidth<float> + 16;

// L filters of `count` <= L contiguous taps, turned: rows[t] holds tap t of every filter.
template <class T>
inline void turn_taps(const T* src, int64_t filter_stride, int64_t count, Vec<float>* rows) {
  constexpr int L = kLanes<float>;
#pragma GCC unroll 16
  for (int l = 0; l < L; ++l) {
    if constexpr (sizeof(T) == sizeof(float)) {
      rows[l] = load_part(src + l * filter_stride, count);
    } else {
      float values[L] = {};
      for (int64_t t = 0; t < count; ++t) values[t] = widen(src[l * filter_stride + t]);
      rows[l] = load(values);
    }
  }
  transpose_registers<float>(rows);
}

// Taps of the filters from `filter` on, at most a tile's width, and of `channels` channels. dst: taps `stride`
// floats apart, each [channels][tile width].
template <int Side, class T>
inline void stage_taps(const FilterSource<T>& s, int64_t filter, int64_t channel, int64_t channels, int64_t stride,
                       float* dst) {
  constexpr int L = kLanes<float>, W = kTileWidth<float>, taps = Side * Side;
  const int64_t filters = s.filters - filter < W ? s.filters - filter : W;
  const auto slot = [&](int64_t t) { return s.flip ? taps - 1 - t : t; };
  const T* src = s.at(filter, channel);
  const bool taps_dense = s.col_stride == 1 && s.row_stride == Side;
  if (filters < W) zero(dst, taps * stride);
  if (taps_dense && s.channel_stride == taps) {
    pack(Reader<T>{src, s.filter_stride, 1}, filters, channels * taps,
         [&](int64_t j) { return dst + slot(j % taps) * stride + j / taps * W; });
  } else if (taps_dense && filters == W) {
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t i = 0; i < W; i += L)
        for (int64_t t = 0; t < taps; t += L) {
          Vec<float> rows[L];
          const int64_t count = taps - t < L ? taps - t : L;
          turn_taps(src + c * s.channel_stride + i * s.filter_stride + t, s.filter_stride, count, rows);
#pragma GCC unroll 16
          for (int j = 0; j < L; ++j)
            if (j < count) store(dst + slot(t + j) * stride + c * W + i, rows[j]);
        }
  } else {
    for (int64_t t = 0; t < taps; ++t)
      pack(Reader<T>{src + t / Side * s.row_stride + t % Side * s.col_stride, s.filter_stride, s.channel_stride},
           filters, channels, [&](int64_t c) { return dst + slot(t) * stride + c * W; });
  }
}

// dst: frequencies `stride` floats apart, each [channels][tile width].
template <class F>
inline void transform_taps(const float* staged, int64_t channels, float* dst, int64_t stride) {
  constexpr int N = F::size, R = F::taps, L = kLanes<float>, W = kTileWidth<float>;
  for (int64_t i = 0; i < channels * W; i += L) {
    Lanes half[R][N];
#pragma GCC unroll 8
    for (int s = 0; s < R; ++s) {
      Lanes column[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) column[r] = load(staged + (r * R + s) * kPieceStride + i);
      analyse<typename F::G>(column, half[s]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < N; ++r) {
      Lanes row[R], out[N];
#pragma GCC unroll 8
      for (int s = 0; s < R; ++s) row[s] = half[s][r];
      analyse<typename F::G>(row, out);
#pragma GCC unroll 8
      for (int s = 0; s < N; ++s) store(dst + (r * N + s) * stride + i, out[s]);
    }
  }
}

// The same by rows of frequencies: calls use(row) when dst holds row `row`, n frequencies `stride` floats apart. Sums
// that two rows share are formed twice.
template <class F, int Row = 0, class Use>
inline void transform_rows_of_taps(const float* staged, int64_t channels, int64_t tap_stride, float* dst, int64_t stride,
                                   Use&& use) {
  constexpr int N = F::size, R = F::taps, L = kLanes<float>, W = kTileWidth<float>;
  for (int64_t i = 0; i < channels * W; i += L) {
    Lanes row[R], out[N];
#pragma GCC unroll 8
    for (int s = 0; s < R; ++s) {
      Lanes column[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) column[r] = load(staged + (r * R + s) * tap_stride + i);
      row[s] = dot<typename F::G, Row, R - 1, 1, false>(column, Lanes{});
    }
    analyse<typename F::G>(row, out);
#pragma GCC unroll 8
    for (int s = 0; s < N; ++s) store(dst + s * stride + i, out[s]);
  }
  use(Row);
  if constexpr (Row + 1 < N) transform_rows_of_taps<F, Row + 1>(staged, channels, tap_stride, dst, stride, use);
}

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
