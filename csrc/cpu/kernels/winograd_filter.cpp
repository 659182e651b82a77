// The filter's transform, G g G^T for every filter and channel, into the order of use: [group][filter block][frequency]
// [channel][tile width]. n^2 / r^2 times the size of the filter (4 for F(4x4,3x3)), so writing it is
// most of the cost: transformed in pieces that stay in the second-level cache, written frequency by frequency in runs.
#include "../gather.h"
#include "../winograd.h"
#include "pack.h"
#include "tile.h"
#include "winograd_lanes.h"
#include "winograd_tiles.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

constexpr int64_t kPieceChannels = 16;
// Beyond this the result would not stay in the caches until it is used.
constexpr int64_t kStreamBytes = 16 << 20;

// Taps of `filters` filters and `channels` channels -> [tap][channel][tile width]. flip: taps in reverse order.
template <class T>
void stage_taps(const T* src, int64_t filter_stride, int64_t channel_stride, int64_t row_stride, int64_t col_stride,
                int64_t taps_side, bool flip, int64_t filters, int64_t channels, float* dst) {
  constexpr int W = kTileWidth<float>;
  const int64_t taps = taps_side * taps_side;
  const auto slot = [&](int64_t t) { return flip ? taps - 1 - t : t; };
  const bool taps_dense = col_stride == 1 && row_stride == taps_side;
  if (filters < W) zero(dst, taps * kPieceChannels * W);
  if (taps_dense && channel_stride == taps) {
    pack(Reader<T>{src, filter_stride, 1}, filters, channels * taps,
         [&](int64_t j) { return dst + (slot(j % taps) * kPieceChannels + j / taps) * W; });
  } else {
    for (int64_t t = 0; t < taps; ++t)
      pack(Reader<T>{src + t / taps_side * row_stride + t % taps_side * col_stride, filter_stride, channel_stride},
           filters, channels, [&](int64_t c) { return dst + (slot(t) * kPieceChannels + c) * W; });
  }
}

template <class F, class T>
void transform_filter(const ConvPlan& plan, const T* weight, float* packed, const Threads& threads) {
  constexpr int N = F::size, R = F::taps, L = kLanes<float>, W = kTileWidth<float>;
  const ConvProblem& p = plan.problem;
  const Gather g = gather_of(p, 0);
  const Strides4& ws = p.weight_strides;
  const int64_t blocks = div_up(g.filters, W), pieces = div_up(g.channels, kPieceChannels);
  const bool large = plan.prepack_bytes > kStreamBytes;
  parallel_tasks(threads, p.groups * blocks * pieces, [&](int, int64_t task) {
    constexpr int64_t kPiece = kPieceChannels * W, kStride = kPiece + 16;
    alignas(64) float staged[R * R * kPiece];
    alignas(64) float transformed[N * N * kStride];
    const int64_t piece = task % pieces, block = task / pieces % blocks, group = task / pieces / blocks;
    const int64_t c0 = piece * kPieceChannels, channels = smaller(kPieceChannels, g.channels - c0);
    const int64_t filters = smaller(W, g.filters - block * W);
    stage_taps(weight + group * p.group_k() * ws[0] + block * W * g.filter_stride + c0 * g.channel_stride,
               g.filter_stride, g.channel_stride, ws[2], ws[3], R, g.rows.tap_step < 0, filters, channels, staged);
    for (int64_t i = 0; i < channels * W; i += L) {
      Lanes half[R][N];
#pragma GCC unroll 8
      for (int s = 0; s < R; ++s) {
        Lanes column[R];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) column[r] = load(staged + (r * R + s) * kPiece + i);
        analyse<typename F::G>(column, half[s]);
      }
#pragma GCC unroll 8
      for (int r = 0; r < N; ++r) {
        Lanes row[R], out[N];
#pragma GCC unroll 8
        for (int s = 0; s < R; ++s) row[s] = half[s][r];
        analyse<typename F::G>(row, out);
#pragma GCC unroll 8
        for (int s = 0; s < N; ++s) store(transformed + (r * N + s) * kStride + i, out[s]);
      }
    }
    float* to = packed + ((group * blocks + block) * N * N * g.channels + c0) * W;
    for (int f = 0; f < N * N; ++f) {
      const float* from = transformed + f * kStride;
      float* at = to + f * g.channels * W;
      if (large)
        for (int64_t i = 0; i < channels * W; i += L) store_stream(at + i, load(from + i));
      else
        for (int64_t i = 0; i < channels * W; i += L) store(at + i, load(from + i));
    }
    if (large) stream_end();
  });
}

template <class T>
void transform(const ConvPlan& plan, const void* weight, float* packed, const Threads& threads) {
  const T* w = static_cast<const T*>(weight);
  const int64_t m = plan.detail[winograd::kOutputs];
  if (plan.problem.r == 5) {
    if (m == 4)
      transform_filter<Form<4, 5>>(plan, w, packed, threads);
    else
      transform_filter<Form<2, 5>>(plan, w, packed, threads);
  } else if (m == 6) {
    transform_filter<Form<6, 3>>(plan, w, packed, threads);
  } else if (m == 4) {
    transform_filter<Form<4, 3>>(plan, w, packed, threads);
  } else {
    transform_filter<Form<2, 3>>(plan, w, packed, threads);
  }
}

}  // namespace

void winograd_filter(const ConvPlan& plan, const void* weight, void* packed, const Threads& threads) {
  float* to = static_cast<float*>(packed);
  switch (plan.problem.dtype) {
    case DType::f16: return transform<f16>(plan, weight, to, threads);
    case DType::bf16: return transform<bf16>(plan, weight, to, threads);
    default: return transform<float>(plan, weight, to, threads);
  }
}

}  // namespace fastconv::cpu::FASTCONV_ISA
