// The only file that chooses between CUDA and the emulator: what kernels may use beyond plain C++.
//
// The kernels here are compiled twice. nvcc makes them GPU code in namespace fastconv::cuda; a C++ compiler makes them
// functions for the emulator (csrc/simt) in fastconv::simulated. What the two differ in stays below:
//   launch(...)              instead of <<<>>>
//   dynamic_shared<T>()      instead of extern __shared__; static_shared<T>() for layouts up to 48 KiB
//   FASTCONV_NOINLINE        a device function of its own: code that many places of a kernel share
//   FASTCONV_UNROLL          before a loop over registers that the compiler would leave rolled, in local memory
//   Vector<T, N>, load_vector, store_vector    accesses of up to 16 bytes
//   f16, bf16, Compute<T>, widen, narrow       storage types and the type each is computed in
#pragma once

#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "../core/status.h"

#ifdef FASTCONV_SIMT
#include "../simt/simt.h"
#define FASTCONV_GPU simulated
#define FASTCONV_NOINLINE __attribute__((noinline))
#define FASTCONV_UNROLL
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define FASTCONV_GPU cuda
#define FASTCONV_NOINLINE __noinline__
#define FASTCONV_UNROLL _Pragma("unroll")
#endif

namespace fastconv::FASTCONV_GPU {

// --- numbers -------------------------------------------------------------------------------------------------------

#ifdef FASTCONV_SIMT
struct f16 {
  _Float16 value;
};
struct bf16 {
  uint16_t bits;
};
#else
using f16 = __half;
using bf16 = __nv_bfloat16;
#endif

// Products and sums of T are made in Compute<T>.
template <class T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ double widen(double v) { return v; }
#ifdef FASTCONV_SIMT
inline float widen(f16 v) { return static_cast<float>(v.value); }
inline float widen(bf16 v) {
  const uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
#else
__device__ __forceinline__ float widen(f16 v) { return __half2float(v); }
__device__ __forceinline__ float widen(bf16 v) { return __bfloat162float(v); }
#endif

// Rounds to nearest, ties to even; NaN stays NaN.
template <class T>
__device__ __forceinline__ T narrow(Compute<T> v) {
  if constexpr (std::is_same_v<T, float> || std::is_same_v<T, double>) {
    return v;
  } else {
#ifdef FASTCONV_SIMT
    if constexpr (std::is_same_v<T, f16>) {
      return f16{static_cast<_Float16>(v)};
    } else {
      uint32_t bits;
      std::memcpy(&bits, &v, 4);
      if (v != v) return bf16{0x7fff};
      return bf16{static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
    }
#else
    if constexpr (std::is_same_v<T, f16>)
      return __float2half_rn(v);
    else
      return __float2bfloat16_rn(v);
#endif
  }
}

// --- wide accesses ---------------------------------------------------------------------------------------------------

// N values that are loaded and stored together, 16 bytes at most.
template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
  static_assert(sizeof(T) * N <= 16 && (N & (N - 1)) == 0);
  T v[N];
  __device__ __forceinline__ T& operator[](int i) { return v[i]; }
  __device__ __forceinline__ const T& operator[](int i) const { return v[i]; }
};

template <int Bytes>
struct WordOf;
template <>
struct WordOf<1> {
  using type = unsigned char;
};
template <>
struct WordOf<2> {
  using type = unsigned short;
};
template <>
struct WordOf<4> {
  using type = unsigned;
};
#ifdef FASTCONV_SIMT
template <>
struct WordOf<8> {
  typedef unsigned type __attribute__((vector_size(8), may_alias));
};
template <>
struct WordOf<16> {
  typedef unsigned type __attribute__((vector_size(16), may_alias));
};
#else
template <>
struct WordOf<8> {
  using type = uint2;
};
template <>
struct WordOf<16> {
  using type = uint4;
};
#endif

// p is aligned to the vector's size: one instruction.
template <int N, class T>
__device__ __forceinline__ Vector<T, N> load_vector(const T* p) {
  using Word = typename WordOf<sizeof(T) * N>::type;
  const Word word = *reinterpret_cast<const Word*>(p);
  Vector<T, N> v;
  std::memcpy(&v, &word, sizeof v);
  return v;
}

template <int N, class T>
__device__ __forceinline__ void store_vector(T* p, const Vector<T, N>& v) {
  using Word = typename WordOf<sizeof(T) * N>::type;
  Word word;
  std::memcpy(&word, &v, sizeof v);
  *reinterpret_cast<Word*>(p) = word;
}

// --- shared memory ---------------------------------------------------------------------------------------------------

// The block's shared memory of the size given to launch(), as one structure of arrays.
template <class Layout>
__device__ __forceinline__ Layout& dynamic_shared() {
  static_assert(std::is_trivially_copyable_v<Layout> && alignof(Layout) <= 1024);
#ifdef FASTCONV_SIMT
  return *reinterpret_cast<Layout*>(simt::self->shared);
#else
  extern __shared__ __align__(1024) unsigned char fastconv_shared_memory[];
  return *reinterpret_cast<Layout*>(fastconv_shared_memory);
#endif
}

// The same for a structure whose size the compiler knows: launch() is given no bytes for it. One for each type.
template <class Layout>
__device__ __forceinline__ Layout& static_shared() {
  static_assert(std::is_trivially_copyable_v<Layout> && sizeof(Layout) <= 48 << 10);
#ifdef FASTCONV_SIMT
  static const char tag = 0;
  return *reinterpret_cast<Layout*>(simt::static_shared_memory(&tag, sizeof(Layout), alignof(Layout)));
#else
  __shared__ Layout layout;
  return layout;
#endif
}

// --- launching -------------------------------------------------------------------------------------------------------

constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;  // of a grid along x; along y and z 65535

// kernel<<<grid, block, shared_bytes, stream>>>(args...), as a Status. Arguments are copied bit by bit.
template <class... Parameters, class... Arguments>
Status launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, int64_t shared_bytes,
              void* stream, const Arguments&... arguments) {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...));
#ifdef FASTCONV_SIMT
  (void)stream;  // launches run at once, one after the other
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> values;
  } call{kernel, {arguments...}};
  const auto entry = [](void* c) { std::apply(static_cast<Call*>(c)->kernel, static_cast<Call*>(c)->values); };
  return simt::run({name, grid, block, shared_bytes, entry, &call, sizeof call});
#else
  cudaError_t error = cudaSuccess;
  if (shared_bytes > 48 << 10)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  if (error == cudaSuccess) {
    std::tuple<Parameters...> values{arguments...};
    std::apply(
        [&](Parameters&... each) {
          void* pointers[] = {&each...};
          error = cudaLaunchKernel(kernel, grid, block, pointers, static_cast<size_t>(shared_bytes),
                                   static_cast<cudaStream_t>(stream));
        },
        values);
  }
  if (error == cudaSuccess) return {};
  cudaGetLastError();  // the next call shall not report it again
  return Status::refuse(std::string("kernel ") + name + ": " + cudaGetErrorString(error));
#endif
}

}  // namespace fastconv::FASTCONV_GPU
