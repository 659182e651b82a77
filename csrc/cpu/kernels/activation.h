// Activations: what a kernel needs to apply one to its sums, and to take one's gradient from its output.
//
// ReLU costs an instruction and is applied in registers, where values are stored. The others go through one function
// per type, compiled once per ISA (activation.cpp), on runs of values in memory: no kernel grows by them.
#pragma once

#include "numeric.h"

namespace fastconv::cpu::FASTCONV_ISA {

// values[i] = f(values[i]) for every activation but none and relu; `parameter` as in the problem.
void activate_values(Activation f, float parameter, float* values, int64_t count);
void activate_values(Activation f, double parameter, double* values, int64_t count);

namespace {

template <class A>
struct Activated {
  Activation kind = Activation::none;
  A parameter{};

  Activated() = default;
  explicit Activated(const ConvProblem& p) {
    if (p.pass != Pass::forward) return;
    kind = p.activation;
    if constexpr (!std::is_integral_v<A>) parameter = static_cast<A>(p.activation_parameter.value());
  }
  bool relu() const { return kind == Activation::relu; }
  // ReLU if it is that; NaN passes, as in torch.
  Vec<A> in_registers(Vec<A> v) const { return relu() ? rectified(v) : v; }
  static Vec<A> rectified(Vec<A> v) {
    if constexpr (std::is_integral_v<A>) {
      for (int l = 0; l < kLanes<A>; ++l) v[l] = static_cast<int64_t>(v[l]) <= 0 ? A(0) : v[l];
      return v;
    } else {
      return v <= A(0) ? Vec<A>{} : v;
    }
  }
  bool in_memory() const { return !std::is_integral_v<A> && kind > Activation::relu; }
  void apply(A* values, int64_t count) const {
    if constexpr (!std::is_integral_v<A>) activate_values(kind, parameter, values, count);
  }
};

// The gradients that take more than a selection, by torch's formulas (leaky_relu_backward and so on, of the result).
template <class A>
__attribute__((noinline)) Vec<A> gradient_from_output(Activation f, A parameter, Vec<A> dy, Vec<A> y) {
  switch (f) {
    case Activation::leaky_relu: return y > A(0) ? dy : parameter * dy;
    case Activation::relu6: return (y <= A(0)) | (y >= A(6)) ? Vec<A>{} : dy;
    case Activation::elu: return y <= A(0) ? dy * (y + parameter) : dy;
    case Activation::sigmoid: return dy * y * (A(1) - y);
    case Activation::tanh: return dy * (A(1) - y * y);
    default: return dy;
  }
}

// From the gradient of an activation's output, and that output, to the gradient of its input.
template <class A>
struct OutputGradient {
  Activation kind = Activation::relu;
  A parameter{};

  OutputGradient() = default;
  explicit OutputGradient(const ConvProblem& p) : kind(p.activation) {
    if constexpr (!std::is_integral_v<A>) parameter = static_cast<A>(p.activation_parameter.value());
  }
  A one(A dy, A y) const {
    if constexpr (std::is_integral_v<A>) {
      return static_cast<int64_t>(y) <= 0 ? A(0) : dy;
    } else {
      if (kind == Activation::relu) return y <= A(0) ? A(0) : dy;  // NaN lets the gradient pass, as in torch
      return gradient_from_output(kind, parameter, Vec<A>{} + dy, Vec<A>{} + y)[0];
    }
  }
  Vec<A> operator()(Vec<A> dy, Vec<A> y) const {
    if constexpr (std::is_integral_v<A>) {
      for (int l = 0; l < kLanes<A>; ++l) dy[l] = one(dy[l], y[l]);
      return dy;
    } else {
      if (kind == Activation::relu) return y <= A(0) ? Vec<A>{} : dy;
      return gradient_from_output(kind, parameter, dy, y);
    }
  }
};

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
