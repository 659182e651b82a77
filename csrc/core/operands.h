// The memory that a call's operands span, for whoever has to copy, guard or watch it.
#pragma once

#include "table.h"

namespace fastconv {

inline int64_t span_bytes(const Sizes4& sizes, const Strides4& strides, int64_t element) {
  int64_t last = 0;
  for (size_t i = 0; i < 4; ++i) last += (sizes[i] - 1) * strides[i];
  return (last + 1) * element;
}

// Calls f(name, pointer by reference, bytes, bytes of an element, whether the pass reads it rather than writes it) for
// every operand that is there.
template <class F>
void visit_operands(const ConvProblem& p, ConvOperands& o, F&& f) {
  const int64_t e = size_of(p.dtype), y = span_bytes(p.y_sizes(), p.y_strides, e);
  if (o.x) f("x", o.x, span_bytes(p.x_sizes(), p.x_strides, e), e, p.pass != Pass::grad_input);
  if (o.weight) f("weight", o.weight, span_bytes(p.weight_sizes(), p.weight_strides, e), e, p.pass != Pass::grad_weight);
  if (o.y) f("y", o.y, y, e, p.pass != Pass::forward);
  if (o.bias) f("bias", o.bias, p.bias_size() * e, e, true);
  const int64_t real = p.dtype == DType::f64 ? 8 : 4;
  if (o.scale) f("scale", o.scale, p.k * real, real, true);
  if (o.aux) f("aux", o.aux, span_bytes(p.y_sizes(), p.aux_strides, e), e, true);
  if (o.grad_bias) f("grad_bias", o.grad_bias, p.k * e, e, false);
}

template <class F>
void visit_operands(const PoolProblem& p, PoolOperands& o, F&& f) {
  const int64_t e = size_of(p.dtype);
  const bool gradient = p.pass == Pass::grad_input;
  if (o.x) f("x", o.x, span_bytes(p.x_sizes(), p.x_strides, e), e, !gradient);
  if (o.y) f("y", o.y, span_bytes(p.y_sizes(), p.y_strides, e), e, gradient);
  if (o.input) f("input", o.input, span_bytes(p.x_sizes(), p.x_strides, e), e, true);
  if (o.output) f("output", o.output, span_bytes(p.y_sizes(), p.y_strides, e), e, true);
  if (o.offsets && p.offset_bytes)
    f("offsets", o.offsets, span_bytes(p.y_sizes(), p.offset_strides, p.offset_bytes), int64_t{p.offset_bytes},
      p.pass != Pass::forward);
}

}  // namespace fastconv
