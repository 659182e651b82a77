// The emulator under AddressSanitizer and UndefinedBehaviorSanitizer: runs "row problem" lines from standard input, each on
// operands of exactly their size. Finds what the checker does not: misaligned wide accesses, overflow of signed indices,
// shifts too far, and errors of the emulator itself.
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "core/operands.h"
#include "cuda/rows.h"

namespace {

using namespace fastconv;
using namespace fastconv::simulated;

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Memory = std::unique_ptr<void, Free>;

// Zeros: every value is sound in every type, and an offset of zero names a window's first element.
Memory zeros(int64_t bytes) { return Memory(std::calloc(static_cast<size_t>(bytes ? bytes : 1), 1)); }

template <class Plan, class Problem, class Operands>
bool run(const Problem& p, Operands o, Status (*supports)(const Problem&), void (*plan_for)(const Problem&, int, Plan&),
         Status (*run_plan)(const Plan&, const Operands&, void*, const Execution&)) {
  if (const Status s = supports(p); !s) {
    std::printf("refused: %s\n", s.reason().c_str());
    return true;
  }
  std::vector<Memory> memory;
  char present = 0;
  o.x = o.y = &present;
  if constexpr (std::is_same_v<Problem, ConvProblem>) {
    o.weight = &present;
    if (p.has_aux()) o.aux = &present;
    if (p.bias && p.pass != Pass::grad_weight) o.bias = &present;
    if (p.bias && p.pass == Pass::grad_weight) o.grad_bias = &present;
  } else {
    if (p.offset_bytes) o.offsets = &present;
    if (p.kind == PoolKind::lp && p.pass == Pass::grad_input) o.input = o.output = &present;
  }
  visit_operands(p, o, [&](const char*, auto*& data, int64_t bytes, int64_t, bool) {
    memory.push_back(zeros(bytes));
    data = memory.back().get();
  });
  Plan plan;
  plan.problem = p;
  plan_for(p, 1, plan);
  const Memory workspace(std::aligned_alloc(64, static_cast<size_t>((plan.workspace_bytes + 63) / 64 * 64 + 64)));
  const Status s = run_plan(plan, o, workspace.get(), {});
  std::printf("%s\n", s ? "ok" : s.reason().c_str());
  return s.ok();
}

bool run_line(const std::string& row, const std::string& text) {
#define FASTCONV_CONV_ROW(...)
#define FASTCONV_POOL_ROW(...)
#define FASTCONV_GPU_CONV_ROW(name, passes, dtypes, min_arch, summary, source, entry) \
  if (row == #name)                                                                   \
    return run<ConvPlan>(parse_conv(text), ConvOperands{}, entry##_supports, entry##_plan, entry##_run);
#define FASTCONV_GPU_POOL_ROW(name, passes, dtypes, min_arch, summary, source, entry) \
  if (row == #name)                                                                   \
    return run<PoolPlan>(parse_pool(text), PoolOperands{}, entry##_supports, entry##_plan, entry##_run);
#include "core/algorithms.inc"
  std::printf("no such row: %s\n", row.c_str());
  return false;
}

}  // namespace

int main() {
  bool all = true;
  for (std::string line; std::getline(std::cin, line);) {
    const size_t space = line.find(' ');
    all = run_line(line.substr(0, space), line.substr(space + 1)) && all;
  }
  return all ? 0 : 1;
}
