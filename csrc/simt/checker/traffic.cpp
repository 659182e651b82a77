// Counts what predicts the speed of memory accesses: 32-byte sectors per request, cycles of shared memory's 32 banks.
//
// Lanes run one after the other here, so what a warp does at once on a GPU has to be put together again: the k-th
// execution of one instruction since the last barrier, over the lanes of a warp, is one request. That is exact as long as
// lanes take the same path; where they diverge, requests are joined that hardware would split. ldmatrix is a read of 16
// bytes by each lane that gives a row's address: the 8 rows of a matrix are then what is served at once.
#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <tuple>
#include <vector>

#include "checker.h"
#include "../observer.h"
#include "shadow.h"

namespace fastconv::simt {
namespace {

struct Entry {
  const void* instruction;
  uintptr_t address;
  int32_t bytes;
  bool shared, write;
};
using Key = std::tuple<const void*, bool, bool, int32_t>;

bool on = false;
std::vector<std::vector<Entry>> logs;  // of each thread of the block
std::map<Key, Traffic> totals;
std::map<std::string, int64_t> atom_counts;

constexpr uintptr_t kSector = 32, kBankBytes = 4, kBanks = 32;

// The distinct bytes that a request touches.
int64_t distinct_bytes(const std::vector<std::pair<uintptr_t, int>>& request) {
  std::vector<std::pair<uintptr_t, uintptr_t>> ranges;
  for (auto [address, bytes] : request) ranges.emplace_back(address, address + static_cast<uintptr_t>(bytes));
  std::sort(ranges.begin(), ranges.end());
  uintptr_t total = 0, end = 0;
  for (auto [from, to] : ranges) {
    from = std::max(from, end);
    if (to > from) total += to - from, end = to;
  }
  return static_cast<int64_t>(total);
}

int64_t sectors(const std::vector<std::pair<uintptr_t, int>>& request) {
  std::set<uintptr_t> touched;
  for (auto [address, bytes] : request)
    for (uintptr_t s = address / kSector; s <= (address + static_cast<uintptr_t>(bytes) - 1) / kSector; ++s) touched.insert(s);
  return static_cast<int64_t>(touched.size());
}

// Cycles: a bank gives one word of 4 bytes a cycle, to all who ask for that word. Accesses of 8 bytes are served half a
// warp at a time, of 16 bytes a quarter (CUDA C++ Programming Guide, compute capability 5.x on).
int64_t cycles(const std::vector<std::pair<uintptr_t, int>>& request, size_t begin, size_t end) {
  std::array<std::set<uintptr_t>, kBanks> words;
  for (size_t i = begin; i < end; ++i)
    for (uintptr_t a = request[i].first / kBankBytes; a <= (request[i].first + static_cast<uintptr_t>(request[i].second) - 1) / kBankBytes; ++a)
      words[a % kBanks].insert(a);
  size_t most = 0;
  for (const auto& bank : words) most = std::max(most, bank.size());
  return static_cast<int64_t>(most);
}

void count_request(Traffic& t, const std::vector<std::pair<uintptr_t, int>>& request) {
  ++t.requests;
  t.lanes += static_cast<int64_t>(request.size());
  const int64_t bytes = distinct_bytes(request);
  t.bytes += bytes;
  if (!t.shared) {
    t.units += sectors(request);
    t.minimum += (bytes + static_cast<int64_t>(kSector) - 1) / static_cast<int64_t>(kSector);
    return;
  }
  const size_t at_once = t.access_bytes <= 4 ? 32 : t.access_bytes <= 8 ? 16 : 8;
  for (size_t i = 0; i < request.size(); i += at_once) {
    const size_t end = std::min(request.size(), i + at_once);
    t.units += cycles(request, i, end);
    const std::vector<std::pair<uintptr_t, int>> part(request.begin() + static_cast<ptrdiff_t>(i),
                                                      request.begin() + static_cast<ptrdiff_t>(end));
    t.minimum += (distinct_bytes(part) + static_cast<int64_t>(kBankBytes * kBanks) - 1) / static_cast<int64_t>(kBankBytes * kBanks);
  }
}

}  // namespace

void count_traffic(bool start) {
  on = start;
  if (!start) return;
  totals.clear();
  atom_counts.clear();
}

std::vector<Traffic> traffic() {
  std::vector<Traffic> all;
  for (const auto& [key, t] : totals) all.push_back(t);
  return all;
}

std::vector<std::pair<std::string, int64_t>> atoms() { return {atom_counts.begin(), atom_counts.end()}; }

namespace observer {
void counted(const char* atom) {
  if (on) ++atom_counts[atom];
}
}  // namespace observer

namespace traffic_log {

bool enabled() { return on; }

void record(const Access& a, bool shared) {
  const auto thread = static_cast<size_t>(this_block->running().index);
  if (logs.size() <= thread) logs.resize(thread + 1);
  logs[thread].push_back({a.instruction, reinterpret_cast<uintptr_t>(a.address), static_cast<int32_t>(a.bytes), shared, a.write});
}

void flush(Block& block) {
  if (!on) return;
  const auto count = static_cast<size_t>(block.thread_count());
  logs.resize(std::max(logs.size(), count));
  for (size_t warp = 0; warp < count; warp += 32) {
    // (instruction, how many times the lane had been there before) -> the lanes' addresses
    std::map<Key, std::vector<std::vector<std::pair<uintptr_t, int>>>> requests;
    for (size_t t = warp; t < std::min(count, warp + 32); ++t) {
      std::map<Key, size_t> times;
      for (const Entry& e : logs[t]) {
        const Key key{e.instruction, e.shared, e.write, e.bytes};
        const size_t k = times[key]++;
        auto& list = requests[key];
        if (list.size() <= k) list.resize(k + 1);
        list[k].emplace_back(e.address, e.bytes);
      }
      logs[t].clear();
    }
    for (const auto& [key, list] : requests) {
      const auto [instruction, shared, write, bytes] = key;
      Traffic& t = totals.try_emplace(key, Traffic{instruction, shared, write, bytes}).first->second;
      for (const auto& request : list) count_request(t, request);
    }
  }
}

}  // namespace traffic_log
}  // namespace fastconv::simt
