// Blocks over OS threads.
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "block.h"
#include "observer.h"

namespace fastconv::simt {
namespace {

// Workers, with their blocks' stacks, live as long as the process: making them costs more than a small launch.
class Pool {
 public:
  // Calls body(worker) on `count` workers, the caller being worker 0.
  void run(int count, void (*body)(int worker, void* data), void* data) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (static_cast<int>(threads_.size()) < count - 1) {
        const int worker = static_cast<int>(threads_.size()) + 1;
        threads_.emplace_back([this, worker] { work(worker); });
        threads_.back().detach();
      }
      body_ = body;
      data_ = data;
      wanted_ = count;
      busy_ = count - 1;
      ++round_;
    }
    begin_.notify_all();
    body(0, data);
    std::unique_lock<std::mutex> lock(mutex_);
    end_.wait(lock, [this] { return busy_ == 0; });
  }

 private:
  void work(int worker) {
    for (uint64_t seen = 0;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      begin_.wait(lock, [&] { return round_ != seen; });
      seen = round_;
      if (worker >= wanted_) continue;
      lock.unlock();
      body_(worker, data_);
      lock.lock();
      if (--busy_ == 0) end_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable begin_, end_;
  std::vector<std::thread> threads_;
  void (*body_)(int, void*) = nullptr;
  void* data_ = nullptr;
  int wanted_ = 0, busy_ = 0;
  uint64_t round_ = 0;
};

// A forked child has none of its parent's threads, so it makes a pool of its own. Pools are never destroyed: their
// threads wait on them until the process ends.
Pool& pool() {
  static Pool* pool = nullptr;
  static pid_t owner = 0;
  if (!pool || owner != getpid()) {
    pool = new Pool;
    owner = getpid();
  }
  return *pool;
}

Block& block_of_this_worker() {
  static thread_local std::unique_ptr<Block> block;
  if (!block) block = std::make_unique<Block>();
  return *block;
}

std::string sizes(Index3 i) {
  return std::to_string(i.x) + "x" + std::to_string(i.y) + "x" + std::to_string(i.z);
}

// The limits of every architecture since sm_75.
Status check(const Launch& l) {
  const int64_t threads = int64_t{l.block.x} * l.block.y * l.block.z;
  const std::string kernel = std::string("kernel ") + l.name + ": ";
  if (threads < 1 || threads > 1024 || l.block.x > 1024 || l.block.y > 1024 || l.block.z > 64)
    return Status::refuse(kernel + "a block of " + sizes(l.block) + " threads");
  if (l.grid.x < 1 || l.grid.y < 1 || l.grid.z < 1 || l.grid.x > 0x7fffffffu || l.grid.y > 65535 || l.grid.z > 65535)
    return Status::refuse(kernel + "a grid of " + sizes(l.grid) + " blocks");
  if (l.shared_bytes < 0 || l.shared_bytes > kMostSharedBytes)
    return Status::refuse(kernel + std::to_string(l.shared_bytes) + " bytes of shared memory");
  return {};
}

}  // namespace

Settings& settings() {
  static Settings s;
  return s;
}

Status run(const Launch& launch) {
  if (Status s = check(launch); !s) return s;
  static std::mutex one_at_a_time;
  std::lock_guard<std::mutex> lock(one_at_a_time);

  struct Shared {
    const Launch& launch;
    uint64_t blocks;
    std::atomic<uint64_t> next{0};
    std::atomic<bool> failed{false};
    std::mutex mutex;
    std::string failure;
  } shared{launch, uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z, {}, {}, {}, {}};

  int workers = settings().workers;
  if (workers < 1) workers = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
#ifdef FASTCONV_SIMT_CHECKED
  workers = 1;  // the checker's notes on global memory are not for concurrent use; races between blocks show anyhow
#endif
  if (static_cast<uint64_t>(workers) > shared.blocks) workers = static_cast<int>(shared.blocks);

  observer::launch_begins(launch);
  pool().run(
      workers,
      [](int, void* data) {
        Shared& s = *static_cast<Shared*>(data);
        Block& block = block_of_this_worker();
        const Index3 g = s.launch.grid;
        while (!s.failed.load(std::memory_order_relaxed)) {
          const uint64_t i = s.next.fetch_add(1, std::memory_order_relaxed);
          if (i >= s.blocks) return;
          const Index3 index{static_cast<unsigned>(i % g.x), static_cast<unsigned>(i / g.x % g.y),
                             static_cast<unsigned>(i / g.x / g.y)};
          if (block.run(s.launch, index)) continue;
          std::lock_guard<std::mutex> guard(s.mutex);
          if (s.failure.empty()) s.failure = block.failure;
          s.failed = true;
        }
      },
      &shared);
  observer::launch_ends();
  return shared.failed ? Status::refuse(shared.failure) : Status();
}

}  // namespace fastconv::simt
