// The emulator as its host sees it: runs a kernel over a grid, in this process, on OS threads.
#pragma once

#include <cstdint>
#include <string>

#include "../core/status.h"
#include "device.h"

namespace fastconv::simt {

// One launch. `entry(call)` is the kernel with its arguments; each thread of the grid calls it once.
struct Launch {
  const char* name;
  Index3 grid, block;
  int64_t shared_bytes = 0;
  void (*entry)(void* call) = nullptr;
  void* call = nullptr;
  int64_t call_bytes = 0;
};

// Runs to the end, or to the first failure: a barrier that not all threads reach, a shuffle from a missing lane, ... The
// reason names the kernel, block, thread and source lines. A failed launch leaves the memory half-written, no worse.
Status run(const Launch& launch);

// How launches of this process run. Anything may be changed between launches, by one thread.
struct Settings {
  int workers = 0;             // OS threads; 0: one for each core
  uint64_t seed = 0;           // order in which threads of a block run; 0: by index
  bool eager_copies = false;   // cp.async copies when issued, not when waited for
};
Settings& settings();

constexpr int64_t kMostSharedBytes = 227 << 10;  // of a block, sm_90; sm_80 has 163 KiB, sm_75 64

}  // namespace fastconv::simt
