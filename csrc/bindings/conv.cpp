#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>

#include "tensors.h"

namespace fastconv::bindings {
namespace {

using Wide = __int128;                    // no sum or product of three int64 overflows it
constexpr Wide kLargest = Wide{1} << 62;  // bounds what the problem's own formulas add up, so that they cannot overflow

void take_activation(ConvProblem& p, std::string_view word) {
  TORCH_CHECK_VALUE(read_activation(word, p.activation, p.activation_parameter), "fastconv: unknown activation '", word,
                    "'; known are: ", activation_names());
  const double parameter = p.activation_parameter.value();
  TORCH_CHECK_VALUE(parameter >= 0 && std::isfinite(parameter), "fastconv: the parameter of activation '", word,
                    "' must be finite and at least 0");
}

Accuracy accuracy_of(std::string_view text) {
  if (text == "torch") return Accuracy::torch;
  if (text == "fast") return Accuracy::fast;
  if (text == "fastest") return Accuracy::fastest;
  TORCH_CHECK_VALUE(false, "fastconv: unknown accuracy class '", text, "'; known are: torch, fast, fastest");
}

bool all_at_least(IntArrayRef values, int64_t least) {
  for (int64_t v : values)
    if (v < least) return false;
  return true;
}

// What is common to the passes: everything but dtype, strides, alignments, pass, bias and residual.
ConvProblem geometry(IntArrayRef x, IntArrayRef weight, const ConvArguments& a) {
  TORCH_CHECK(x.size() == 4, "Expected 3D (unbatched) or 4D (batched) input to conv2d, but got input of size: ", x);
  TORCH_CHECK(weight.size() == 4, "expected a weight of 4 dimensions, but got weight of size ", weight);
  check_list(a.stride, 2, "stride");
  check_list(a.dilation, 2, "dilation");
  check_list(a.padding, 4, "padding");
  TORCH_CHECK(all_at_least(a.padding, 0), "negative padding is not supported");
  TORCH_CHECK(all_at_least(a.stride, 1), "non-positive stride is not supported");
  TORCH_CHECK(all_at_least(a.dilation, 1), "dilation should be greater than zero");
  TORCH_CHECK(a.groups > 0, "non-positive groups is not supported");
  TORCH_CHECK(all_at_least(x, 0) && all_at_least(weight, 0), "expected sizes of at least 0, but got input of size ", x,
              " and weight of size ", weight);
  TORCH_CHECK(weight[0] >= a.groups, "Given groups=", a.groups, ", expected weight to be at least ", a.groups,
              " at dimension 0, but got weight of size ", weight, " instead");
  TORCH_CHECK(weight[0] % a.groups == 0, "Given groups=", a.groups, ", expected weight to be divisible by ", a.groups,
              " at dimension 0, but got weight of size [", weight, "] instead");
  TORCH_CHECK(Wide{weight[1]} * a.groups == x[1], "Given groups=", a.groups, ", weight of size ", weight,
              ", expected input", x, " to have ", weight[1], " x ", a.groups, " channels, but got ", x[1],
              " channels instead");
  for (int i = 0; i < 2; ++i) {
    const Wide padded = Wide{x[2 + i]} + a.padding[i] + a.padding[2 + i];
    const Wide window = Wide{a.dilation[i]} * (weight[2 + i] - 1) + 1;
    TORCH_CHECK(padded < kLargest && window < kLargest && a.stride[i] < kLargest,
                "fastconv: padded input, window or stride beyond 2^62: input of size ", x, ", weight of size ", weight,
                ", stride=", a.stride, ", padding=", a.padding, ", dilation=", a.dilation);
    TORCH_CHECK(padded >= window, "Calculated padded input size per channel: (", x[2] + a.padding[0] + a.padding[2],
                " x ", x[3] + a.padding[1] + a.padding[3], "). Kernel size: (", a.dilation[0] * (weight[2] - 1) + 1,
                " x ", a.dilation[1] * (weight[3] - 1) + 1, "). Kernel size can't be greater than actual input size");
  }
  TORCH_CHECK(weight[2] > 0 && weight[3] > 0, "fastconv: a kernel of ", weight[2], " x ", weight[3],
              " has no elements: expected weight to be at least 1 x 1 at dimensions 2 and 3");
  TORCH_CHECK(x[2] > 0 && x[3] > 0, "Only zero batch or zero channel inputs are supported, but got input shape: ", x);
  ConvProblem p;
  p.n = x[0], p.c = x[1], p.h = x[2], p.w = x[3];
  p.k = weight[0], p.r = weight[2], p.s = weight[3];
  p.stride_h = a.stride[0], p.stride_w = a.stride[1];
  p.pad_top = a.padding[0], p.pad_left = a.padding[1], p.pad_bottom = a.padding[2], p.pad_right = a.padding[3];
  p.dilation_h = a.dilation[0], p.dilation_w = a.dilation[1];
  p.groups = a.groups;
  take_activation(p, a.activation);
  p.accuracy = accuracy_of(a.accuracy);
  p.deterministic = at::globalContext().deterministicAlgorithms();
  return p;
}

// torch's rule for no input channels: the output has none either.
Sizes4 output_sizes(const ConvProblem& p) { return {p.n, p.c == 0 ? 0 : p.k, p.p(), p.q()}; }

at::MemoryFormat format_of_either(const Tensor& a, const Tensor& b) {
  const bool last = format_of(a) == at::MemoryFormat::ChannelsLast || format_of(b) == at::MemoryFormat::ChannelsLast;
  return last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

// Gradient passes read grad_output, and the forward's output as its mask.
void take_grad_output(ConvProblem& p, ConvOperands& o, const Tensor& grad_output, const OptionalTensor& output) {
  check_sizes(grad_output, output_sizes(p), "grad_output");
  TORCH_CHECK_VALUE(differentiable_from_output(p.activation), "fastconv: the gradient of ", name(p.activation),
                    " does not follow from its output");
  TORCH_CHECK_VALUE(output.has_value() == (p.activation != Activation::none),
                    "fastconv: expected output with an activation, and only then");
  if (output) {
    check_same_kind(*output, "output", grad_output, "grad_output");
    check_sizes(*output, output_sizes(p), "output");
    p.aux_strides = strides_of(*output);
    o.aux = output->const_data_ptr();
  }
  p.dtype = dtype_of(grad_output, "conv2d");
  p.y_strides = strides_of(grad_output);
  p.y_align = alignment_of(grad_output);
  o.y = const_cast<void*>(grad_output.const_data_ptr());
}

// A view of a bias may repeat or skip elements; kernels read it in one piece.
Tensor contiguous_bias(const Tensor& bias, int64_t size, const Tensor& weight, const Tensor& input) {
  TORCH_CHECK(bias.dim() == 1 && bias.size(0) == size, "Given weight of size ", weight.sizes(),
              ", expected bias to be 1-dimensional with ", size, " elements, but got bias of size ", bias.sizes(),
              " instead");
  check_same_kind(bias, "bias", input, "input");
  return bias.contiguous();
}

// scale: of the type that sums have, or undefined. With max_pool the result is undefined if that is no work for
// one kernel.
Tensor convolve(const Backend& backend, const Tensor& input, const Tensor& weight, const Tensor& scale,
                const OptionalTensor& bias, const OptionalTensor& residual, const ConvArguments& a,
                bool max_pool = false) {
  ConvProblem p = geometry(input.sizes(), weight.sizes(), a);
  p.dtype = dtype_of(input, "conv2d");
  check_same_kind(weight, "weight", input, "input");
  Sizes4 sizes = output_sizes(p);
  ConvOperands o;
  Tensor own_bias;
  if (scale.defined()) {
    o.scale = scale.const_data_ptr();
    p.scale = 1;
  }
  if (bias) {
    own_bias = contiguous_bias(*bias, p.k, weight, input);
    o.bias = own_bias.const_data_ptr();
    p.bias = 1;
  }
  if (residual) {
    check_same_kind(*residual, "residual", input, "input");
    TORCH_CHECK(residual->sizes() == IntArrayRef(sizes), "fastconv: expected a residual of the output's size ",
                IntArrayRef(sizes), ", but got ", residual->sizes());
    p.residual = 1;
    p.aux_strides = strides_of(*residual);
    o.aux = residual->const_data_ptr();
  }
  const at::MemoryFormat format = format_of_either(input, weight);
  p.x_strides = strides_of(input), p.weight_strides = strides_of(weight);
  p.x_align = alignment_of(input), p.weight_align = alignment_of(weight);
  if (max_pool) {
    if (p.n == 0) return {};  // no row is asked about an empty batch; what else is empty or too small, they refuse
    p.max_pool = 1;
    sizes = p.y_sizes();
    p.y_strides = dense_strides(sizes, format == at::MemoryFormat::ChannelsLast ? Layout::nhwc : Layout::nchw);
    p.canonicalise();
    if (!backend.fuses_max_pool(p, a.algorithm)) return {};
  }
  Tensor out = empty_result(sizes, input.options(), format);
  if (out.numel() == 0) return out;
  p.y_strides = strides_of(out);
  p.y_align = alignment_of(out);
  p.canonicalise();
  o.x = const_cast<void*>(input.const_data_ptr());
  o.weight = const_cast<void*>(weight.const_data_ptr());
  o.y = out.mutable_data_ptr();
  backend.run_conv(p, o, weight, a.algorithm);
  return out;
}

// One of a BatchNorm's vectors in the type that sums have.
Tensor statistic(const Tensor& vector, const char* name, int64_t filters, const Tensor& input, at::ScalarType type) {
  TORCH_CHECK(vector.dim() == 1 && vector.size(0) == filters, name, " should contain ", filters, " elements not ",
              vector.numel());
  TORCH_CHECK(vector.device() == input.device() && vector.is_floating_point() && vector.layout() == at::kStrided,
              "fastconv: expected ", name, " to be dense, of a floating point type and on ", input.device(),
              ", but it is ", vector.layout(), ", ", vector.scalar_type(), ", on ", vector.device());
  return vector.to(type).contiguous();
}

}  // namespace

Tensor conv2d(const Backend& backend, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
              const OptionalTensor& residual, const ConvArguments& a) {
  return convolve(backend, input, weight, {}, bias, residual, a);
}

Tensor conv2d_max_pool2d(const Backend& backend, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                         const ConvArguments& a) {
  Tensor fused = convolve(backend, input, weight, {}, bias, {}, a, true);
  if (fused.defined()) return fused;
  static constexpr int64_t kWindow[2] = {2, 2}, kNone[2] = {0, 0}, kOne[2] = {1, 1};
  const Tensor between = convolve(backend, input, weight, {}, bias, {}, a);
  return std::get<0>(max_pool2d(backend, between, {kWindow, kWindow, kNone, kOne}, false));
}

Tensor conv2d_batch_norm(const Backend& backend, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                         const OptionalTensor& residual, const Normalisation& norm, const ConvArguments& a) {
  TORCH_CHECK(input.is_floating_point(), "fastconv: expected an input of a floating point type, but got ",
              input.scalar_type());
  TORCH_CHECK(weight.dim() == 4, "expected a weight of 4 dimensions, but got weight of size ", weight.sizes());
  const auto type = input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto of = [&](const Tensor& t, const char* name) { return statistic(t, name, weight.size(0), input, type); };
  Tensor scale = of(norm.variance, "running_var").add(norm.epsilon).rsqrt_();
  if (norm.gamma) scale.mul_(of(*norm.gamma, "weight"));
  Tensor shift = of(norm.mean, "running_mean").neg();
  if (bias) shift.add_(contiguous_bias(*bias, weight.size(0), weight, input));
  shift.mul_(scale);
  if (norm.beta) shift.add_(of(*norm.beta, "bias"));
  return convolve(backend, input, weight, scale, shift.to(input.scalar_type()), residual, a);
}

Tensor conv2d_grad_input(const Backend& backend, const Tensor& grad_output, const Tensor& weight,
                         const OptionalTensor& output, IntArrayRef input_size, const ConvArguments& a) {
  ConvProblem p = geometry(input_size, weight.sizes(), a);
  p.pass = Pass::grad_input;
  check_same_kind(weight, "weight", grad_output, "grad_output");
  ConvOperands o;
  take_grad_output(p, o, grad_output, output);
  Tensor out = empty_result(input_size, grad_output.options(), format_of_either(grad_output, weight));
  if (out.numel() == 0) return out;
  p.x_strides = strides_of(out), p.weight_strides = strides_of(weight);
  p.x_align = alignment_of(out), p.weight_align = alignment_of(weight);
  p.canonicalise();
  o.x = out.mutable_data_ptr();
  o.weight = const_cast<void*>(weight.const_data_ptr());
  backend.run_conv(p, o, weight, a.algorithm);
  return out;
}

std::tuple<Tensor, Tensor> conv2d_grad_weight(const Backend& backend, const Tensor& input, const Tensor& grad_output,
                                              const OptionalTensor& output, IntArrayRef weight_size, bool bias,
                                              const ConvArguments& a) {
  ConvProblem p = geometry(input.sizes(), weight_size, a);
  p.pass = Pass::grad_weight;
  p.bias = bias;
  check_same_kind(grad_output, "grad_output", input, "input");
  ConvOperands o;
  take_grad_output(p, o, grad_output, output);
  Tensor out = empty_result(weight_size, input.options(), format_of_either(input, grad_output));
  Tensor grad_bias = at::empty({bias ? p.k : 0}, input.options());
  if (input.numel() == 0) return {out.zero_(), grad_bias.zero_()};
  p.x_strides = strides_of(input), p.weight_strides = strides_of(out);
  p.x_align = alignment_of(input), p.weight_align = alignment_of(out);
  p.canonicalise();
  o.x = const_cast<void*>(input.const_data_ptr());
  o.weight = out.mutable_data_ptr();
  if (bias) o.grad_bias = grad_bias.mutable_data_ptr();
  backend.run_conv(p, o, {}, a.algorithm);
  return {std::move(out), std::move(grad_bias)};
}

// The gradient of a convolution whose output is our input. That convolution pads one side less where output_padding
// reaches its stride, which only a dilation allows; rows and columns beyond the padding hold the bias alone.
Tensor conv_transpose2d(const Backend& backend, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                        const TransposedArguments& a) {
  const IntArrayRef x = input.sizes(), w = weight.sizes();
  TORCH_CHECK(x.size() == 4,
              "Expected 3D (unbatched) or 4D (batched) input to conv_transpose2d, but got input of size: ", x);
  TORCH_CHECK(w.size() == 4, "expected a weight of 4 dimensions, but got weight of size ", w);
  check_list(a.stride, 2, "stride");
  check_list(a.padding, 2, "padding");
  check_list(a.output_padding, 2, "output_padding");
  check_list(a.dilation, 2, "dilation");
  TORCH_CHECK(all_at_least(a.stride, 1), "non-positive stride is not supported");
  TORCH_CHECK(all_at_least(a.dilation, 1), "dilation should be greater than zero");
  TORCH_CHECK(all_at_least(a.padding, 0), "negative padding is not supported");
  TORCH_CHECK(all_at_least(a.output_padding, 0), "negative output_padding is not supported");
  TORCH_CHECK(a.groups > 0, "non-positive groups is not supported");
  TORCH_CHECK(w[0] == x[1], "Given transposed=1, weight of size ", w, ", expected input", x, " to have ", w[0],
              " channels, but got ", x[1], " channels instead");
  TORCH_CHECK(x[2] > 0 && x[3] > 0, "Only zero batch or zero channel inputs are supported, but got input shape: ", x);
  TORCH_CHECK(w[1] > 0 && w[2] > 0 && w[3] > 0, "expected a weight with elements, but got weight of size ", w);
  TORCH_CHECK(Wide{w[1]} * a.groups < kLargest, "fastconv: too many channels: weight of size ", w, ", groups=",
              a.groups);
  Sizes4 sizes{x[0], w[1] * a.groups, 0, 0}, reached = sizes;
  int64_t padding[4];
  for (int i = 0; i < 2; ++i) {
    const int64_t stride = a.stride[i], pad = a.padding[i], more = a.output_padding[i];
    TORCH_CHECK(more < stride || more < a.dilation[i],
                "output padding must be smaller than either stride or dilation, but got output_padding=",
                a.output_padding, ", stride=", a.stride, ", dilation=", a.dilation);
    const Wide whole = Wide{x[2 + i] - 1} * stride + Wide{a.dilation[i]} * (w[2 + i] - 1) + 1 + more;
    TORCH_CHECK(whole < kLargest && pad < kLargest, "fastconv: output beyond 2^62: input of size ", x,
                ", weight of size ", w, ", stride=", a.stride, ", dilation=", a.dilation);
    const int64_t size = static_cast<int64_t>(whole) - 2 * pad;
    const int64_t cut = std::min(pad, std::max<int64_t>(0, more - (stride - 1)));
    const int64_t beyond = std::max<int64_t>(0, more - cut - (stride - 1));
    TORCH_CHECK(size >= 1, "Given input size per channel: (", x[2], " x ", x[3],
                "). Calculated output size per channel is less than 1: Output size is too small");
    TORCH_CHECK(size > beyond, "fastconv: output_padding=", a.output_padding, " and padding=", a.padding,
                " leave nothing of the convolution in the output");
    padding[i] = pad;
    padding[2 + i] = pad - cut;
    sizes[2 + i] = size;
    reached[2 + i] = size - beyond;
  }
  ConvProblem p =
      geometry(reached, w, {a.stride, padding, a.dilation, a.groups, "none", a.algorithm, a.accuracy});
  p.pass = Pass::grad_input;
  const DType type = dtype_of(input, "conv_transpose2d");
  TORCH_CHECK_NOT_IMPLEMENTED(!is_integer(type) || type == DType::i64, "\"conv_transpose2d\" not implemented for '",
                              c10::toString(input.scalar_type()), "'");  // as torch
  check_same_kind(weight, "weight", input, "input");
  ConvOperands o;
  Tensor own_bias;
  if (bias) {
    own_bias = contiguous_bias(*bias, p.c, weight, input);
    o.bias = own_bias.const_data_ptr();
    p.bias = 1;
  }
  Tensor out = empty_result(sizes, input.options(), format_of_either(input, weight));
  if (out.numel() == 0) return out;
  take_grad_output(p, o, input, {});
  Tensor inner = out;
  if (reached != sizes) {
    if (bias)
      out.copy_(own_bias.view({1, -1, 1, 1}));
    else
      out.zero_();
    inner = out.narrow(2, 0, reached[2]).narrow(3, 0, reached[3]);
  }
  p.x_strides = strides_of(inner), p.weight_strides = strides_of(weight);
  p.x_align = alignment_of(inner), p.weight_align = alignment_of(weight);
  p.canonicalise();
  o.x = inner.mutable_data_ptr();
  o.weight = const_cast<void*>(weight.const_data_ptr());
  backend.run_conv(p, o, weight, a.algorithm);
  return out;
}

}  // namespace fastconv::bindings
