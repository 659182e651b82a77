// The activations other than ReLU, on runs of values. -inf gives the limit where torch's product of 0 and -inf is NaN:
// -0 for silu and gelu, 0 for hardswish.
#include "activation.h"

#include "vector_math.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

template <class V>
inline V at_least(V x, typename std::remove_reference<decltype(V{}[0])>::type least) {
  return x < least ? V{} + least : x;
}

// Comparisons are written so that NaN takes the branch that keeps it.
template <class V, class A>
inline V leaky_relu(V x, A slope) {
  return x > A(0) ? x : slope * x;
}
template <class A, class V>
inline V relu6(V x) {
  return x <= A(0) ? V{} : x >= A(6) ? V{} + A(6) : x;
}
template <class A, class V>
inline V hardswish(V x) {
  const V inner = x * (x + A(3)) / A(6);
  return x <= A(-3) ? V{} : x >= A(3) ? x : inner;
}

inline Floats elu(Floats x, float alpha) { return x > 0.0f ? x : alpha * expm1_below(x > 0.0f ? Floats{} : x); }
inline Floats sigmoid(Floats x) {
  const Floats e = exp(-magnitude(x));
  return (x < 0.0f ? e : Floats{} + 1.0f) / (1.0f + e);
}
inline Floats silu(Floats x) { return at_least(x, -150.0f) * sigmoid(x); }
inline Floats gelu(Floats x) { return at_least(x, -20.0f) * normal_cdf(x); }

// Doubles lane by lane, by the C library (builtins: no inline function of a header that another ISA's could replace).
using Doubles = Vec<double>;
template <class F>
inline Doubles by_lane(Doubles x, F&& f) {
  for (int l = 0; l < kLanes<double>; ++l) x[l] = f(static_cast<double>(x[l]));
  return x;
}
inline Doubles elu(Doubles x, double alpha) {
  return by_lane(x, [=](double v) { return v > 0 ? v : alpha * __builtin_expm1(v); });
}
inline Doubles sigmoid(Doubles x) {
  return by_lane(x, [](double v) {
    const double e = __builtin_exp(v < 0 ? v : -v);
    return (v < 0 ? e : 1) / (1 + e);
  });
}
inline Doubles silu(Doubles x) { return at_least(x, -1500.0) * sigmoid(x); }
inline Doubles gelu(Doubles x) {
  return at_least(x, -50.0) * by_lane(x, [](double v) { return 0.5 * __builtin_erfc(v * -0.70710678118654752); });
}
inline Doubles tanh(Doubles x) {
  return by_lane(x, [](double v) { return __builtin_tanh(v); });
}

template <class A, class F>
inline void for_each_vector(A* values, int64_t count, F&& f) {
  constexpr int L = kLanes<A>;
  int64_t i = 0;
  for (; i + L <= count; i += L) store(values + i, f(load(values + i)));
  if (i == count) return;
  A rest[L] = {};
  for (int64_t j = i; j < count; ++j) rest[j - i] = values[j];
  store(rest, f(load(rest)));
  for (int64_t j = i; j < count; ++j) values[j] = rest[j - i];
}

template <class A>
inline void activate(Activation f, A parameter, A* values, int64_t count) {
  using V = Vec<A>;
  switch (f) {
    case Activation::none:
    case Activation::relu: return;  // not done here
    case Activation::leaky_relu:
      return for_each_vector(values, count, [=](V x) { return leaky_relu(x, parameter); });
    case Activation::relu6: return for_each_vector(values, count, [](V x) { return relu6<A>(x); });
    case Activation::elu: return for_each_vector(values, count, [=](V x) { return elu(x, parameter); });
    case Activation::sigmoid: return for_each_vector(values, count, [](V x) { return sigmoid(x); });
    case Activation::tanh: return for_each_vector(values, count, [](V x) { return tanh(x); });
    case Activation::silu: return for_each_vector(values, count, [](V x) { return silu(x); });
    case Activation::gelu: return for_each_vector(values, count, [](V x) { return gelu(x); });
    case Activation::hardswish: return for_each_vector(values, count, [](V x) { return hardswish<A>(x); });
  }
}

}  // namespace

void activate_values(Activation f, float parameter, float* values, int64_t count) {
  activate(f, parameter, values, count);
}
void activate_values(Activation f, double parameter, double* values, int64_t count) {
  activate(f, parameter, values, count);
}

}  // namespace fastconv::cpu::FASTCONV_ISA
