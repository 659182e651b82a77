// The selector over a table of made-up rows: what the real table cannot show yet, such as a row that refuses a pass it
// lists. Prints "case = outcome" lines; test_selector.py compiles and reads it.
#include <cstdio>
#include <cstdlib>
#include <new>
#include <string>

#include "../../csrc/core/selector.h"

static long allocations = 0;
void* operator new(std::size_t bytes) {
  ++allocations;
  if (void* p = std::malloc(bytes)) return p;
  throw std::bad_alloc();
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }

namespace fastconv {
namespace {

long plans_made = 0;

template <int cost>
void plan(const ConvProblem&, int threads, ConvPlan& plan) {
  ++plans_made;
  plan.cost = cost;
  plan.threads = threads > 2 ? 2 : threads;  // a row may use fewer threads than offered
}
Status any(const ConvProblem&) { return {}; }
Status only_3x3(const ConvProblem& p) { return p.r == 3 && p.s == 3 ? Status() : Status::refuse("only 3 x 3 filters"); }
Status never(const ConvProblem&) { return Status::refuse("never ready"); }

constexpr Mask forward = bit(Pass::forward), grad_input = bit(Pass::grad_input), grad_weight = bit(Pass::grad_weight);
constexpr Mask f32 = bit(DType::f32), f64 = bit(DType::f64);

ConvRow row(const char* name, Device device, Mask passes, Mask dtypes, bool deterministic,
            Status (*supports)(const ConvProblem&), void (*plan)(const ConvProblem&, int, ConvPlan&)) {
  ConvRow r{};
  r.name = name;
  r.device = device;
  r.passes = passes;
  r.dtypes = dtypes;
  r.min_arch = "any";
  r.deterministic = deterministic;
  r.supports = supports;
  r.plan = plan;
  return r;
}

}  // namespace

const std::vector<ConvRow>& conv_rows() {
  static const std::vector<ConvRow> rows = {
      row("plain", Device::cpu, forward | grad_input | grad_weight, f32 | f64, true, any, plan<3>),
      row("quick", Device::cpu, forward, f32, false, only_3x3, plan<1>),
      row("broken", Device::cpu, grad_weight, f32, true, never, plan<0>),
      row("far", Device::cuda, forward, f32, true, any, plan<2>),
      row("plain", Device::cuda, forward | grad_input, f32, true, any, plan<4>),
  };
  return rows;
}
const std::vector<PoolRow>& pool_rows() {
  static const std::vector<PoolRow> rows;
  return rows;
}

namespace {

const char kThree[] = "conv n1c2h8w8 k2r3s3 st1 pd1 dl1 g1 f32 nchw ";

void show(const char* what, const std::string& problem, const char* forced = "auto", Device device = Device::cpu) {
  try {
    const ConvPlan& plan = select(parse_conv(problem), device, 1, forced);
    std::printf("%s = %s (%s)\n", what, plan.row->name, name(plan.row->device));
  } catch (const Refusal& refusal) {
    std::printf("%s = %s\n", what, refusal.message.c_str());
  }
}

// How many plans select() makes: none if the plan is cached.
long made(const ConvProblem& p, Device device, int threads, const char* forced) {
  const long before = plans_made;
  select(p, device, threads, forced);
  return plans_made - before;
}

void show_reasons(const char* what, const std::string& problem, const char* forced) {
  std::printf("%s =", what);
  for (const Candidate& c : explain(parse_conv(problem), Device::cpu, 1, forced))
    std::printf(" %s%s: %s;", c.chosen ? "*" : "", c.name.c_str(), c.reason.c_str());
  std::printf("\n");
}

int run() {
  const std::string three = kThree, one = "conv n1c2h8w8 k2r1s1 st1 pd0 dl1 g1 f32 nchw ";
  show("cheapest", three + "fwd");
  show("cheapest that supports it", one + "fwd");
  show("cheapest deterministic", three + "fwd det");
  show("cheapest on cuda", three + "fwd", "auto", Device::cuda);
  show("forced", three + "fwd", "plain");
  show("forced on cuda", three + "fwd", "plain", Device::cuda);
  show("forced, pass not listed", three + "grad_input", "quick");
  show("forced, pass not listed on this device", three + "grad_weight", "plain", Device::cuda);
  show("forced, refuses", one + "fwd", "quick");
  show("forced, lists the pass and refuses", three + "grad_weight", "broken");
  show("forced, not on this device", three + "fwd", "far");
  show("forced, not deterministic", three + "fwd det", "quick");
  show("none", "conv n1c2h8w8 k2r1s1 st1 pd0 dl1 g1 bf16 nchw fwd");
  show("unknown", three + "fwd", "nosuch");
  show_reasons("reasons", three + "fwd", "auto");
  show_reasons("reasons when forced", three + "fwd", "plain");
  show_reasons("reasons when forced in vain", three + "grad_input", "quick");
  show_reasons("reasons when the forced one refuses", one + "fwd", "quick");

  const ConvProblem p = parse_conv("conv n5c2h8w8 k2r3s3 st1 pd1 dl1 g1 f32 nchw fwd");
  std::printf("plans: first = %ld\n", made(p, Device::cpu, 8, "auto"));
  std::printf("plans: again = %ld\n", made(p, Device::cpu, 8, "auto"));
  std::printf("plans: other threads = %ld\n", made(p, Device::cpu, 4, "auto"));
  std::printf("plans: other algorithm = %ld\n", made(p, Device::cpu, 4, "plain"));
  std::printf("plans: other device = %ld\n", made(p, Device::cuda, 4, "plain"));
  std::printf("plans: other device again = %ld\n", made(p, Device::cuda, 4, "plain"));
  forget_plans();
  std::printf("plans: forgotten = %ld\n", made(p, Device::cuda, 4, "plain"));

  const long before = allocations;
  for (int i = 0; i < 1000; ++i) select(p, Device::cuda, 4, "plain");
  std::printf("allocations in 1000 hits = %ld\n", allocations - before);

  // More problems than the cache holds, differing by little: every plan is still the right one's.
  long wrong = 0, hits = 0;
  for (int round = 0; round < 2; ++round)
    for (int n = 1; n <= 512; ++n) {
      ConvProblem q = p;
      q.n = n;
      q.set_layout(Layout::nchw);
      wrong += !(select(q, Device::cpu, 1, "auto").problem == q);
      hits += made(q, Device::cpu, 1, "auto") == 0;
    }
  std::printf("wrong plans of 1024 = %ld\n", wrong);
  std::printf("hits of 1024 right after = %ld\n", hits);

  // A network has perhaps 64 problems, three passes each: collisions must be few.
  std::vector<ConvProblem> network;
  for (int i = 0; i < 64; ++i) {
    ConvProblem q = p;
    q.c = 16 << (i % 4);
    q.k = 16 << (i / 4 % 4);
    q.h = q.w = 56 >> (i / 16);
    q.set_layout(i % 2 ? Layout::nhwc : Layout::nchw);
    network.push_back(q);
  }
  hits = 0;
  for (int round = 0; round < 2; ++round)
    for (const ConvProblem& q : network) hits += made(q, Device::cpu, 1, "auto") == 0 && round == 1;
  std::printf("most of 64 cached = %s\n", hits >= 40 ? "yes" : ("no, " + std::to_string(hits)).c_str());

  ConvProblem bad = p;
  bad.stride_h = 0;
  try {
    select(bad, Device::cpu, 1, "auto");
    std::printf("bad problem = accepted\n");
  } catch (const Refusal& refusal) {
    std::printf("bad problem = %s\n", refusal.message.c_str());
  }
  return 0;
}

}  // namespace
}  // namespace fastconv

int main() { return fastconv::run(); }
