// How kernels use threads without knowing whose they are. The bindings pass torch's pool; the default is serial.
#pragma once

#include <cstdint>

namespace fastconv {

struct Threads {
  int count = 1;
  // Calls body(thread, data) once for each thread in [0, count), concurrently, and returns when all are done.
  void (*launch)(int count, void (*body)(int thread, void* data), void* data) = nullptr;
};

// Runs f(thread, task) for every task in [0, tasks). Tasks are handed out one by one, so uneven ones balance; they must
// not depend on each other's order. `thread` indexes scratch memory and is below the number of threads used.
template <class F>
inline void parallel_tasks(const Threads& threads, int64_t tasks, F&& f) {
  const int used = static_cast<int>(tasks < threads.count ? tasks : threads.count);
  if (used <= 1 || !threads.launch) {
    for (int64_t task = 0; task < tasks; ++task) f(0, task);
    return;
  }
  struct Shared {
    F& f;
    int64_t tasks;
    int64_t next;
  } shared{f, tasks, 0};
  threads.launch(
      used,
      [](int thread, void* data) {
        auto* s = static_cast<Shared*>(data);
        for (;;) {
          const int64_t task = __atomic_fetch_add(&s->next, int64_t{1}, __ATOMIC_RELAXED);
          if (task >= s->tasks) return;
          s->f(thread, task);
        }
      },
      &shared);
}

}  // namespace fastconv
