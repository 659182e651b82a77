// The operators torch.ops.fastconv.*: functional, their results never alias an argument.
//
// `padding` of a convolution has four entries: top, left, bottom, right. Every other list has two: height, width.
// `activation` is a word of core/activation.cpp, e.g. "none", "relu", "leaky_relu:0.2".
// The algorithm and the accuracy class travel as arguments, because a thread-local would reach neither backward's
// threads nor compiled graphs.
#include <ATen/core/enum_tag.h>
#include <torch/library.h>

TORCH_LIBRARY(fastconv, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def(
      "conv2d(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, SymInt[] stride, SymInt[] padding, "
      "SymInt[] dilation, SymInt groups, str activation, str algorithm, str accuracy) -> Tensor",
      tags);
  // max_pool2d(conv2d(...), 2), for inference.
  m.def(
      "conv2d_max_pool2d(Tensor input, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, "
      "SymInt[] dilation, SymInt groups, str activation, str algorithm, str accuracy) -> Tensor",
      tags);
  // act(BatchNorm2d in eval mode (conv2d) + residual), for inference: gamma and beta are the BatchNorm's weight and bias.
  m.def(
      "conv2d_batch_norm(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, Tensor running_mean, "
      "Tensor running_var, Tensor? gamma, Tensor? beta, float eps, SymInt[] stride, SymInt[] padding, "
      "SymInt[] dilation, SymInt groups, str activation, str algorithm, str accuracy) -> Tensor",
      tags);
  // `output` is the forward's, given if and only if there is an activation: grad_output is masked by it on the fly.
  m.def(
      "conv2d_grad_input(Tensor grad_output, Tensor weight, Tensor? output, SymInt[] input_size, SymInt[] stride, "
      "SymInt[] padding, SymInt[] dilation, SymInt groups, str activation, str algorithm, str accuracy) -> Tensor",
      tags);
  // The second result is grad_bias, of no elements unless `bias`.
  m.def(
      "conv2d_grad_weight(Tensor input, Tensor grad_output, Tensor? output, SymInt[] weight_size, bool bias, "
      "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups, str activation, str algorithm, "
      "str accuracy) -> (Tensor, Tensor)",
      tags);
  m.def(
      "conv_transpose2d(Tensor input, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, "
      "SymInt[] output_padding, SymInt groups, SymInt[] dilation, str algorithm, str accuracy) -> Tensor",
      tags);
  // `offsets` names the chosen element of each window, r * S + s, in 8, 16 or 32 bits; all ones: none.
  m.def(
      "max_pool2d(Tensor input, SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation, "
      "bool ceil_mode) -> (Tensor output, Tensor offsets)",
      tags);
  m.def(
      "max_pool2d_values(Tensor input, SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation, "
      "bool ceil_mode) -> Tensor",
      tags);
  m.def(
      "max_pool2d_backward(Tensor grad_output, Tensor offsets, SymInt[] input_size, SymInt[] kernel_size, "
      "SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool ceil_mode) -> Tensor",
      tags);
  // The transpose of max_pool2d_backward: picks input at the offsets, 0 where there is none.
  m.def(
      "max_pool2d_gather(Tensor input, Tensor offsets, SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, "
      "SymInt[] dilation, bool ceil_mode) -> Tensor",
      tags);
  // Positions in the input's plane, as torch counts them; -1 where there is none.
  m.def(
      "max_pool2d_indices(Tensor offsets, SymInt[] input_size, SymInt[] kernel_size, SymInt[] stride, "
      "SymInt[] padding, SymInt[] dilation, bool ceil_mode) -> Tensor",
      tags);
  m.def(
      "avg_pool2d(Tensor input, SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, bool ceil_mode, "
      "bool count_include_pad, SymInt? divisor_override) -> Tensor",
      tags);
  m.def(
      "avg_pool2d_backward(Tensor grad_output, SymInt[] input_size, SymInt[] kernel_size, SymInt[] stride, "
      "SymInt[] padding, bool ceil_mode, bool count_include_pad, SymInt? divisor_override) -> Tensor",
      tags);
  // Window i of `out` along an axis of `in` elements covers [floor(i * in / out), ceil((i + 1) * in / out)). Offsets
  // count from the window's begin, in rows of the largest window.
  m.def("adaptive_max_pool2d(Tensor input, SymInt[] output_size) -> (Tensor output, Tensor offsets)", tags);
  m.def("adaptive_max_pool2d_values(Tensor input, SymInt[] output_size) -> Tensor", tags);
  m.def(
      "adaptive_max_pool2d_backward(Tensor grad_output, Tensor offsets, SymInt[] input_size, SymInt[] output_size) "
      "-> Tensor",
      tags);
  m.def("adaptive_max_pool2d_gather(Tensor input, Tensor offsets, SymInt[] output_size) -> Tensor", tags);
  m.def("adaptive_max_pool2d_indices(Tensor offsets, SymInt[] input_size, SymInt[] output_size) -> Tensor", tags);
  m.def("adaptive_avg_pool2d(Tensor input, SymInt[] output_size) -> Tensor", tags);
  m.def("adaptive_avg_pool2d_backward(Tensor grad_output, SymInt[] input_size, SymInt[] output_size) -> Tensor", tags);
  m.def("lp_pool2d(Tensor input, float norm_type, SymInt[] kernel_size, SymInt[] stride, bool ceil_mode) -> Tensor",
        tags);
  // `input` and `output` are the forward's.
  m.def(
      "lp_pool2d_backward(Tensor grad_output, Tensor input, Tensor output, float norm_type, SymInt[] kernel_size, "
      "SymInt[] stride, bool ceil_mode) -> Tensor",
      tags);
}
