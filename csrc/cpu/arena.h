// Cutting one workspace into aligned arrays. Plans count bytes with the same constants that kernels cut with.
#pragma once

#include <cstdint>

namespace fastconv::cpu {

constexpr int64_t kArenaAlignment = 64;  // a cache line
// Extra bytes to plan for each array taken, and for each thread's slice.
constexpr int64_t kArenaSlack = 2 * kArenaAlignment;

static inline int64_t arena_round(int64_t bytes) { return (bytes + kArenaAlignment - 1) & -kArenaAlignment; }

class Arena {
 public:
  explicit Arena(void* memory) : at_(reinterpret_cast<uintptr_t>(memory)) { align(); }

  template <class T>
  T* take(int64_t count) {
    T* p = reinterpret_cast<T*>(at_);
    at_ += static_cast<uintptr_t>(count) * sizeof(T);
    align();
    return p;
  }
  // A thread's own part of what is left: all slices have the same size.
  Arena slice(int thread, int64_t bytes) const {
    Arena own = *this;
    own.at_ += static_cast<uintptr_t>(thread) * static_cast<uintptr_t>(arena_round(bytes));
    return own;
  }

 private:
  void align() { at_ = (at_ + kArenaAlignment - 1) & ~static_cast<uintptr_t>(kArenaAlignment - 1); }
  uintptr_t at_;
};

}  // namespace fastconv::cpu
