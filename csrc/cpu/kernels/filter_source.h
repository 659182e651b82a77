// A weight tensor in the roles that its dimensions have in a pass, and the cache lines of a part of it.
#pragma once

#include "../../core/div_up.h"
#include "../gather.h"
#include "lines.h"
#include "tile.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// Weights up to this size stay in the caches from one part to the next; larger ones are worth prefetching.
constexpr int64_t kNearBytes = 256 << 10;

// Where the taps of a group's filters lie, in the roles they have in this pass.
template <class T>
struct FilterSource {
  const T* weight;
  int64_t filter_stride, channel_stride, row_stride, col_stride;
  int64_t rows, cols;  // of taps
  bool flip;           // taps in reverse order
  int64_t filters, channels;

  FilterSource(const ConvProblem& p, const Gather& g, const void* data, int64_t group)
      : weight(static_cast<const T*>(data) + group * p.group_k() * p.weight_strides[0]),
        filter_stride(g.filter_stride),
        channel_stride(g.channel_stride),
        row_stride(p.weight_strides[2]),
        col_stride(p.weight_strides[3]),
        rows(p.r),
        cols(p.s),
        flip(g.rows.tap_step < 0),
        filters(g.filters),
        channels(g.channels) {}

  const T* at(int64_t filter, int64_t channel) const {
    return weight + filter * filter_stride + channel * channel_stride;
  }
};

// Lines of the weight that will be read after `chunk` channels of a block of filters, as runs to prefetch: those of the
// next chunk, or of the next block's first. A run goes down the slow one of these two directions; along the fast one lie
// all taps, or a stretch for each tap (channels_last). Stretches of one chunk are short, 128 bytes in pages of their own:
// there the runs go through the next block from its begin to its end, a share for each chunk, if the block is in one
// piece (512 channels at 14x14: 0.84 of the time; where all taps lie together it would take 1.05).
template <class T>
class TapLines {
 public:
  TapLines(const FilterSource<T>& s, int64_t filter, int64_t channel, int64_t chunk) : source_(s) {
    constexpr int64_t bytes = sizeof(T), wide = kTileWidth<Compute<T>>;
    const int64_t taps = s.rows * s.cols, next = channel + chunk < s.channels ? channel + chunk : 0;
    const bool along_channels = s.channel_stride < s.filter_stride;
    const bool stretches = s.cols > 1 && s.col_stride > (along_channels ? s.channel_stride : s.filter_stride);
    const int64_t block = wide * s.filter_stride * bytes;
    if (stretches && along_channels && s.filter_stride == s.channels * taps && block <= kBlockBytes) {
      const int64_t lines = block / kLineBytes, share = div_up(lines, div_up(s.channels, chunk));
      const int64_t at = channel / chunk * share, filters_left = s.filters - filter - wide;
      start_ = reinterpret_cast<const char*>(s.at(filter, 0)) + block + at * kLineBytes;
      rows_ = filters_left < wide ? 0 : share < lines - at ? share : lines - at;
      step_ = kLineBytes;
      return;
    }
    const int64_t first = next > 0 ? filter : filter + wide < s.filters ? filter + wide : s.filters - 1;
    const int64_t filters = s.filters - first < wide ? s.filters - first : wide;
    const int64_t channels = s.channels - next < chunk ? s.channels - next : chunk;
    const int64_t span = along_channels ? (channels - 1) * s.channel_stride + 1 : (filters - 1) * s.filter_stride + 1;
    start_ = reinterpret_cast<const char*>(s.at(first, next));
    rows_ = along_channels ? filters : channels;
    step_ = (along_channels ? s.filter_stride : s.channel_stride) * bytes;
    stretches_ = stretches ? taps : 1;
    const int64_t before = reinterpret_cast<uintptr_t>(start_) % kLineBytes;
    lines_ = div_up(before + (span + (stretches ? 0 : taps - 1)) * bytes, kLineBytes);
  }
  int64_t runs() const { return stretches_ * lines_ * div_up(rows_, kMost); }
  LineRun next() {
    if (stretch_ == stretches_ || rows_ <= 0) return {start_, 0, 0};
    const int64_t tap = stretch_ / source_.cols * source_.row_stride + stretch_ % source_.cols * source_.col_stride;
    const LineRun run{start_ + tap * static_cast<int64_t>(sizeof(T)) + line_ * kLineBytes + row_ * step_, step_,
                      rows_ - row_ < kMost ? rows_ - row_ : kMost};
    if ((row_ += kMost) < rows_) return run;
    row_ = 0;
    if (++line_ < lines_) return run;
    line_ = 0, ++stretch_;
    return run;
  }

 private:
  static constexpr int64_t kMost = 16;  // lines of a run
  static constexpr int64_t kBlockBytes = 768 << 10;  // beside which the second-level cache has room for the rest
  const FilterSource<T>& source_;
  const char* start_;
  int64_t rows_, step_, stretches_ = 1, lines_ = 1;
  int64_t row_ = 0, line_ = 0, stretch_ = 0;
};

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
