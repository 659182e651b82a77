// CUDA's device language for a C++ compiler: the names that kernels use, each as a call into the emulator.
//
// Included by cuda/runtime.cuh instead of <cuda_runtime.h>. Calls that wait take the line they were called from, so that
// a deadlock or a divergent barrier is reported by source line.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

namespace fastconv::simt {

struct Index3 {
  unsigned x = 1, y = 1, z = 1;
};

// Where in the source a kernel called.
struct Where {
  const char* file;
  int line;
  static constexpr Where here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

// What the running thread sees of itself.
struct Self {
  Index3 thread, block, block_size, grid_size;
  unsigned char* shared = nullptr;  // the block's arena
};
extern thread_local Self* self __attribute__((tls_model("initial-exec")));

void sync_block(Where where);
void sync_named(int barrier, int threads, bool wait, Where where);
void sync_warp(unsigned mask, Where where);
// The lanes of `mask` meet; the last to arrive calls work(lanes, mask) for all. lanes[l] is what lane l passed as `mine`.
void meet_warp(unsigned mask, const char* operation, void* mine, void (*work)(void* const* lanes, unsigned mask),
               Where where);
// Ends the launch with a message; for what the hardware would leave undefined.
[[noreturn]] void fail(const char* what, Where where);
unsigned char* static_shared_memory(const void* tag, int64_t bytes, int64_t alignment);
void copy_async(void* shared, const void* global, int bytes, int valid, Where where);
void copy_async_commit();
// 16 bytes of shared memory, read by this lane for whichever lanes an instruction then gives them to.
void read_row(void* to, const void* shared);
void copy_async_wait(int pending_groups);
void count(const char* atom);  // one execution of an instruction, for the counters

inline unsigned lane() {
  const Self& s = *self;
  return ((s.thread.z * s.block_size.y + s.thread.y) * s.block_size.x + s.thread.x) % 32;
}

enum class Shuffle { index, up, down, exclusive_or };

template <class T>
T shuffle(Shuffle kind, unsigned mask, T value, int operand, int width, Where where) {
  struct Lane {
    T value, result;
    int operand, width;
    Shuffle kind;
    Where where;
  } mine{value, value, operand, width, kind, where};
  meet_warp(
      mask, "shuffle", &mine,
      [](void* const* lanes, unsigned set) {
        for (int l = 0; l < 32; ++l) {
          if (!(set >> l & 1)) continue;
          Lane& to = *static_cast<Lane*>(lanes[l]);
          const int first = l / to.width * to.width, at = l % to.width;
          int source = at;
          switch (to.kind) {
            case Shuffle::index: source = to.operand % to.width; break;
            case Shuffle::up: source = at - to.operand; break;
            case Shuffle::down: source = at + to.operand; break;
            case Shuffle::exclusive_or: source = at ^ to.operand; break;
          }
          if (source < 0 || source >= to.width) source = at;  // out of the segment: the lane's own value
          if (!(set >> (first + source) & 1)) fail("a shuffle reads a lane that takes no part in it", to.where);
          to.result = static_cast<Lane*>(lanes[first + source])->value;
        }
      },
      where);
  return mine.result;
}

inline unsigned ballot(unsigned mask, bool predicate, Where where) {
  struct Lane {
    bool predicate;
    unsigned result;
  } mine{predicate, 0};
  meet_warp(
      mask, "ballot", &mine,
      [](void* const* lanes, unsigned set) {
        unsigned votes = 0;
        for (int l = 0; l < 32; ++l)
          if (set >> l & 1 && static_cast<Lane*>(lanes[l])->predicate) votes |= 1u << l;
        for (int l = 0; l < 32; ++l)
          if (set >> l & 1) static_cast<Lane*>(lanes[l])->result = votes;
      },
      where);
  return mine.result;
}

}  // namespace fastconv::simt

using dim3 = fastconv::simt::Index3;
#define threadIdx (::fastconv::simt::self->thread)
#define blockIdx (::fastconv::simt::self->block)
#define blockDim (::fastconv::simt::self->block_size)
#define gridDim (::fastconv::simt::self->grid_size)

// CUDA's own functions, as far as kernels here use them.
#define FASTCONV_WHERE ::fastconv::simt::Where where = ::fastconv::simt::Where::here()
inline void __syncthreads(FASTCONV_WHERE) { fastconv::simt::sync_block(where); }
inline void __syncwarp(unsigned mask = ~0u, FASTCONV_WHERE) { fastconv::simt::sync_warp(mask, where); }
template <class T>
inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32, FASTCONV_WHERE) {
  return fastconv::simt::shuffle(fastconv::simt::Shuffle::index, mask, value, lane, width, where);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, FASTCONV_WHERE) {
  return fastconv::simt::shuffle(fastconv::simt::Shuffle::up, mask, value, static_cast<int>(delta), width, where);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, FASTCONV_WHERE) {
  return fastconv::simt::shuffle(fastconv::simt::Shuffle::down, mask, value, static_cast<int>(delta), width, where);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, FASTCONV_WHERE) {
  return fastconv::simt::shuffle(fastconv::simt::Shuffle::exclusive_or, mask, value, lanes, width, where);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, FASTCONV_WHERE) {
  return fastconv::simt::ballot(mask, predicate != 0, where);
}
inline int __any_sync(unsigned mask, int predicate, FASTCONV_WHERE) {
  return fastconv::simt::ballot(mask, predicate != 0, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, FASTCONV_WHERE) {
  return fastconv::simt::ballot(mask, predicate != 0, where) == mask;
}
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __clz(int v) { return v ? __builtin_clz(static_cast<unsigned>(v)) : 32; }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
template <class T>
inline T __ldg(const T* p) {
  return *p;
}
template <class T>
inline T atomicAdd(T* p, T v) {
  static_assert(std::is_integral_v<T>, "sums of floating-point atomics depend on the order: kernels here use none");
  return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
#undef FASTCONV_WHERE
