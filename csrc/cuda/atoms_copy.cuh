// Asynchronous copies from global to shared memory: cp.async (PTX ISA 9.7.9.25.3, sm_80 on).
//
// A thread issues copies, closes a group with commit(), and wait<N>() returns when all but its last N groups have landed;
// other threads may read them after a barrier behind that. Before sm_80 the copy goes through registers, at once.
#pragma once

#include "runtime.cuh"

namespace fastconv::FASTCONV_GPU {

// Bytes 4, 8 or 16; both addresses aligned to them. `.ca` caches in L1; `.cg`, for 16 bytes only, does not.
template <int Bytes>
struct CopyAsync {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);

  // valid = false: fills with zeros and reads nothing, so that `global` may point anywhere.
#ifdef FASTCONV_SIMT
  static void copy(void* shared, const void* global, bool valid, simt::Where where = simt::Where::here()) {
    simt::count("cp.async");
    simt::copy_async(shared, global, Bytes, valid ? Bytes : 0, where);
  }
#else
  static __device__ __forceinline__ void copy(void* shared, const void* global, bool valid) {
#if __CUDA_ARCH__ >= 800
    const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    const int bytes = valid ? Bytes : 0;
    if constexpr (Bytes == 16)
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
    else
      asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(Bytes), "r"(bytes)
                   : "memory");
#else
    using Word = typename WordOf<Bytes>::type;
    *static_cast<Word*>(shared) = valid ? *static_cast<const Word*>(global) : Word{};
#endif
  }
#endif
};

__device__ __forceinline__ void copy_async_commit() {
#ifdef FASTCONV_SIMT
  simt::copy_async_commit();
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int Pending>
__device__ __forceinline__ void copy_async_wait() {
#ifdef FASTCONV_SIMT
  simt::copy_async_wait(Pending);
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
#endif
}

}  // namespace fastconv::FASTCONV_GPU
