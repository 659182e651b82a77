// A weight tensor in the roles that its dimensions have in a pass, and the cache lines of a part of it.
#pragma once

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

// The lines of `channels` channels' taps, as runs of lines to prefetch: along the fast direction of the weight.
template <class T>
class TapLines {
 public:
  TapLines(const FilterSource<T>& s, int64_t filter, int64_t channel, int64_t channels) {
    constexpr int64_t bytes = sizeof(T);
    const bool dense = s.col_stride == 1;
    const bool along_channels = s.channel_stride < s.filter_stride;
    const int64_t wide = s.filters - filter < kTileWidth<float> ? s.filters - filter : kTileWidth<float>;
    const int64_t fast = (along_channels ? channels * s.channel_stride : wide * s.filter_stride) * bytes;
    line_ = reinterpret_cast<const char*>(s.at(filter, channel));
    row_ = (along_channels ? s.filter_stride : s.channel_stride) * bytes;
    rows_ = along_channels ? wide : channels;
    step_ = dense ? kLineBytes : s.col_stride * bytes;
    length_ = dense ? fast / kLineBytes + 1 : kMost;
  }
  int64_t runs() const { return rows_ * ((length_ + kMost - 1) / kMost); }
  LineRun next() {
    if (row_index_ == rows_) return {line_, 0, 0};
    const LineRun run{line_ + at_ * step_, step_, length_ - at_ < kMost ? length_ - at_ : kMost};
    at_ += kMost;
    if (at_ >= length_) at_ = 0, ++row_index_, line_ += row_;
    return run;
  }

 private:
  static constexpr int64_t kMost = 16;  // lines of a run
  const char* line_;
  int64_t row_, step_, rows_, length_, row_index_ = 0, at_ = 0;
};

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
