#include "block.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>

#include "observer.h"

namespace fastconv::simt {

thread_local Self* self = nullptr;
thread_local Block* this_block = nullptr;

namespace {

constexpr int64_t kArenaBytes = kMostSharedBytes + (48 << 10);
constexpr int kPoison = 0xFF;  // NaN in every floating type

std::string line(Where where) {
  const char* slash = std::strrchr(where.file, '/');
  return std::string(slash ? slash + 1 : where.file) + ":" + std::to_string(where.line);
}

bool same(Where a, Where b) { return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0); }

std::string text(Index3 i) {
  return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
}

void thread_main() {
  arrived();
  Block& block = *this_block;
  block.launch().entry(block.launch().call);
  block.thread_ended();
}

}  // namespace

Block::Block() {
  shared_ = static_cast<unsigned char*>(std::aligned_alloc(1024, static_cast<size_t>(kArenaBytes)));
  if (!shared_) throw std::bad_alloc();
}

Block::~Block() { std::free(shared_); }

void Block::prepare(const Launch& launch, Index3 index) {
  launch_ = &launch;
  failed_ = false;
  failure.clear();
  count_ = live_ = static_cast<int>(launch.block.x * launch.block.y * launch.block.z);
  if (static_cast<int>(threads_.size()) < count_) threads_.resize(static_cast<size_t>(count_));
  stacks_.reserve(count_);
  warps_.assign(static_cast<size_t>((count_ + 31) / 32), {});
  barriers_ = {};
  statics_.clear();
  shared_used_ = (launch.shared_bytes + 15) / 16 * 16;
  std::memset(shared_, kPoison, static_cast<size_t>(shared_used_));
  ready_ = {};
  const uint64_t seed = settings().seed;
  shuffled_ = seed != 0;
  if (shuffled_) random_.seed(seed + index.x + (uint64_t{index.y} << 20) + (uint64_t{index.z} << 40));
  std::vector<int> order;
  for (int i = 0; i < count_; ++i) {
    Thread& t = threads_[static_cast<size_t>(i)];
    const unsigned u = static_cast<unsigned>(i), x = launch.block.x, y = launch.block.y;
    t.view = {{u % x, u / x % y, u / x / y}, index, launch.block, launch.grid, shared_};
    t.index = i;
    t.waits = nullptr;
    t.ended = false;
    t.group = 0;
    t.copies.clear();
    start_context(t.context, stacks_[i], Stacks::bytes(), i, thread_main);
    if (shuffled_)
      order.push_back(i);
    else
      ready_.push_back(&t);
  }
  std::shuffle(order.begin(), order.end(), random_);
  for (int i : order) ready_.push_back(&threads_[static_cast<size_t>(i)]);
}

bool Block::run(const Launch& launch, Index3 index) {
  prepare(launch, index);
  observer::block_begins(*this);
  this_block = this;
  running_ = ready_.pop();
  self = &running_->view;
  note_own_stack(outside_);
  switch_context(outside_, running_->context);
  this_block = nullptr;
  self = nullptr;
  observer::block_ends(*this);
  return !failed_;
}

// Leaves the running thread, whose state says why, for `next`.
void Block::go_on(Thread* next) {
  Thread* me = running_;
  running_ = next;
  self = &next->view;
  switch_context(me->context, next->context);
}

void Block::leave() {
  Thread* me = running_;
  switch_context(me->context, outside_);
  std::abort();  // nobody comes back to a thread that left
}

void Block::thread_ended() {
  running_->ended = true;
  running_->waits = nullptr;
  --live_;
  if (ready_.empty() && live_ > 0) deadlock();
  if (ready_.empty()) leave();
  go_on(ready_.pop());
  std::abort();
}

void Block::wait(const char* what, Where where) {
  running_->waits = what;
  running_->where = where;
  if (ready_.empty()) deadlock();
  go_on(ready_.pop());
  running_->waits = nullptr;
}

void Block::release(Barrier& barrier) {
  if (shuffled_) {
    std::vector<Thread*> threads;
    while (!barrier.waiting.empty()) threads.push_back(barrier.waiting.pop());
    barrier.waiting = {};
    std::shuffle(threads.begin(), threads.end(), random_);
    for (Thread* t : threads) barrier.waiting.push_back(t);
  }
  ready_.append(barrier.waiting);
  barrier = {};
}

void Block::sync(int id, int threads, bool wait_here, const char* name, Where where) {
  if (id < 0 || id >= kBarriers) fail("barrier " + std::to_string(id) + " does not exist: there are 16", where);
  Barrier& b = barriers_[static_cast<size_t>(id)];
  if (threads == 0) threads = count_;
  if (threads % 32 != 0 && threads != count_)
    fail("a named barrier counts whole warps, not " + std::to_string(threads) + " threads", where);
  if (b.arrived == 0) {
    b.expected = threads;
    b.where = where;
  }
  if (b.expected != threads)
    fail(std::string(name) + " for " + std::to_string(threads) + " threads, but at " + line(b.where) + " for " +
             std::to_string(b.expected),
         where);
  // All of a block meet at one line; producers and consumers of a named barrier do so at two.
  if (id == 0 && !same(b.where, where))
    fail("divergent " + std::string(name) + ": other threads wait at " + line(b.where), where);
  if (id == 0 && live_ < count_)
    fail(std::string(name) + " that " + std::to_string(count_ - live_) + " threads of the block never reach: they have ended",
         where);
  ++b.arrived;
  if (b.arrived < b.expected) {
    if (!wait_here) return observer::passed(*this, *running_, id);
    b.waiting.push_back(running_);
    return wait(name, where);
  }
#ifdef FASTCONV_SIMT_CHECKED
  std::vector<Thread*> all{running_};
  for (Queue rest = b.waiting; !rest.empty();) all.push_back(rest.pop());
  observer::met(*this, all.data(), static_cast<int>(all.size()), id);
#endif
  release(b);
}

void Block::meet(unsigned mask, const char* operation, void* mine, void (*work)(void* const*, unsigned), Where where) {
  const int lane = running_->index % 32, warp = running_->index / 32, width = std::min(32, count_ - warp * 32);
  const unsigned me = 1u << lane;
  if (width < 32) mask &= (1u << width) - 1;  // lanes beyond the block do not exist
  if (!(mask & me))
    fail(std::string(operation) + " by lane " + std::to_string(lane) + ", which its mask leaves out", where);
  Meeting* m = nullptr;
  Meeting* unused = nullptr;
  for (Meeting& each : warps_[static_cast<size_t>(warp)]) {
    if (each.mask == 0) {
      if (!unused) unused = &each;
    } else if (each.mask == mask) {
      m = &each;
    } else if (each.mask & mask) {
      fail(std::string(operation) + ": lanes of one warp call with masks that overlap but differ; others wait at " +
               line(each.where),
           where);
    }
  }
  if (!m) {
    if (!unused) fail("more than 4 groups of one warp meet at once", where);
    m = unused;
    m->mask = mask;
    m->here = 0;
    m->operation = operation;
    m->where = where;
  } else if (!same(m->where, where) || std::strcmp(m->operation, operation) != 0) {
    fail("divergent " + std::string(operation) + ": other lanes of the warp are in " + m->operation + " at " +
             line(m->where),
         where);
  }
  m->here |= me;
  m->lanes[static_cast<size_t>(lane)] = mine;
  m->threads[static_cast<size_t>(lane)] = running_;
  if (m->here != mask) return wait(operation, where);
  if (work) {
    const std::array<void*, 32> lanes = m->lanes;  // on this stack, where checked code may read
    work(lanes.data(), mask);
  } else {
#ifdef FASTCONV_SIMT_CHECKED  // of the warp's operations only __syncwarp orders memory
    std::vector<Thread*> all;
    for (int l = 0; l < 32; ++l)
      if (mask >> l & 1) all.push_back(m->threads[static_cast<size_t>(l)]);
    observer::met(*this, all.data(), static_cast<int>(all.size()), -1);
#endif
  }
  // Lanes go on before other warps: what they share is still in the first-level cache.
  for (int l = 31; l >= 0; --l) {
    Thread* t = m->threads[static_cast<size_t>(l)];
    if (mask >> l & 1 && t != running_) ready_.push_front(t);
  }
  m->mask = 0;
}

unsigned char* Block::static_memory(const void* tag, int64_t bytes, int64_t alignment) {
  for (const Static& s : statics_)
    if (s.tag == tag) return shared_ + s.offset;
  const int64_t offset = (shared_used_ + alignment - 1) / alignment * alignment;
  if (offset + bytes > kArenaBytes) fail("static shared memory beyond 48 KiB", running_->where);
  shared_used_ = (offset + bytes + 15) / 16 * 16;
  std::memset(shared_ + offset, kPoison, static_cast<size_t>(bytes));
  statics_.push_back({tag, offset});
  return shared_ + offset;
}

namespace {
void perform(Block& block, const Copy& c) {
  observer::copied(block, c);
  std::memcpy(c.shared, c.global, static_cast<size_t>(c.valid));
  std::memset(static_cast<unsigned char*>(c.shared) + c.valid, 0, static_cast<size_t>(c.bytes - c.valid));
}
}  // namespace

void Block::copy(const Copy& given) {
  Copy c = given;
  if (c.bytes != 4 && c.bytes != 8 && c.bytes != 16) fail("cp.async copies 4, 8 or 16 bytes", c.where);
  if (reinterpret_cast<uintptr_t>(c.shared) % static_cast<uintptr_t>(c.bytes) ||
      reinterpret_cast<uintptr_t>(c.global) % static_cast<uintptr_t>(c.bytes))
    fail("cp.async with an address that is not aligned to its " + std::to_string(c.bytes) + " bytes", c.where);
  c.group = running_->group;
  if (settings().eager_copies) return perform(*this, c);
  running_->copies.push_back(c);
}

void Block::complete_copies(int pending_groups) {
  std::vector<Copy>& copies = running_->copies;
  size_t done = 0;
  while (done < copies.size() && copies[done].group < running_->group - pending_groups) perform(*this, copies[done++]);
  copies.erase(copies.begin(), copies.begin() + static_cast<ptrdiff_t>(done));
}

std::string Block::who(const Thread& t) const {
  return "block " + text(t.view.block) + ", thread " + text(t.view.thread);
}

void Block::fail(const std::string& what, Where where) {
  failed_ = true;
  failure = std::string("kernel ") + launch_->name + ": " + what + " (" + (where.line ? line(where) + "; " : "") +
            who(*running_) + ")";
  leave();
}

// Threads that wait, grouped by operation and line: "96 threads in __syncthreads at direct.cuh:80, first (0,0,0)".
std::string Block::waiting_threads() const {
  std::map<std::string, std::pair<int, std::string>> groups;
  int ended = 0;
  for (int i = 0; i < count_; ++i) {
    const Thread& t = threads_[static_cast<size_t>(i)];
    ended += t.ended;
    if (!t.waits) continue;
    auto& [count, first] = groups[std::string(t.waits) + " at " + line(t.where)];
    if (count++ == 0) first = text(t.view.thread);
  }
  std::string all;
  for (const auto& [place, group] : groups)
    all += (all.empty() ? "" : ", ") + std::to_string(group.first) + (group.first == 1 ? " thread" : " threads") +
           " in " + place + " (first " + group.second + ")";
  return all + ", " + std::to_string(ended) + " ended";
}

void Block::deadlock() { fail("deadlock: no thread can go on: " + waiting_threads(), {"", 0}); }

// --- what device.h declares --------------------------------------------------------------------------------------------

void sync_block(Where where) { this_block->sync(0, 0, true, "__syncthreads", where); }

void sync_named(int barrier, int threads, bool wait, Where where) {
  this_block->sync(barrier, threads, wait, wait ? "named barrier" : "arrival at a named barrier", where);
}

void sync_warp(unsigned mask, Where where) { this_block->meet(mask, "__syncwarp", nullptr, nullptr, where); }

void meet_warp(unsigned mask, const char* operation, void* mine, void (*work)(void* const*, unsigned), Where where) {
  this_block->meet(mask, operation, mine, work, where);
}

void fail(const char* what, Where where) { this_block->fail(what, where); }

unsigned char* static_shared_memory(const void* tag, int64_t bytes, int64_t alignment) {
  return this_block->static_memory(tag, bytes, alignment);
}

void copy_async(void* shared, const void* global, int bytes, int valid, Where where) {
  this_block->copy({shared, global, bytes, valid, 0, where});
}

void read_row(void* to, const void* shared) {
  observer::read(shared, 16, __builtin_return_address(0));
  std::memcpy(to, shared, 16);
}

void copy_async_commit() { ++this_block->running().group; }
void copy_async_wait(int pending_groups) { this_block->complete_copies(pending_groups); }
void count(const char* atom) { observer::counted(atom); }

}  // namespace fastconv::simt
