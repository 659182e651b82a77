// Exponential functions on vectors of floats, without branches: NaN stays NaN, and both infinities have their limits.
//
// Method: x = k ln 2 + r with the nearest k, subtracted in two parts as Cody and Waite do (Software Manual for the
// Elementary Functions, 1980), so that exp(x) = 2^k (1 + p), p = expm1(r) a polynomial on |r| <= ln 2 / 2; expm1 and tanh
// follow from p without cancellation. Polynomials are our own minimax fits of relative error by Lawson's iteratively
// reweighted least squares in float64 (2.4e-10, 7.1e-10 and 2.1e-8), against expm1 and torch.special's erf and erfcx.
// Largest errors over floats 211 apart, in units of the last place, with and without fused multiply-adds: ELU 0.9,
// sigmoid 2.3, tanh 2.4; SiLU and GELU 1.5e-7 of the larger of 1 and the result (their tails' relative errors grow with
// x, to 4e-6 where the result is 1e-37).
#pragma once

#include "numeric.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

using Floats = Vec<float>;
using Bits = Vec<uint32_t>;

template <int N>
inline Floats polynomial(Floats x, const float (&coefficients)[N]) {  // the constant first
  Floats sum = Floats{} + coefficients[N - 1];
#pragma GCC unroll 8
  for (int i = N - 2; i >= 0; --i) sum = sum * x + coefficients[i];
  return sum;
}

// exp(x) = (1 + p) * scale * more_scale: two factors, because the results span more than one can.
struct ExpParts {
  Floats p, scale, more_scale;
};
inline ExpParts exp_parts(Floats x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, found in the lowest bits
  constexpr float kExpm1[] = {5.000000000e-01f, 1.666666567e-01f, 4.166635871e-02f,
                              8.333389647e-03f, 1.394071965e-03f, 1.984588453e-04f};
  x = x < -104.0f ? Floats{} - 104.0f : x;  // exp is 0 below and infinite above
  x = x > 89.0f ? Floats{} + 89.0f : x;
  const Floats shifted = x * 1.442695041f + kMagic, k = shifted - kMagic;
  const Floats r = x - k * 0.693359375f - k * -2.12194440e-4f;
  const Bits power = (Bits)shifted - 0x4B400000u, half = (Bits)((Vec<int32_t>)power >> 1);
  return {r + r * r * polynomial(r, kExpm1), (Floats)((half + 127u) << 23), (Floats)((power - half + 127u) << 23)};
}

inline Floats exp(Floats x) {
  const ExpParts e = exp_parts(x);
  return (e.p * e.scale + e.scale) * e.more_scale;
}

// For x <= 88: the scale is one number.
inline Floats expm1_below(Floats x) {
  const ExpParts e = exp_parts(x);
  const Floats scale = e.scale * e.more_scale;
  return e.p * scale + (scale - 1.0f);
}

inline Floats magnitude(Floats x) { return (Floats)((Bits)x & 0x7fffffffu); }
inline Floats with_sign(Floats v, Floats of) { return (Floats)((Bits)v | ((Bits)of & 0x80000000u)); }

inline Floats tanh(Floats x) {
  const Floats a = magnitude(x), bounded = a > 10.0f ? Floats{} + 10.0f : a;  // beyond, 1 in float
  const Floats t = expm1_below(bounded + bounded);
  return with_sign(t / (t + 2.0f), x);
}

// The normal distribution function (1 + erf(x / sqrt 2)) / 2: 1/2 and an odd polynomial for |x| < 1, else from the
// tail exp(-x^2 / 2) t S(t), t = 1 / (1 + |x| / 4), which keeps its relative accuracy for negative x.
inline Floats normal_cdf(Floats x) {
  constexpr float kCentre[] = {3.989422917e-01f, -6.649035960e-02f, 9.973322973e-03f,
                               -1.186329988e-03f, 1.134863705e-04f, -7.654208275e-06f};
  constexpr float kTail[] = {9.973748028e-02f, 9.965558350e-02f, 9.459108114e-02f, 7.367437333e-02f,
                             9.187319130e-02f, -2.166106552e-02f, 1.086250916e-01f, -4.652709514e-02f};
  const Floats a = magnitude(x), square = x * x, t = 1.0f / (1.0f + a * 0.25f);
  const Floats tail = exp(square * -0.5f) * (t * polynomial(t, kTail));
  const Floats outer = x < 0.0f ? tail : 1.0f - tail;
  return a < 1.0f ? 0.5f + x * polynomial(square, kCentre) : outer;
}

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
