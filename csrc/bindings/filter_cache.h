// Transformed filters kept between calls.
//
// A filter is recognised by a 128-bit hash of its contents, taken at every call, because nothing else sees every way
// of changing one (version counters miss fused optimizers, `.data` and numpy writes; inference tensors have none).
// Freezing a weight promises that it stays as it is and skips the hash. A filter is kept from its second sight on, so
// a training loop, whose weights never come twice, fills no memory.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "../core/table.h"

namespace fastconv::bindings {

// The transformed filter of `weight` for this plan, or null if it is not kept (yet): then run() makes its own.
std::shared_ptr<const void> kept_filter(const ConvPlan&, const ConvOperands&, const at::Tensor& weight,
                                        const Execution&);

void freeze_weight(const at::Tensor& weight, bool frozen);

struct FilterCacheStatistics {
  int64_t filters = 0, bytes = 0, hits = 0, misses = 0, limit_bytes = 0;
};
FilterCacheStatistics filter_cache_statistics();
// Also what FASTCONV_FILTER_CACHE_MB sets at start; 0 keeps nothing.
void set_filter_cache_limit(int64_t bytes);
void clear_filter_cache();

}  // namespace fastconv::bindings
