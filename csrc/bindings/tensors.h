// From tensors to problems and pointers: the operators without a device.
//
// Each function here checks its arguments completely (nothing below trusts less than a checked problem), allocates
// the result in torch's memory format and hands problem and pointers to a backend. Messages are torch's where torch
// has one; those that begin with "fastconv: " are our own, and the Python side passes them on as they are.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <tuple>

#include "../core/table.h"

namespace fastconv::bindings {

using at::IntArrayRef;
using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// What a dispatch key adds: the device, and how to run a problem on it.
struct Backend {
  Device device;
  // `weight` is the tensor behind operands.weight, so that its transformed form can be kept; undefined in grad_weight.
  void (*run_conv)(const ConvProblem&, const ConvOperands&, const Tensor& weight, std::string_view algorithm);
  void (*run_pool)(const PoolProblem&, const PoolOperands&);
  // Whether a convolution with a fused max-pool runs as such on this device, or better as two kernels.
  bool (*fuses_max_pool)(const ConvProblem&, std::string_view algorithm);
  // Positions in the input's plane that window offsets stand for; y_strides are those of `indices`.
  void (*write_indices)(const PoolProblem&, const void* offsets, int64_t* indices);
};

DType dtype_of(const Tensor&, const char* op);
Strides4 strides_of(const Tensor&);
uint8_t alignment_of(const Tensor&);  // log2 of bytes, as a problem holds it
at::MemoryFormat format_of(const Tensor&);
// A tensor for a result, on the CPU in huge pages if it is large.
Tensor empty_result(IntArrayRef sizes, const at::TensorOptions& options, at::MemoryFormat format);
void check_list(IntArrayRef values, size_t count, const char* name);
// `tensor` must live where `like` does, and hold the same dtype.
void check_same_kind(const Tensor& tensor, const char* name, const Tensor& like, const char* like_name);
void check_sizes(const Tensor& tensor, const Sizes4& sizes, const char* name);

// Arguments that the three passes of a convolution share. padding: top, left, bottom, right.
struct ConvArguments {
  IntArrayRef stride, padding, dilation;
  int64_t groups;
  std::string_view activation, algorithm, accuracy;
};

Tensor conv2d(const Backend&, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
              const OptionalTensor& residual, const ConvArguments&);

// A BatchNorm in eval mode: y -> (y - mean) * gamma / sqrt(variance + epsilon) + beta, for each filter.
struct Normalisation {
  const Tensor &mean, &variance;
  const OptionalTensor &gamma, &beta;
  double epsilon;
};
Tensor conv2d_batch_norm(const Backend&, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                         const OptionalTensor& residual, const Normalisation&, const ConvArguments&);
// max_pool2d(conv2d(...), 2), values only, in one kernel where that is faster.
Tensor conv2d_max_pool2d(const Backend&, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                         const ConvArguments&);
Tensor conv2d_grad_input(const Backend&, const Tensor& grad_output, const Tensor& weight, const OptionalTensor& output,
                         IntArrayRef input_size, const ConvArguments&);
std::tuple<Tensor, Tensor> conv2d_grad_weight(const Backend&, const Tensor& input, const Tensor& grad_output,
                                              const OptionalTensor& output, IntArrayRef weight_size, bool bias,
                                              const ConvArguments&);

// The input plays a convolution's grad_output. padding: height, width.
struct TransposedArguments {
  IntArrayRef stride, padding, output_padding;
  int64_t groups;
  IntArrayRef dilation;
  std::string_view algorithm, accuracy;
};

Tensor conv_transpose2d(const Backend&, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                        const TransposedArguments&);

struct PoolArguments {
  IntArrayRef kernel_size, stride, padding, dilation;
  bool ceil_mode = false;
  bool count_include_pad = true;
  std::optional<int64_t> divisor_override = {};
  double norm = 0;
  std::optional<IntArrayRef> output_size = {};  // adaptive pools: they have nothing else

  static PoolArguments adaptive(IntArrayRef output_size) {
    PoolArguments a;
    a.output_size = output_size;
    return a;
  }
};

// offsets is undefined unless wanted.
std::tuple<Tensor, Tensor> max_pool2d(const Backend&, const Tensor& input, const PoolArguments&, bool want_offsets);
Tensor max_pool2d_backward(const Backend&, const Tensor& grad_output, const Tensor& offsets, IntArrayRef input_size,
                           const PoolArguments&);
Tensor max_pool2d_gather(const Backend&, const Tensor& input, const Tensor& offsets, const PoolArguments&);
Tensor max_pool2d_indices(const Backend&, const Tensor& offsets, IntArrayRef input_size, const PoolArguments&);
Tensor avg_pool2d(const Backend&, const Tensor& input, const PoolArguments&);
Tensor avg_pool2d_backward(const Backend&, const Tensor& grad_output, IntArrayRef input_size, const PoolArguments&);
Tensor lp_pool2d(const Backend&, const Tensor& input, const PoolArguments&);
Tensor lp_pool2d_backward(const Backend&, const Tensor& grad_output, const Tensor& input, const Tensor& output,
                          const PoolArguments&);

}  // namespace fastconv::bindings
