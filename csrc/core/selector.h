// Which row runs a problem: the forced one, else the cheapest that supports it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "table.h"

namespace fastconv {

// Thrown when no row can run a problem; the text lists the reason of every row.
struct Refusal {
  std::string message;
};

// `forced` is "auto" or a row's name. A forced row that does not list the problem's pass leaves the choice to the
// cost model; one that lists it and refuses throws Refusal. Plans are cached per thread; a hit compares bytes only.
const ConvPlan& select(const ConvProblem&, Device, int threads, std::string_view forced);
const PoolPlan& select(const PoolProblem&, Device, int threads);
// The plan stays valid until the same thread selects again; a kernel that is run with it never selects.

// Whether a convolution with a fused max-pool is worth it: a row takes it and predicts no more time than the two kernels
// of apart() do. Three selections at most.
bool fuses_max_pool(const ConvProblem&, Device, int threads, std::string_view forced);

// Drops every thread's plans: what rows plan depends on the ISA in use.
void forget_plans();

// One line per row of the table, for explain().
struct Candidate {
  std::string name;
  Device device;
  bool ok = false;
  std::string reason;  // why not, or why chosen
  double cost = 0;
  int64_t workspace_bytes = 0;
  int64_t prepack_bytes = 0;
  int64_t executed_macs = 0;
  bool chosen = false;
};
std::vector<Candidate> explain(const ConvProblem&, Device, int threads, std::string_view forced);
std::vector<Candidate> explain(const PoolProblem&, Device, int threads);

}  // namespace fastconv
