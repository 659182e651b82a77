// The cost model that all CPU rows share. It only has to order rows on one machine, so it knows round figures: 2.5 GHz,
// 10 GB/s for moving data about, 5 us to wake the other threads; and how many multiply-adds a core starts per cycle.
#pragma once

#include <algorithm>
#include <cstdint>

#include "processor.h"

namespace fastconv::cpu::cost {

constexpr double kCyclesPerSecond = 2.5e9;
constexpr double kBytesPerSecond = 10e9;
constexpr double kLaunchSeconds = 5e-6;

// `efficiency`: the part of the multiply-add rate that the row's inner loop reaches on a large problem.
inline double seconds(int64_t macs, int64_t lanes, double efficiency, int threads, int64_t moved_bytes) {
  const double rate = kCyclesPerSecond * processor().multiply_adds * static_cast<double>(lanes) * efficiency;
  const double compute = static_cast<double>(macs) / rate;
  const double move = static_cast<double>(moved_bytes) / kBytesPerSecond;
  return (compute + move) / threads + (threads > 1 ? kLaunchSeconds : 0);
}

// Below this a second thread costs more than it saves: 200k multiply-adds are about 5 us of one core.
inline int useful_threads(int64_t macs, int threads) {
  return static_cast<int>(std::clamp<int64_t>(macs / 200000, 1, threads));
}

}  // namespace fastconv::cpu::cost
