// What a convolution does to each sum before it is stored, in registers; the only place that knows activations.
// Bias, residual and activation are run-time branches: uniform over the grid, so they cost a predicate each.
#pragma once

#include <cmath>

#include "../core/table.h"
#include "index.cuh"

namespace fastconv::FASTCONV_GPU {

// The activations besides none and relu, by the formulas of torch.nn.functional: NaN passes; silu, gelu and hardswish
// of -inf are 0, their limit, where torch multiplies 0 by infinity. A function of its own, since a kernel finishes up to
// 64 sums of a thread, each at its own place in the code.
template <class A>
__device__ FASTCONV_NOINLINE A activate_further(Activation activation, A parameter, A v) {
  if (activation == Activation::leaky_relu) return v > A(0) ? v : v * parameter;
  if (activation == Activation::relu6) return v <= A(0) ? A(0) : v >= A(6) ? A(6) : v;
  if (activation == Activation::elu) return v <= A(0) ? parameter * std::expm1(v) : v;
  if (activation == Activation::tanh) return std::tanh(v);
  if (activation == Activation::sigmoid) return A(1) / (A(1) + std::exp(-v));
  if (v < A(0) && v + v == v) return A(0);  // -infinity
  if (activation == Activation::hardswish) {
    const A shifted = v + A(3), clamped = shifted <= A(0) ? A(0) : shifted >= A(6) ? A(6) : shifted;
    return v * (clamped / A(6));
  }
  constexpr A kRootOfHalf = A(0.70710678118654752440);
  if (activation == Activation::gelu) return A(0.5) * v * (A(1) + std::erf(v * kRootOfHalf));
  return v / (A(1) + std::exp(-v));  // silu
}

template <class A>
__device__ __forceinline__ A activate(Activation activation, A parameter, A v) {
  if (activation == Activation::relu) return v <= A(0) ? A(0) : v;  // NaN passes, as in torch
  if (activation == Activation::none) return v;
  return activate_further(activation, parameter, v);
}

// The gradient of the activation, applied to grad_output `dy` where the forward's output was `y`. For those activations
// whose derivative follows from it (core/activation.cpp): torch's own formulas, those of NaN and boundaries included.
template <class A>
__device__ FASTCONV_NOINLINE A further_gradient(Activation activation, A parameter, A dy, A y) {
  if (activation == Activation::leaky_relu) return y > A(0) ? dy : dy * parameter;
  if (activation == Activation::relu6) return y <= A(0) || y >= A(6) ? A(0) : dy;
  if (activation == Activation::elu) return y <= A(0) ? dy * (y + parameter) : dy;
  if (activation == Activation::sigmoid) return dy * (A(1) - y) * y;
  return dy * (A(1) - y * y);  // tanh
}

template <class A>
__device__ __forceinline__ A activation_gradient(Activation activation, A parameter, A dy, A y) {
  if (activation == Activation::relu) return y <= A(0) ? A(0) : dy;
  return further_gradient(activation, parameter, dy, y);
}

// What grad_input stores: the sum, plus the bias that a transposed convolution has.
template <class T>
__device__ __forceinline__ T biased(Compute<T> sum, const T* bias, int64_t c) {
  return narrow<T>(bias ? sum + widen(bias[c]) : sum);
}

// Forward: y = act(sum * scale[k] + bias[k] + residual). grad_input: dx = sum + bias[c].
template <class T, class Index>
struct Epilogue {
  const Compute<T>* scale = nullptr;
  const T* bias = nullptr;
  const T* residual = nullptr;
  Strides<Index> residual_strides;
  Compute<T> parameter = 0;  // of the activation
  Activation activation = Activation::none;

  Epilogue() = default;
  Epilogue(const ConvProblem& p, const ConvOperands& o)
      : scale(p.scale ? static_cast<const Compute<T>*>(o.scale) : nullptr),
        bias(p.bias && p.pass != Pass::grad_weight ? static_cast<const T*>(o.bias) : nullptr),
        residual(p.residual ? static_cast<const T*>(o.aux) : nullptr),
        residual_strides(p.aux_strides),
        parameter(static_cast<Compute<T>>(p.activation_parameter.value())),
        activation(p.pass == Pass::forward ? p.activation : Activation::none) {}

  // k: the filter (grad_input: the channel) among all groups'; `at`: the residual's offset (residual_strides.at(n, k, p,
  // q)), used if there is one.
  __device__ __forceinline__ T finish(Compute<T> sum, Index k, Index at) const {
    if (scale) sum *= scale[k];
    return finish_scaled(sum, k, at);
  }
  // What follows the scale, for kernels that have no register for it here.
  __device__ __forceinline__ T finish_scaled(Compute<T> sum, Index k, Index at) const {
    if (bias) sum += widen(bias[k]);
    if (residual) sum += widen(residual[at]);
    return narrow<T>(activate(activation, parameter, sum));
  }
};

// grad_output as the gradient passes read it: masked by the forward's output where there was an activation.
template <class T, class Index>
struct GradOutput {
  const T* dy = nullptr;
  const T* output = nullptr;  // null: no activation
  Strides<Index> strides, output_strides;
  Compute<T> parameter = 0;  // of the activation
  Activation activation = Activation::none;

  GradOutput() = default;
  GradOutput(const ConvProblem& p, const ConvOperands& o)
      : dy(static_cast<const T*>(o.y)),
        output(p.activation != Activation::none ? static_cast<const T*>(o.aux) : nullptr),
        strides(p.y_strides),
        output_strides(p.aux_strides),
        parameter(static_cast<Compute<T>>(p.activation_parameter.value())),
        activation(p.activation) {}

  // grad_output `v` where the forward's output was `y`.
  __device__ __forceinline__ Compute<T> masked(Compute<T> v, T y) const {
    return activation_gradient(activation, parameter, v, widen(y));
  }
  __device__ __forceinline__ Compute<T> read(Index n, Index k, Index p, Index q) const {
    const Compute<T> v = widen(dy[strides.at(n, k, p, q)]);
    return output ? masked(v, output[output_strides.at(n, k, p, q)]) : v;
  }
};

}  // namespace fastconv::FASTCONV_GPU
