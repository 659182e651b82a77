// Numbers as the kernels see them: storage types, the type each is computed in, and conversions.
// Included only by files compiled once per ISA; everything is in an anonymous namespace so that no code of one ISA can
// stand in for another's.
#pragma once

#include <cstdint>
#include <cstring>

#include "../../core/problem.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

using f16 = _Float16;
struct bf16 {
  uint16_t bits;
};

// Sums of T are accumulated in Compute<T>. Integers wrap modulo 2^64 and are truncated, which gives the same bits as
// wrapping in the narrow type at every step.
template <class T>
struct ComputeOf {
  using type = uint64_t;
};
template <>
struct ComputeOf<float> {
  using type = float;
};
template <>
struct ComputeOf<f16> {
  using type = float;
};
template <>
struct ComputeOf<bf16> {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeOf<T>::type;

template <class T>
inline Compute<T> widen(T v) {
  return static_cast<Compute<T>>(v);
}
inline float widen(bf16 v) {
  const uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

template <class T>
inline T narrow(Compute<T> v) {
  return static_cast<T>(v);
}
template <>
inline bf16 narrow<bf16>(float v) {  // round to nearest, ties to even; NaN stays a quiet NaN
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  if (v != v) return bf16{0x7fc0};
  return bf16{static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

template <class A>
struct VectorOf {
  typedef A type __attribute__((vector_size(kVectorBytes)));
  typedef A unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(A)), may_alias));
  static constexpr int lanes = kVectorBytes / sizeof(A);
};
template <class A>
using Vec = typename VectorOf<A>::type;
template <class A>
constexpr int kLanes = VectorOf<A>::lanes;

template <class A>
inline Vec<A> load(const A* p) {
  return *reinterpret_cast<const typename VectorOf<A>::unaligned*>(p);
}
template <class A>
inline void store(A* p, Vec<A> v) {
  *reinterpret_cast<typename VectorOf<A>::unaligned*>(p) = v;
}

// Calls f with a value of the C++ type that a dtype stands for.
template <class F>
inline auto with_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32: return f(float{});
    case DType::f64: return f(double{});
    case DType::f16: return f(f16{});
    case DType::bf16: return f(bf16{});
    case DType::u8: return f(uint8_t{});
    case DType::i8: return f(int8_t{});
    case DType::i16: return f(int16_t{});
    case DType::i32: return f(int32_t{});
    case DType::i64: break;
  }
  return f(int64_t{});
}

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
