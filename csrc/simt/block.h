// One block of a grid: its threads as flows on stacks of their own, taken in turn by one OS thread.
//
// A thread runs until it has to wait (barrier, warp operation) or ends; then the next ready one goes on. Threads of a
// block therefore never run at the same time, and one seed gives one order.
#pragma once

#include <array>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "fiber.h"
#include "simt.h"

namespace fastconv::simt {

struct Copy {  // one cp.async
  void* shared;
  const void* global;
  int bytes, valid;
  int64_t group;
  Where where;
};

struct Thread {
  Self view;  // first: `self` points here
  Context context;
  int index = 0;
  Thread* next = nullptr;      // in a queue
  const char* waits = nullptr;  // for what: "__syncthreads", "shuffle", ...; null while it runs, stale while it is ready
  Where where{"", 0};
  bool ended = false;
  int64_t group = 0;  // cp.async group that is being filled
  std::vector<Copy> copies;
};

// First in, first out, of threads; a thread is in one queue at most.
class Queue {
 public:
  bool empty() const { return !head_; }
  void push_back(Thread* t) {
    t->next = nullptr;
    (head_ ? tail_->next : head_) = t;
    tail_ = t;
  }
  void push_front(Thread* t) {
    if (!head_) tail_ = t;
    t->next = head_;
    head_ = t;
  }
  Thread* pop() {
    Thread* t = head_;
    head_ = t->next;
    return t;
  }
  void append(Queue& other) {
    if (other.empty()) return;
    (head_ ? tail_->next : head_) = other.head_;
    tail_ = other.tail_;
    other.head_ = nullptr;
  }

 private:
  Thread* head_ = nullptr;
  Thread* tail_ = nullptr;
};

struct Barrier {
  int arrived = 0, expected = 0;
  Queue waiting;
  Where where{"", 0};
};

// Lanes of a warp that meet for one operation.
struct Meeting {
  unsigned mask = 0, here = 0;  // mask 0: not in use
  const char* operation = nullptr;
  Where where{"", 0};
  std::array<void*, 32> lanes{};
  std::array<Thread*, 32> threads{};
};

class Block {
 public:
  Block();
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  // Runs block `index` of the launch. False: it failed, `failure` says why.
  bool run(const Launch& launch, Index3 index);
  std::string failure;

  // What a running thread asks for; see device.h.
  void sync(int barrier, int threads, bool wait, const char* name, Where where);
  void meet(unsigned mask, const char* operation, void* mine, void (*work)(void* const*, unsigned), Where where);
  [[noreturn]] void fail(const std::string& what, Where where);
  unsigned char* static_memory(const void* tag, int64_t bytes, int64_t alignment);
  void copy(const Copy& copy);
  void complete_copies(int pending_groups);
  void thread_ended();

  Thread& running() { return *running_; }
  Thread& thread(int i) { return threads_[static_cast<size_t>(i)]; }
  int thread_count() const { return count_; }
  const Launch& launch() const { return *launch_; }
  unsigned char* shared() const { return shared_; }
  int64_t shared_used() const { return shared_used_; }
  bool on_a_stack(const unsigned char* p) const { return stacks_.hold(p); }

 private:
  struct Static {
    const void* tag;
    int64_t offset;
  };
  static constexpr int kBarriers = 16, kMeetings = 4;

  void prepare(const Launch& launch, Index3 index);
  void wait(const char* what, Where where);
  void release(Barrier& barrier);
  void go_on(Thread* next);
  [[noreturn]] void leave();
  std::string who(const Thread& t) const;
  std::string waiting_threads() const;
  [[noreturn]] void deadlock();

  Stacks stacks_;
  std::vector<Thread> threads_;
  int count_ = 0, live_ = 0;
  const Launch* launch_ = nullptr;
  Context outside_;
  Thread* running_ = nullptr;
  Queue ready_;
  std::array<Barrier, kBarriers> barriers_;
  std::vector<std::array<Meeting, kMeetings>> warps_;
  std::vector<Static> statics_;
  unsigned char* shared_ = nullptr;
  int64_t shared_used_ = 0;
  std::mt19937_64 random_;
  bool shuffled_ = false;
  bool failed_ = false;
};

// The block that this OS thread runs; null outside of a launch.
extern thread_local Block* this_block __attribute__((tls_model("initial-exec")));

}  // namespace fastconv::simt
