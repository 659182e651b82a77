// How many vector multiply-adds this core starts per cycle, without knowing its clock: a chain in which each waits for the
// one before it takes the latency L (4 cycles on all recent cores, 5 on Haswell) per step, and twelve chains at once
// take max(L, 12 / rate). So the quotient of their times is 3 (2.4) for a rate of 1, and 1.5 (1.2) for a rate of 2.
#include "../processor.h"

#include <chrono>

#include "numeric.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

template <int Chains>
double seconds_of_chains(float start) {
  using Clock = std::chrono::steady_clock;
  Vec<float> sum[Chains];
#pragma GCC unroll 12
  for (int i = 0; i < Chains; ++i) sum[i] = Vec<float>{} + (start + static_cast<float>(i));
  const Vec<float> factor = Vec<float>{} + 0.5f;
  const auto begin = Clock::now();
#pragma GCC unroll 1
  for (int step = 0; step < 2000; ++step)
#pragma GCC unroll 12
    for (int i = 0; i < Chains; ++i) sum[i] = sum[i] * factor + factor;
  const std::chrono::duration<double> took = Clock::now() - begin;
  Vec<float> total{};
#pragma GCC unroll 12
  for (int i = 0; i < Chains; ++i) total += sum[i];
  return total[0] < 0 ? 0 : took.count();  // never: but the sums must be wanted
}

}  // namespace

double multiply_add_quotient() {
  double one = 1, many = 1;
  for (int round = 0; round < 8; ++round) {  // the least of each: interruptions only lengthen, and clocks rise at first
    const double a = seconds_of_chains<1>(0.0f), b = seconds_of_chains<12>(0.0f);
    one = a < one ? a : one;
    many = b < many ? b : many;
  }
  return many / one;
}

}  // namespace fastconv::cpu::FASTCONV_ISA
