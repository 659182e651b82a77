// From a block of finished sums to the filter's gradient.
#pragma once

#include "pack.h"
#include "tile.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// sums[channel][tap][tile width] to the strided weight tensor; a dense one by register transposes, because storing
// filter by filter touches a new cache line with every value.
template <class T>
void write_filter_sums(const ConvProblem& p, const Compute<T>* sums, int64_t filters, T* weight) {
  using A = Compute<T>;
  constexpr int W = kTileWidth<A>;
  const Strides4& ws = p.weight_strides;
  const int64_t taps = p.r * p.s, channels = p.group_c();
  if constexpr (std::is_same_v<T, A>) {
    const bool taps_dense = (p.s == 1 || ws[3] == 1) && (p.r == 1 || ws[2] == p.s);
    if (taps_dense && (channels == 1 || ws[1] == taps))
      return pack(Reader<A>{sums, W, 1}, channels * taps, filters, [&](int64_t l) { return weight + l * ws[0]; });
    if (ws[1] == 1) {
      for (int64_t tap = 0; tap < taps; ++tap)
        pack(Reader<A>{sums + tap * W, taps * W, 1}, channels, filters,
             [&](int64_t l) { return weight + l * ws[0] + tap / p.s * ws[2] + tap % p.s * ws[3]; });
      return;
    }
  }
  for (int64_t l = 0; l < filters; ++l)
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t tap = 0; tap < taps; ++tap)
        weight[l * ws[0] + c * ws[1] + tap / p.s * ws[2] + tap % p.s * ws[3]] =
            narrow<T>(sums[(c * taps + tap) * W + l]);
}

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
