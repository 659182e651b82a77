// The filter's transform, G g G^T for every filter and channel, into the order of use: [group][filter block][frequency]
// [channel][tile width]. n^2 / r^2 times the size of the filter (4 for F(4x4,3x3)), so writing it is
// most of the cost: transformed in pieces that stay in the second-level cache, written frequency by frequency in runs.
#include "../winograd.h"
#include "winograd_taps.h"
#include "winograd_tiles.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// Beyond this the result would not stay in the caches until it is used.
constexpr int64_t kStreamBytes = 16 << 20;

template <class F, class T>
void transform_filter(const ConvPlan& plan, const void* weight, float* packed, const Threads& threads) {
  constexpr int N = F::size, R = F::taps, L = kLanes<float>, W = kTileWidth<float>;
  const ConvProblem& p = plan.problem;
  const Gather g = gather_of(p, 0);
  const int64_t blocks = div_up(g.filters, W), pieces = div_up(g.channels, kPieceChannels);
  const bool large = plan.prepack_bytes > kStreamBytes;
  parallel_tasks(threads, p.groups * blocks * pieces, [&](int, int64_t task) {
    alignas(64) float staged[R * R * kPieceStride];
    alignas(64) float transformed[N * N * kPieceStride];
    const int64_t piece = task % pieces, block = task / pieces % blocks, group = task / pieces / blocks;
    const int64_t c0 = piece * kPieceChannels, channels = smaller(kPieceChannels, g.channels - c0);
    stage_taps<R>(FilterSource<T>(p, g, weight, group), block * W, c0, channels, kPieceStride, staged);
    transform_taps<F>(staged, channels, transformed, kPieceStride);
    float* to = packed + ((group * blocks + block) * N * N * g.channels + c0) * W;
    for (int f = 0; f < N * N; ++f) {
      const float* from = transformed + f * kPieceStride;
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
  const int64_t m = plan.detail[winograd::kOutputs];
  if (plan.problem.r == 5) {
    if (m == 4)
      transform_filter<Form<4, 5>, T>(plan, weight, packed, threads);
    else
      transform_filter<Form<2, 5>, T>(plan, weight, packed, threads);
  } else if (m == 6) {
    transform_filter<Form<6, 3>, T>(plan, weight, packed, threads);
  } else if (m == 4) {
    transform_filter<Form<4, 3>, T>(plan, weight, packed, threads);
  } else {
    transform_filter<Form<2, 3>, T>(plan, weight, packed, threads);
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
