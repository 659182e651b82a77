#include "selector.h"

#include <atomic>
#include <cstdio>
#include <memory>
#include <utility>

namespace fastconv {
namespace {

template <class Problem>
bool wants_determinism(const Problem&) {
  return false;  // pools have deterministic rows only
}
bool wants_determinism(const ConvProblem& p) { return p.deterministic; }

bool takes_max_pool(const PoolRow&, const PoolProblem&) { return true; }
bool takes_max_pool(const ConvRow& row, const ConvProblem& p) { return row.max_pools || !p.max_pool; }

// The operators know the results of such problems, which have no elements or are zero, without a row.
bool has_nothing_to_sum(const PoolProblem&) { return false; }
bool has_nothing_to_sum(const ConvProblem& p) { return p.c == 0 || p.k == 0; }

template <class Row, class Problem>
Status answer(const Row& row, const Problem& p, Device device) {
  if (row.device != device) return Status::refuse(std::string("runs on ") + name(row.device) + " only");
  if (!(row.passes & bit(p.pass))) return Status::refuse(std::string("does not do ") + name(p.pass));
  if (!(row.dtypes & bit(p.dtype))) return Status::refuse(std::string("does not take ") + name(p.dtype));
  if (!takes_max_pool(row, p)) return Status::refuse("does no max-pool after the convolution");
  if (wants_determinism(p) && !row.deterministic) return Status::refuse("is not deterministic");
  if (has_nothing_to_sum(p)) return Status::refuse("no channels or no filters: there is nothing to compute");
  return row.supports(p);
}

const std::vector<ConvRow>& rows_of(const ConvProblem&) { return conv_rows(); }
const std::vector<PoolRow>& rows_of(const PoolProblem&) { return pool_rows(); }

// Without the problem's text, which only a sound problem has: its output sizes are divided by the strides.
template <class Problem>
void require_sound(const Problem& problem) {
  if (const Status status = check(problem); !status) throw Refusal{"fastconv: bad problem: " + status.reason()};
}

constexpr int kAuto = -1;

// The index of the first row of that name, which stands for the name: a name may have a row for each device.
template <class Rows>
int index_of(const Rows& rows, std::string_view forced) {
  if (forced == "auto") return kAuto;
  for (size_t i = 0; i < rows.size(); ++i)
    if (forced == rows[i].name) return static_cast<int>(i);
  std::string message = "fastconv: unknown algorithm '" + std::string(forced) + "'; known are: auto";
  for (size_t i = 0; i < rows.size(); ++i)
    if (index_of(rows, rows[i].name) == static_cast<int>(i)) message += std::string(", ") + rows[i].name;
  throw Refusal{message};
}

// What select() and explain() share: every row's answer, and the plan of the chosen one.
template <class Problem, class Row>
struct Choice {
  struct Answer {
    Status status;
    PlanOf<Problem, Row> plan;
  };
  std::vector<Answer> answers;  // one for each row
  int chosen = -1;
  bool forced = false;  // false too if the forced algorithm does not list the pass
};

template <class Row, class Problem>
Choice<Problem, Row> choose(const std::vector<Row>& rows, const Problem& problem, Device device, int threads,
                            int forced) {
  Choice<Problem, Row> choice;
  const auto is_forced = [&](const Row& row) {
    return forced != kAuto && std::string_view(row.name) == rows[forced].name;
  };
  // Forcing binds for the passes that the algorithm lists, and everywhere on a device that it does not exist for: what
  // was asked for must not be replaced quietly.
  bool here = false, listed = false;
  for (const Row& row : rows) {
    if (!is_forced(row) || row.device != device) continue;
    here = true;
    listed = listed || (row.passes & bit(problem.pass));
  }
  choice.forced = forced != kAuto && (listed || !here);
  for (const Row& row : rows) {
    choice.answers.emplace_back();
    auto& [status, plan] = choice.answers.back();
    status = supports(row, problem, device);
    if (!status) continue;
    plan.problem = problem;
    plan.row = &row;
    plan.threads = threads;
    row.plan(problem, threads, plan);
    const bool eligible = !choice.forced || is_forced(row);
    if (eligible && (choice.chosen < 0 || plan.cost < choice.answers[choice.chosen].plan.cost))
      choice.chosen = static_cast<int>(&row - rows.data());
  }
  return choice;
}

// Rows of the emulator are listed to those who asked for it, and to them no others.
bool listed(Device row, Device asked) { return (row == Device::simulated) == (asked == Device::simulated); }

template <class Problem, class Row>
[[noreturn]] void refuse(const std::vector<Row>& rows, const Problem& problem, Device device, int forced,
                         const Choice<Problem, Row>& choice) {
  bool forced_listed = forced == kAuto;
  std::string message = "fastconv: no algorithm for " + text(problem);
  const char* separator = ": ";
  for (size_t i = 0; i < rows.size(); ++i) {
    if (!listed(rows[i].device, device)) continue;
    const Status& status = choice.answers[i].status;
    forced_listed = forced_listed || std::string_view(rows[i].name) == rows[forced].name;
    message += std::string(std::exchange(separator, "; ")) + rows[i].name + " (" + name(rows[i].device) +
               "): " + (status ? "supports it, but another algorithm is forced" : status.reason());
  }
  if (!forced_listed) message += std::string("; ") + rows[forced].name + ": does not exist for " + name(device);
  throw Refusal{message};
}

std::atomic<uint32_t> generation{0};

// The plans a thread used last: a direct-mapped table, so that a hit is one hash and one comparison of bytes, and its
// size is bounded (256 plans, 110 KB, made at a thread's first selection). A hit takes 55 to 70 ns on an AMD EPYC, the
// forced name included; `_C.selection_seconds` measures it.
template <class Problem, class Row>
class PlanCache {
 public:
  struct Entry {
    PlanOf<Problem, Row> plan;
    Device device = Device::cpu;
    int threads = 0;  // as asked for; a plan may use fewer
    int forced = kAuto;
    uint32_t generation = 0;
    bool known = false;  // also that no row runs the problem: then the plan has none
  };

  static Entry& slot(const Problem& problem) {
    thread_local std::unique_ptr<Entry[]> entries;
    if (!entries) entries.reset(new Entry[kEntries]);
    return entries[hash(problem) >> (64 - kLog2Entries)];
  }

 private:
  static constexpr int kLog2Entries = 8;
  static constexpr int kEntries = 1 << kLog2Entries;

  // Multiply-and-add over the words in four independent chains, which a CPU overlaps. Device, threads and the forced
  // row hardly vary in one process, so they are compared but not hashed.
  static uint64_t hash(const Problem& problem) {
    constexpr size_t kWords = sizeof(Problem) / 8;
    static_assert(sizeof(Problem) % 8 == 0);
    uint64_t words[(kWords + 3) / 4 * 4] = {};
    std::memcpy(words, &problem, sizeof problem);
    uint64_t h[4] = {1, 2, 3, 4};
    for (size_t i = 0; i < kWords; i += 4)
      for (size_t lane = 0; lane < 4; ++lane) h[lane] = (h[lane] + words[i + lane]) * 0x9e3779b97f4a7c15u;
    // The product carries differences only upwards; the rotations bring them to where the next product spreads them.
    const auto rotate = [](uint64_t v) { return v << 32 | v >> 32; };
    uint64_t all = 0;
    for (uint64_t lane : h) all = (rotate(all) ^ rotate(lane)) * 0xd6e8feb86659fd93u;
    return rotate(all) * 0x9e3779b97f4a7c15u;
  }
};

// The plan of the chosen row; null if there is none.
template <class Row, class Problem>
const PlanOf<Problem, Row>* find(const std::vector<Row>& rows, const Problem& problem, Device device, int threads,
                                   std::string_view name_forced) {
  const int forced = index_of(rows, name_forced);
  const uint32_t now = generation.load(std::memory_order_acquire);
  auto& entry = PlanCache<Problem, Row>::slot(problem);
  if (entry.known && entry.plan.problem == problem && entry.device == device && entry.threads == threads &&
      entry.forced == forced && entry.generation == now)
    return entry.plan.row ? &entry.plan : nullptr;
  require_sound(problem);
  const auto choice = choose(rows, problem, device, threads, forced);
  entry.plan = choice.chosen < 0 ? PlanOf<Problem, Row>{problem} : choice.answers[choice.chosen].plan;
  entry.known = true;
  entry.device = device;
  entry.threads = threads;
  entry.forced = forced;
  entry.generation = now;
  return entry.plan.row ? &entry.plan : nullptr;
}

template <class Row, class Problem>
const PlanOf<Problem, Row>& found(const std::vector<Row>& rows, const Problem& problem, Device device, int threads,
                                  std::string_view name_forced) {
  if (const auto* plan = find(rows, problem, device, threads, name_forced)) return *plan;
  const int forced = index_of(rows, name_forced);
  refuse(rows, problem, device, forced, choose(rows, problem, device, threads, forced));
}

std::string seconds(double s) {
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, "%.3g ms", s * 1e3);
  return buffer;
}

template <class Row, class Problem>
std::vector<Candidate> candidates(const std::vector<Row>& rows, const Problem& problem, Device device, int threads,
                                  std::string_view name_forced) {
  const int forced = index_of(rows, name_forced);
  require_sound(problem);
  const auto choice = choose(rows, problem, device, threads, forced);
  std::vector<Candidate> list;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (!listed(rows[i].device, device)) continue;
    const auto& [status, plan] = choice.answers[i];
    Candidate c;
    c.name = rows[i].name;
    c.device = rows[i].device;
    c.ok = status.ok();
    c.chosen = static_cast<int>(i) == choice.chosen;
    c.cost = plan.cost;
    c.workspace_bytes = plan.workspace_bytes;
    c.prepack_bytes = plan.prepack_bytes;
    c.executed_macs = plan.executed_macs;
    if (!status)
      c.reason = status.reason();
    else if (c.chosen && choice.forced)
      c.reason = "forced";
    else if (c.chosen)
      c.reason = "the cheapest, predicted " + seconds(plan.cost) +
                 (forced == kAuto ? "" : " (" + std::string(name_forced) + " does not do " + name(problem.pass) + ")");
    else if (choice.forced)
      c.reason = std::string(name_forced) + " is forced";
    else
      c.reason = "predicted " + seconds(plan.cost) + ", the chosen one " +
                 seconds(choice.answers[choice.chosen].plan.cost);
    if (status.ok() && plan.variant) c.reason = std::string(plan.variant) + ", " + c.reason;
    list.push_back(std::move(c));
  }
  return list;
}

}  // namespace

const char* name(Device d) {
  switch (d) {
    case Device::cpu: return "cpu";
    case Device::cuda: return "cuda";
    case Device::simulated: return "simulated";
  }
  return "?";
}

Status supports(const ConvRow& row, const ConvProblem& p, Device device) { return answer(row, p, device); }
Status supports(const PoolRow& row, const PoolProblem& p, Device device) { return answer(row, p, device); }

const ConvPlan& select(const ConvProblem& problem, Device device, int threads, std::string_view forced) {
  return found(rows_of(problem), problem, device, threads, forced);
}

const PoolPlan& select(const PoolProblem& problem, Device device, int threads) {
  return found(rows_of(problem), problem, device, threads, "auto");
}

bool fuses_max_pool(const ConvProblem& problem, Device device, int threads, std::string_view forced) {
  try {
    const ConvPlan* fused = find(conv_rows(), problem, device, threads, forced);
    if (!fused) return false;
    const double cost = fused->cost;
    const auto [convolution, pool] = apart(problem);
    return cost <= select(convolution, device, threads, forced).cost + select(pool, device, threads).cost;
  } catch (const Refusal&) {  // the two kernels say why
    return false;
  }
}

std::vector<Candidate> explain(const ConvProblem& problem, Device device, int threads, std::string_view forced) {
  return candidates(rows_of(problem), problem, device, threads, forced);
}

std::vector<Candidate> explain(const PoolProblem& problem, Device device, int threads) {
  return candidates(rows_of(problem), problem, device, threads, "auto");
}

void forget_plans() { generation.fetch_add(1, std::memory_order_acq_rel); }

}  // namespace fastconv
