// The packed filter of im2col: [group][block of tile width][tap][channel][tile width].
#include "../../core/div_up.h"
#include "../im2col.h"
#include "filter_pack.h"

namespace fastconv::cpu::FASTCONV_ISA {

void im2col_pack_filter(const ConvPlan& plan, const void* weight, void* packed, const Threads& available) {
  const ConvProblem& p = plan.problem;
  Threads threads = available;
  if (threads.count > plan.threads) threads.count = plan.threads;
  with_dtype(p.dtype, [&](auto v) {
    using T = decltype(v);
    constexpr int W = kTileWidth<Compute<T>>;
    const Gather g = gather_of(p, 0);
    const int64_t blocks = div_up(g.filters, W);
    parallel_tasks(threads, p.groups * blocks, [&](int, int64_t task) {
      pack_filter(FilterSource<T>(p, g, weight, task / blocks), task % blocks * W, 0, g.channels, g.channels,
                  static_cast<Compute<T>*>(packed) + task * p.r * p.s * g.channels * W);
    });
  });
}

}  // namespace fastconv::cpu::FASTCONV_ISA
