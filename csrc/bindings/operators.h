// The operators of one dispatch key: a backend, and what has to hold while it works. Arguments as in schema.cpp.
#pragma once

#include <torch/library.h>

#include "tensors.h"

namespace fastconv::bindings {

// Guard is constructed from the first tensor argument and lives as long as the call: CUDA's makes its device current.
template <const Backend& backend, class Guard>
struct Operators {
  static Tensor conv2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                       const OptionalTensor& residual, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                       int64_t groups, std::string_view activation, std::string_view algorithm,
                       std::string_view accuracy) {
    const Guard guard(input);
    return bindings::conv2d(backend, input, weight, bias, residual,
                            {stride, padding, dilation, groups, activation, algorithm, accuracy});
  }

  static Tensor conv2d_max_pool2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                  IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                                  std::string_view activation, std::string_view algorithm,
                                  std::string_view accuracy) {
    const Guard guard(input);
    return bindings::conv2d_max_pool2d(backend, input, weight, bias,
                                       {stride, padding, dilation, groups, activation, algorithm, accuracy});
  }

  static Tensor conv2d_batch_norm(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                  const OptionalTensor& residual, const Tensor& running_mean,
                                  const Tensor& running_var, const OptionalTensor& gamma, const OptionalTensor& beta,
                                  double eps, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                                  int64_t groups, std::string_view activation, std::string_view algorithm,
                                  std::string_view accuracy) {
    const Guard guard(input);
    return bindings::conv2d_batch_norm(backend, input, weight, bias, residual,
                                       {running_mean, running_var, gamma, beta, eps},
                                       {stride, padding, dilation, groups, activation, algorithm, accuracy});
  }

  static Tensor conv2d_grad_input(const Tensor& grad_output, const Tensor& weight, const OptionalTensor& output,
                                  IntArrayRef input_size, IntArrayRef stride, IntArrayRef padding,
                                  IntArrayRef dilation, int64_t groups, std::string_view activation,
                                  std::string_view algorithm, std::string_view accuracy) {
    const Guard guard(grad_output);
    return bindings::conv2d_grad_input(backend, grad_output, weight, output, input_size,
                                       {stride, padding, dilation, groups, activation, algorithm, accuracy});
  }

  static std::tuple<Tensor, Tensor> conv2d_grad_weight(const Tensor& input, const Tensor& grad_output,
                                                       const OptionalTensor& output, IntArrayRef weight_size,
                                                       bool bias, IntArrayRef stride, IntArrayRef padding,
                                                       IntArrayRef dilation, int64_t groups,
                                                       std::string_view activation, std::string_view algorithm,
                                                       std::string_view accuracy) {
    const Guard guard(input);
    return bindings::conv2d_grad_weight(backend, input, grad_output, output, weight_size, bias,
                                        {stride, padding, dilation, groups, activation, algorithm, accuracy});
  }

  static Tensor conv_transpose2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                 IntArrayRef stride, IntArrayRef padding, IntArrayRef output_padding, int64_t groups,
                                 IntArrayRef dilation, std::string_view algorithm, std::string_view accuracy) {
    const Guard guard(input);
    return bindings::conv_transpose2d(backend, input, weight, bias,
                                      {stride, padding, output_padding, groups, dilation, algorithm, accuracy});
  }

  static std::tuple<Tensor, Tensor> max_pool2d(const Tensor& input, IntArrayRef kernel_size, IntArrayRef stride,
                                               IntArrayRef padding, IntArrayRef dilation, bool ceil_mode) {
    const Guard guard(input);
    return bindings::max_pool2d(backend, input, {kernel_size, stride, padding, dilation, ceil_mode}, true);
  }

  static Tensor max_pool2d_values(const Tensor& input, IntArrayRef kernel_size, IntArrayRef stride,
                                  IntArrayRef padding, IntArrayRef dilation, bool ceil_mode) {
    const Guard guard(input);
    return std::get<0>(
        bindings::max_pool2d(backend, input, {kernel_size, stride, padding, dilation, ceil_mode}, false));
  }

  static Tensor max_pool2d_backward(const Tensor& grad_output, const Tensor& offsets, IntArrayRef input_size,
                                    IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding,
                                    IntArrayRef dilation, bool ceil_mode) {
    const Guard guard(grad_output);
    return bindings::max_pool2d_backward(backend, grad_output, offsets, input_size,
                                         {kernel_size, stride, padding, dilation, ceil_mode});
  }

  static Tensor max_pool2d_gather(const Tensor& input, const Tensor& offsets, IntArrayRef kernel_size,
                                  IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, bool ceil_mode) {
    const Guard guard(input);
    return bindings::max_pool2d_gather(backend, input, offsets, {kernel_size, stride, padding, dilation, ceil_mode});
  }

  static Tensor max_pool2d_indices(const Tensor& offsets, IntArrayRef input_size, IntArrayRef kernel_size,
                                   IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, bool ceil_mode) {
    const Guard guard(offsets);
    return bindings::max_pool2d_indices(backend, offsets, input_size,
                                        {kernel_size, stride, padding, dilation, ceil_mode});
  }

  static Tensor avg_pool2d(const Tensor& input, IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding,
                           bool ceil_mode, bool count_include_pad, std::optional<int64_t> divisor_override) {
    const Guard guard(input);
    return bindings::avg_pool2d(
        backend, input, {kernel_size, stride, padding, {}, ceil_mode, count_include_pad, divisor_override});
  }

  static Tensor avg_pool2d_backward(const Tensor& grad_output, IntArrayRef input_size, IntArrayRef kernel_size,
                                    IntArrayRef stride, IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                                    std::optional<int64_t> divisor_override) {
    const Guard guard(grad_output);
    return bindings::avg_pool2d_backward(
        backend, grad_output, input_size,
        {kernel_size, stride, padding, {}, ceil_mode, count_include_pad, divisor_override});
  }

  static std::tuple<Tensor, Tensor> adaptive_max_pool2d(const Tensor& input, IntArrayRef output_size) {
    const Guard guard(input);
    return bindings::max_pool2d(backend, input, PoolArguments::adaptive(output_size), true);
  }

  static Tensor adaptive_max_pool2d_values(const Tensor& input, IntArrayRef output_size) {
    const Guard guard(input);
    return std::get<0>(bindings::max_pool2d(backend, input, PoolArguments::adaptive(output_size), false));
  }

  static Tensor adaptive_max_pool2d_backward(const Tensor& grad_output, const Tensor& offsets, IntArrayRef input_size,
                                             IntArrayRef output_size) {
    const Guard guard(grad_output);
    return bindings::max_pool2d_backward(backend, grad_output, offsets, input_size,
                                         PoolArguments::adaptive(output_size));
  }

  static Tensor adaptive_max_pool2d_gather(const Tensor& input, const Tensor& offsets, IntArrayRef output_size) {
    const Guard guard(input);
    return bindings::max_pool2d_gather(backend, input, offsets, PoolArguments::adaptive(output_size));
  }

  static Tensor adaptive_max_pool2d_indices(const Tensor& offsets, IntArrayRef input_size, IntArrayRef output_size) {
    const Guard guard(offsets);
    return bindings::max_pool2d_indices(backend, offsets, input_size, PoolArguments::adaptive(output_size));
  }

  static Tensor adaptive_avg_pool2d(const Tensor& input, IntArrayRef output_size) {
    const Guard guard(input);
    return bindings::avg_pool2d(backend, input, PoolArguments::adaptive(output_size));
  }

  static Tensor adaptive_avg_pool2d_backward(const Tensor& grad_output, IntArrayRef input_size,
                                             IntArrayRef output_size) {
    const Guard guard(grad_output);
    return bindings::avg_pool2d_backward(backend, grad_output, input_size, PoolArguments::adaptive(output_size));
  }

  static PoolArguments lp(double norm_type, IntArrayRef kernel_size, IntArrayRef stride, bool ceil_mode) {
    static constexpr int64_t kNone[2] = {0, 0};
    return {kernel_size, stride, kNone, {}, ceil_mode, true, {}, norm_type};
  }

  static Tensor lp_pool2d(const Tensor& input, double norm_type, IntArrayRef kernel_size, IntArrayRef stride,
                          bool ceil_mode) {
    const Guard guard(input);
    return bindings::lp_pool2d(backend, input, lp(norm_type, kernel_size, stride, ceil_mode));
  }

  static Tensor lp_pool2d_backward(const Tensor& grad_output, const Tensor& input, const Tensor& output,
                                   double norm_type, IntArrayRef kernel_size, IntArrayRef stride, bool ceil_mode) {
    const Guard guard(grad_output);
    return bindings::lp_pool2d_backward(backend, grad_output, input, output,
                                        lp(norm_type, kernel_size, stride, ceil_mode));
  }

  static void implement(torch::Library& m) {
    m.impl("conv2d", &conv2d);
    m.impl("conv2d_max_pool2d", &conv2d_max_pool2d);
    m.impl("conv2d_batch_norm", &conv2d_batch_norm);
    m.impl("conv2d_grad_input", &conv2d_grad_input);
    m.impl("conv2d_grad_weight", &conv2d_grad_weight);
    m.impl("conv_transpose2d", &conv_transpose2d);
    m.impl("max_pool2d", &max_pool2d);
    m.impl("max_pool2d_values", &max_pool2d_values);
    m.impl("max_pool2d_backward", &max_pool2d_backward);
    m.impl("max_pool2d_gather", &max_pool2d_gather);
    m.impl("max_pool2d_indices", &max_pool2d_indices);
    m.impl("avg_pool2d", &avg_pool2d);
    m.impl("avg_pool2d_backward", &avg_pool2d_backward);
    m.impl("adaptive_max_pool2d", &adaptive_max_pool2d);
    m.impl("adaptive_max_pool2d_values", &adaptive_max_pool2d_values);
    m.impl("adaptive_max_pool2d_backward", &adaptive_max_pool2d_backward);
    m.impl("adaptive_max_pool2d_gather", &adaptive_max_pool2d_gather);
    m.impl("adaptive_max_pool2d_indices", &adaptive_max_pool2d_indices);
    m.impl("adaptive_avg_pool2d", &adaptive_avg_pool2d);
    m.impl("adaptive_avg_pool2d_backward", &adaptive_avg_pool2d_backward);
    m.impl("lp_pool2d", &lp_pool2d);
    m.impl("lp_pool2d_backward", &lp_pool2d_backward);
  }
};

}  // namespace fastconv::bindings
