// What -fsanitize=thread makes of every access of a kernel: a call to one of these. Its own library is not linked.
// The names and signatures are those of the compiler's interface (gcc/tsan.cc, compiler-rt/lib/tsan/rtl/tsan_interface.h).
#include <cstring>

#include "../observer.h"
#include "checker.h"
#include "shadow.h"

using namespace fastconv::simt;

namespace {

inline void access(const void* address, int64_t bytes, bool write, const void* instruction) {
  Block* block = this_block;
  if (!block) return;  // host code of the same file
  const auto* p = static_cast<const unsigned char*>(address);
  const Access a{p, bytes, write, instruction, {"", 0}};
  const int64_t offset = p - block->shared();
  if (offset >= 0 && offset < (kMostSharedBytes + (48 << 10))) {
    shadow().check_shared(a);
    if (traffic_log::enabled()) traffic_log::record(a, true);
    return;
  }
  if (block->on_a_stack(p)) return;
  if (check_global(a) && traffic_log::enabled()) traffic_log::record(a, false);
}

}  // namespace

void observer::read(const void* address, int64_t bytes, const void* instruction) {
  access(address, bytes, false, instruction);
}

#define FASTCONV_HERE __builtin_return_address(0)
extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
#define FASTCONV_HOOK(n)                                                              \
  void __tsan_read##n(void* p) { access(p, n, false, FASTCONV_HERE); }                \
  void __tsan_write##n(void* p) { access(p, n, true, FASTCONV_HERE); }                \
  void __tsan_unaligned_read##n(void* p) { access(p, n, false, FASTCONV_HERE); }      \
  void __tsan_unaligned_write##n(void* p) { access(p, n, true, FASTCONV_HERE); }
FASTCONV_HOOK(1)
FASTCONV_HOOK(2)
FASTCONV_HOOK(4)
FASTCONV_HOOK(8)
FASTCONV_HOOK(16)
void __tsan_read_range(void* p, size_t bytes) { access(p, static_cast<int64_t>(bytes), false, FASTCONV_HERE); }
void __tsan_write_range(void* p, size_t bytes) { access(p, static_cast<int64_t>(bytes), true, FASTCONV_HERE); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
// Atomics are ordered by themselves; only their bounds are checked, as reads.
int __tsan_atomic32_fetch_add(volatile int* p, int v, int) {
  access(const_cast<int*>(p), 4, false, FASTCONV_HERE);
  return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
long __tsan_atomic64_fetch_add(volatile long* p, long v, int) {
  access(const_cast<long*>(p), 8, false, FASTCONV_HERE);
  return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
}
