// The operators on the CPU: torch's threads and memory for the CPU rows. Arguments as in schema.cpp.
#pragma once

#include "tensors.h"

namespace fastconv::bindings {

Tensor cpu_conv2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                  const OptionalTensor& residual, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                  int64_t groups, std::string_view activation, std::string_view algorithm, std::string_view accuracy);
Tensor cpu_conv2d_grad_input(const Tensor& grad_output, const Tensor& weight, const OptionalTensor& output,
                             IntArrayRef input_size, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                             int64_t groups, std::string_view activation, std::string_view algorithm,
                             std::string_view accuracy);
std::tuple<Tensor, Tensor> cpu_conv2d_grad_weight(const Tensor& input, const Tensor& grad_output,
                                                  const OptionalTensor& output, IntArrayRef weight_size, bool bias,
                                                  IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                                                  int64_t groups, std::string_view activation,
                                                  std::string_view algorithm, std::string_view accuracy);
std::tuple<Tensor, Tensor> cpu_max_pool2d(const Tensor& input, IntArrayRef kernel_size, IntArrayRef stride,
                                          IntArrayRef padding, IntArrayRef dilation, bool ceil_mode);
Tensor cpu_max_pool2d_values(const Tensor& input, IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding,
                             IntArrayRef dilation, bool ceil_mode);
Tensor cpu_max_pool2d_backward(const Tensor& grad_output, const Tensor& offsets, IntArrayRef input_size,
                               IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                               bool ceil_mode);
Tensor cpu_max_pool2d_gather(const Tensor& input, const Tensor& offsets, IntArrayRef kernel_size, IntArrayRef stride,
                             IntArrayRef padding, IntArrayRef dilation, bool ceil_mode);
Tensor cpu_max_pool2d_indices(const Tensor& offsets, IntArrayRef input_size, IntArrayRef kernel_size,
                              IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, bool ceil_mode);
Tensor cpu_avg_pool2d(const Tensor& input, IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding,
                      bool ceil_mode, bool count_include_pad, std::optional<int64_t> divisor_override);
Tensor cpu_avg_pool2d_backward(const Tensor& grad_output, IntArrayRef input_size, IntArrayRef kernel_size,
                               IntArrayRef stride, IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                               std::optional<int64_t> divisor_override);

}  // namespace fastconv::bindings
