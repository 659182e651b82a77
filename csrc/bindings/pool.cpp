#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <limits>

#include "tensors.h"

namespace fastconv::bindings {
namespace {

constexpr int64_t kLargestInt = std::numeric_limits<int32_t>::max();  // torch's pools take ints
constexpr int64_t kLargestSize = int64_t{1} << 62;                    // of the padded input: cannot overflow

void check_pair(IntArrayRef values, int64_t least, const char* name, const char* axes) {
  check_list(values, 2, name);
  TORCH_CHECK(values[0] <= kLargestInt && values[1] <= kLargestInt,
              "value cannot be converted to type int without overflow");
  TORCH_CHECK(values[0] >= least && values[1] >= least, name, " should be greater than zero, but got ", axes, "H: ",
              values[0], " ", axes, "W: ", values[1]);
}

PoolProblem adaptive_geometry(PoolKind kind, IntArrayRef x, IntArrayRef output_size) {
  TORCH_CHECK(x.size() == 4, "Expected 3D or 4D tensor, but got ", x);
  check_list(output_size, 2, "output_size");
  TORCH_CHECK(x[0] >= 0 && x[1] >= (kind == PoolKind::max) && x[2] > 0 && x[3] > 0,  // as different as in torch
              "Expected input to have non-zero size for non-batch dimensions, but input has sizes ", x);
  for (int i = 0; i < 2; ++i) {
    TORCH_CHECK(output_size[i] >= 0, "elements of output_size must be greater than or equal to 0 but received ",
                output_size);
    int64_t last = 0;  // of the products that tell where windows begin and end
    TORCH_CHECK(output_size[i] < kLargestSize && !__builtin_mul_overflow(output_size[i] + 1, x[2 + i], &last) &&
                    last < kLargestSize,
                "windows beyond 2^62: input of size ", x, ", output_size=", output_size);
  }
  PoolProblem p;
  p.kind = kind;
  p.n = x[0], p.c = x[1], p.h = x[2], p.w = x[3];
  p.p = output_size[0], p.q = output_size[1];
  p.adaptive = 1;
  p.fit_adaptive_window();
  return p;
}

PoolProblem geometry(PoolKind kind, IntArrayRef x, const PoolArguments& a) {
  if (a.output_size) return adaptive_geometry(kind, x, *a.output_size);
  TORCH_CHECK(x.size() == 4, "non-empty 3D or 4D (batch mode) tensor expected for input, but got input of size ", x);
  check_pair(a.kernel_size, 1, "kernel size", "k");
  for (int64_t stride : a.stride) TORCH_CHECK(stride != 0, "stride should not be zero");
  check_pair(a.stride, 1, "stride", "d");
  if (kind == PoolKind::max) check_pair(a.dilation, 1, "dilation", "dilation");
  check_list(a.padding, 2, "padding");
  PoolProblem p;
  p.kind = kind;
  p.r = a.kernel_size[0], p.s = a.kernel_size[1];
  p.stride_h = a.stride[0], p.stride_w = a.stride[1];
  if (kind == PoolKind::max) p.dilation_h = a.dilation[0], p.dilation_w = a.dilation[1];
  const int64_t window[2] = {p.dilation_h * (p.r - 1) + 1, p.dilation_w * (p.s - 1) + 1};
  for (int i = 0; i < 2; ++i) {
    TORCH_CHECK(a.padding[i] >= 0, "pad must be non-negative, but got pad: ", a.padding[i]);
    TORCH_CHECK(a.padding[i] <= kLargestInt, "value cannot be converted to type int without overflow");
    TORCH_CHECK(a.padding[i] <= window[i] / 2, "pad should be at most half of effective kernel size, but got pad=",
                a.padding[i], ", kernel_size=", a.kernel_size[i], " and dilation=", i ? p.dilation_w : p.dilation_h);
    TORCH_CHECK(x[2 + i] < kLargestSize, "fastconv: input beyond 2^62: ", x);
  }
  TORCH_CHECK(x[0] >= 0 && x[1] > 0 && x[2] > 0 && x[3] > 0,
              "Expected 3D or 4D (batch mode) tensor with optional 0 dim batch size for input, but got:", x);
  p.pad_top = a.padding[0], p.pad_left = a.padding[1];
  p.n = x[0], p.c = x[1], p.h = x[2], p.w = x[3];
  p.p = PoolProblem::output_size(p.h, p.r, p.stride_h, p.pad_top, p.dilation_h, a.ceil_mode);
  p.q = PoolProblem::output_size(p.w, p.s, p.stride_w, p.pad_left, p.dilation_w, a.ceil_mode);
  TORCH_CHECK(p.p >= 1 && p.q >= 1, "Given input size: (", p.c, "x", p.h, "x", p.w, "). Calculated output size: (", p.c,
              "x", p.p, "x", p.q, "). Output size is too small");
  p.ceil_mode = a.ceil_mode;
  if (kind == PoolKind::avg) {
    p.count_include_pad = a.count_include_pad;
    TORCH_CHECK(a.divisor_override.value_or(1) != 0, "divisor must be not zero");
    p.divisor = a.divisor_override.value_or(0);
  }
  if (kind == PoolKind::lp) {
    TORCH_CHECK_VALUE(a.norm != 0 && std::isfinite(a.norm), "fastconv: norm_type must be a finite number other than 0");
    p.norm = Real::of(a.norm);
  }
  return p;
}

// The narrowest integer that counts the window's positions and one more, "none".
at::ScalarType offsets_type(const PoolProblem& p) {
  const int64_t positions = p.r * p.s;  // both below 2^31
  TORCH_CHECK(positions <= kLargestInt, "fastconv: a window of ", p.r, " x ", p.s, " has more than 2^31 - 1 positions");
  return positions <= 255 ? at::kByte : positions <= 65535 ? at::kShort : at::kInt;
}

uint8_t bytes_of(at::ScalarType offsets) { return offsets == at::kByte ? 1 : offsets == at::kShort ? 2 : 4; }

void take_offsets(PoolProblem& p, PoolOperands& o, const Tensor& offsets, const Tensor& like) {
  const auto type = offsets_type(p);
  TORCH_CHECK(offsets.scalar_type() == type, "fastconv: expected offsets of type ", c10::toString(type),
              " for a window of ", p.r, " x ", p.s, ", but got ", c10::toString(offsets.scalar_type()));
  TORCH_CHECK(offsets.device() == like.device() && offsets.layout() == at::kStrided,
              "fastconv: expected offsets on ", like.device());
  check_sizes(offsets, p.y_sizes(), "offsets");
  p.offset_bytes = bytes_of(type);
  p.offset_strides = strides_of(offsets);
  o.offsets = const_cast<void*>(offsets.const_data_ptr());
}

// torch has these pools for floating types only.
DType floating_type(const Tensor& tensor, const char* op) {
  const DType type = dtype_of(tensor, op);
  TORCH_CHECK_NOT_IMPLEMENTED(!is_integer(type), '"', op, "\" not implemented for '",
                              c10::toString(tensor.scalar_type()), "'");
  return type;
}

DType compared_type(const Tensor& tensor, const char* op, const PoolArguments& a) {
  return a.output_size ? floating_type(tensor, "adaptive_max_pool2d") : dtype_of(tensor, op);
}

// torch averages these types only; a sum of the others would overflow quietly.
DType averaged_type(const Tensor& tensor, const PoolArguments& a) {
  if (a.output_size) return floating_type(tensor, "adaptive_avg_pool2d");
  const DType type = dtype_of(tensor, "avg_pool2d");
  TORCH_CHECK_NOT_IMPLEMENTED(!is_integer(type) || type == DType::i64, "\"avg_pool2d\" not implemented for '",
                              c10::toString(tensor.scalar_type()), "'");
  return type;
}

// Reads `in`, writes a new tensor in the same memory format. Both passes and the gather look like this.
Tensor run(const Backend& backend, PoolProblem& p, PoolOperands& o, const Tensor& in) {
  const bool forward = p.pass != Pass::grad_input;
  Tensor out = empty_result(forward ? p.y_sizes() : p.x_sizes(), in.options(), format_of(in));
  if (out.numel() == 0) return out;
  if (in.numel() == 0) return out.zero_();  // an adaptive pool without windows sends nothing back
  p.x_strides = strides_of(forward ? in : out);
  p.y_strides = strides_of(forward ? out : in);
  p.canonicalise();
  o.x = forward ? const_cast<void*>(in.const_data_ptr()) : out.mutable_data_ptr();
  o.y = forward ? out.mutable_data_ptr() : const_cast<void*>(in.const_data_ptr());
  backend.run_pool(p, o);
  return out;
}

}  // namespace

std::tuple<Tensor, Tensor> max_pool2d(const Backend& backend, const Tensor& input, const PoolArguments& a,
                                      bool want_offsets) {
  PoolProblem p = geometry(PoolKind::max, input.sizes(), a);
  p.dtype = compared_type(input, "max_pool2d", a);
  PoolOperands o;
  Tensor offsets;
  if (want_offsets) {
    offsets = at::empty(p.y_sizes(), input.options().dtype(offsets_type(p)), format_of(input));
    take_offsets(p, o, offsets, input);
  }
  Tensor out = run(backend, p, o, input);
  return {std::move(out), std::move(offsets)};
}

Tensor max_pool2d_backward(const Backend& backend, const Tensor& grad_output, const Tensor& offsets,
                           IntArrayRef input_size, const PoolArguments& a) {
  PoolProblem p = geometry(PoolKind::max, input_size, a);
  p.pass = Pass::grad_input;
  p.dtype = compared_type(grad_output, "max_pool2d_backward", a);
  check_sizes(grad_output, p.y_sizes(), "grad_output");
  PoolOperands o;
  take_offsets(p, o, offsets, grad_output);
  return run(backend, p, o, grad_output);
}

Tensor max_pool2d_gather(const Backend& backend, const Tensor& input, const Tensor& offsets, const PoolArguments& a) {
  PoolProblem p = geometry(PoolKind::max, input.sizes(), a);
  p.pass = Pass::gather;
  p.dtype = compared_type(input, "max_pool2d_gather", a);
  PoolOperands o;
  take_offsets(p, o, offsets, input);
  return run(backend, p, o, input);
}

Tensor max_pool2d_indices(const Backend& backend, const Tensor& offsets, IntArrayRef input_size,
                          const PoolArguments& a) {
  PoolProblem p = geometry(PoolKind::max, input_size, a);
  PoolOperands o;
  take_offsets(p, o, offsets, offsets);
  Tensor indices = at::empty(p.y_sizes(), offsets.options().dtype(at::kLong), format_of(offsets));
  if (indices.numel() == 0) return indices;
  p.y_strides = strides_of(indices);
  backend.write_indices(p, o.offsets, indices.mutable_data_ptr<int64_t>());
  return indices;
}

Tensor avg_pool2d(const Backend& backend, const Tensor& input, const PoolArguments& a) {
  PoolProblem p = geometry(PoolKind::avg, input.sizes(), a);
  p.dtype = averaged_type(input, a);
  PoolOperands o;
  return run(backend, p, o, input);
}

Tensor avg_pool2d_backward(const Backend& backend, const Tensor& grad_output, IntArrayRef input_size,
                           const PoolArguments& a) {
  PoolProblem p = geometry(PoolKind::avg, input_size, a);
  p.pass = Pass::grad_input;
  p.dtype = averaged_type(grad_output, a);
  check_sizes(grad_output, p.y_sizes(), "grad_output");
  PoolOperands o;
  return run(backend, p, o, grad_output);
}

Tensor lp_pool2d(const Backend& backend, const Tensor& input, const PoolArguments& a) {
  PoolProblem p = geometry(PoolKind::lp, input.sizes(), a);
  p.dtype = floating_type(input, "lp_pool2d");
  PoolOperands o;
  return run(backend, p, o, input);
}

Tensor lp_pool2d_backward(const Backend& backend, const Tensor& grad_output, const Tensor& input, const Tensor& output,
                          const PoolArguments& a) {
  PoolProblem p = geometry(PoolKind::lp, input.sizes(), a);
  p.pass = Pass::grad_input;
  p.dtype = floating_type(grad_output, "lp_pool2d_backward");
  check_same_kind(input, "input", grad_output, "grad_output");
  check_same_kind(output, "output", grad_output, "grad_output");
  check_sizes(grad_output, p.y_sizes(), "grad_output");
  check_sizes(output, p.y_sizes(), "output");
  // The row reads input where it writes its gradient, and output where it reads grad_output: one format for all.
  const at::MemoryFormat format = format_of(grad_output);
  const Tensor dense_input = input.contiguous(format), dense_output = output.contiguous(format);
  PoolOperands o;
  o.input = dense_input.const_data_ptr();
  o.output = dense_output.const_data_ptr();
  return run(backend, p, o, grad_output.contiguous(format));
}

}  // namespace fastconv::bindings
