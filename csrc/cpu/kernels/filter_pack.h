// Filter values in the order in which the register tile reads them: [tap][channel][tile width].
#pragma once

#include "filter_source.h"
#include "pack.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// `count` channels with all their taps, which follow each other in memory: filters in lanes, taps apart by `pitch`
// channels. Taps is their number if the compiler shall know it (a division for every vector), else 0.
template <int Taps, class T>
inline void pack_runs(const T* src, int64_t filter_stride, int64_t filters, int64_t count, int64_t taps, int64_t pitch,
                      Compute<T>* dst) {
  constexpr int W = kTileWidth<Compute<T>>;
  const int64_t n = Taps ? Taps : taps;
  pack(Reader<T>{src, filter_stride, 1}, filters, count * n,
       [&](int64_t j) { return dst + (j % n * pitch + j / n) * W; });
}

// One block of filters (fewer than a tile's width at the end: zeros follow) and `count` channels from `channel` on.
// dst: [tap][pitch channels][tile width].
template <class T>
inline void pack_filter(const FilterSource<T>& s, int64_t filter, int64_t channel, int64_t count, int64_t pitch,
                        Compute<T>* dst) {
  constexpr int W = kTileWidth<Compute<T>>;
  const int64_t taps = s.rows * s.cols, filters = s.filters - filter < W ? s.filters - filter : W;
  const bool dense = (s.cols == 1 || s.col_stride == 1) && (s.rows == 1 || s.row_stride == s.cols) && taps > 1;
  const T* src = s.at(filter, channel);
  if (filters < W) zero(dst, taps * pitch * W);
  if (dense && (count == 1 || s.channel_stride == taps)) {
    (taps == 9 ? pack_runs<9, T> : pack_runs<0, T>)(src, s.filter_stride, filters, count, taps, pitch, dst);
  } else if (dense && s.filter_stride == taps) {  // grad_input on a dense filter: channel by channel
    for (int64_t c = 0; c < count; ++c)
      pack_runs<0>(src + c * s.channel_stride, taps, filters, 1, taps, pitch, dst + c * W);
  } else {
    for (int64_t t = 0; t < taps; ++t)
      pack(Reader<T>{src + t / s.cols * s.row_stride + t % s.cols * s.col_stride, s.filter_stride, s.channel_stride},
           filters, count, [&](int64_t c) { return dst + (t * pitch + c) * W; });
  }
}

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
