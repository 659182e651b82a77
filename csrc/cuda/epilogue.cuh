// What a convolution does to each sum before it is stored, in registers; the only place that knows activations.
// Bias, residual and activation are run-time branches: uniform over the grid, so they cost a predicate each.
#pragma once

#include "../core/table.h"
#include "index.cuh"

namespace fastconv::FASTCONV_GPU {

template <class A>
__device__ __forceinline__ A activate(Activation activation, A v) {
  if (activation == Activation::relu) return v <= A(0) ? A(0) : v;  // NaN passes, as in torch
  return v;
}

// The gradient of the activation, applied to grad_output `dy` where the forward's output was `y`.
template <class A>
__device__ __forceinline__ A activation_gradient(Activation activation, A dy, A y) {
  if (activation == Activation::relu) return y <= A(0) ? A(0) : dy;
  return dy;
}

// Forward: y = act(sum + bias[k] + residual).
template <class T, class Index>
struct Epilogue {
  const T* bias = nullptr;
  const T* residual = nullptr;
  Strides<Index> residual_strides;
  Activation activation = Activation::none;

  Epilogue() = default;
  Epilogue(const ConvProblem& p, const ConvOperands& o)
      : bias(p.bias && p.pass == Pass::forward ? static_cast<const T*>(o.bias) : nullptr),
        residual(p.residual ? static_cast<const T*>(o.aux) : nullptr),
        residual_strides(p.aux_strides),
        activation(p.pass == Pass::forward ? p.activation : Activation::none) {}

  // k: the filter among all groups'; `at`: the residual's offset (residual_strides.at(n, k, p, q)), used if there is one.
  __device__ __forceinline__ T finish(Compute<T> sum, Index k, Index at) const {
    if (bias) sum += widen(bias[k]);
    if (residual) sum += widen(residual[at]);
    return narrow<T>(activate(activation, sum));
  }
};

// grad_output as the gradient passes read it: masked by the forward's output where there was an activation.
template <class T, class Index>
struct GradOutput {
  const T* dy = nullptr;
  const T* output = nullptr;  // null: no activation
  Strides<Index> strides, output_strides;
  Activation activation = Activation::none;

  GradOutput() = default;
  GradOutput(const ConvProblem& p, const ConvOperands& o)
      : dy(static_cast<const T*>(o.y)),
        output(p.activation != Activation::none ? static_cast<const T*>(o.aux) : nullptr),
        strides(p.y_strides),
        output_strides(p.aux_strides),
        activation(p.activation) {}

  __device__ __forceinline__ Compute<T> read(Index n, Index k, Index p, Index q) const {
    const Compute<T> v = widen(dy[strides.at(n, k, p, q)]);
    return output ? activation_gradient(activation, v, widen(output[output_strides.at(n, k, p, q)])) : v;
  }
};

}  // namespace fastconv::FASTCONV_GPU
