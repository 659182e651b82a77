// Index arithmetic: sizes and strides in the width they need, and division by numbers known at launch.
#pragma once

#include <initializer_list>
#include <limits>

#include "../core/problem.h"
#include "runtime.cuh"

namespace fastconv::FASTCONV_GPU {

// Quotient and remainder by a divisor fixed at launch. 32 bits: one multiply-high and a shift instead of the 20
// instructions of a division; exact for every 0 <= n < 2^31 (Granlund and Montgomery, PLDI 1994, with a 33-bit
// reciprocal: the added n is the reciprocal's top bit). 64 bits: the division itself.
template <class Index>
struct Divider;

template <>
struct Divider<int32_t> {
  uint32_t divisor = 1, reciprocal = 0, shift = 0;

  Divider() = default;
  explicit Divider(int64_t d) : divisor(static_cast<uint32_t>(d)) {
    while (shift < 32 && (uint64_t{1} << shift) < divisor) ++shift;
    reciprocal = static_cast<uint32_t>((uint64_t{1} << 32) * ((uint64_t{1} << shift) - divisor) / divisor + 1);
  }
  __device__ __forceinline__ int32_t quotient(int32_t n) const {
    const uint32_t u = static_cast<uint32_t>(n);
    return static_cast<int32_t>((__umulhi(u, reciprocal) + u) >> shift);
  }
  __device__ __forceinline__ int32_t quotient(int32_t n, int32_t& remainder) const {
    const int32_t q = quotient(n);
    remainder = n - q * static_cast<int32_t>(divisor);
    return q;
  }
};

template <>
struct Divider<int64_t> {
  int64_t divisor = 1;

  Divider() = default;
  explicit Divider(int64_t d) : divisor(d) {}
  __device__ __forceinline__ int64_t quotient(int64_t n) const { return n / divisor; }
  __device__ __forceinline__ int64_t quotient(int64_t n, int64_t& remainder) const {
    const int64_t q = n / divisor;
    remainder = n - q * divisor;
    return q;
  }
};

// Strides of a tensor n c h w (or a filter k c r s) in elements.
template <class Index>
struct Strides {
  Index n = 0, c = 0, h = 0, w = 0;
  Strides() = default;
  explicit Strides(const Strides4& s)
      : n(static_cast<Index>(s[0])), c(static_cast<Index>(s[1])), h(static_cast<Index>(s[2])), w(static_cast<Index>(s[3])) {}
  __device__ __forceinline__ Index at(Index in, Index ic, Index ih, Index iw) const {
    return in * n + ic * c + ih * h + iw * w;
  }
};

// The last element's offset; strides are not negative.
inline int64_t span_of(const Sizes4& sizes, const Strides4& strides) {
  int64_t last = 0;
  for (int i = 0; i < 4; ++i) last += (sizes[i] - 1) * strides[i];
  return last;
}

// Whether 32 bits hold every offset, with room for a tile that reaches past the end.
inline bool fits_int32(const ConvProblem& p) {
  constexpr int64_t kMost = (int64_t{1} << 31) - (int64_t{1} << 24);
  for (int64_t span : {span_of(p.x_sizes(), p.x_strides), span_of(p.weight_sizes(), p.weight_strides),
                       span_of(p.y_sizes(), p.y_strides), p.has_aux() ? span_of(p.y_sizes(), p.aux_strides) : 0,
                       p.n * p.p() * p.q(), p.n * p.h * p.w, p.group_c() * p.r * p.s,
                       p.h + p.pad_top + p.pad_bottom, p.w + p.pad_left + p.pad_right})
    if (span > kMost) return false;
  return true;
}

// Calls f with a value of the storage type of a floating dtype.
template <class F>
Status with_float(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32: return f(float{});
    case DType::f64: return f(double{});
    case DType::f16: return f(f16{});
    case DType::bf16: return f(bf16{});
    default: return Status::refuse("takes floating-point types only");
  }
}

inline __host__ __device__ int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace fastconv::FASTCONV_GPU
