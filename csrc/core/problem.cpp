#include "problem.h"

#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>

namespace fastconv {

const char* name(DType t) {
  switch (t) {
    case DType::f32: return "f32";
    case DType::f64: return "f64";
    case DType::f16: return "f16";
    case DType::bf16: return "bf16";
    case DType::u8: return "u8";
    case DType::i8: return "i8";
    case DType::i16: return "i16";
    case DType::i32: return "i32";
    case DType::i64: return "i64";
  }
  return "?";
}

const char* name(MathMode m) {
  switch (m) {
    case MathMode::ieee: return "ieee";
    case MathMode::tf32: return "tf32";
    case MathMode::fp32_3xtf32: return "fp32_3xtf32";
  }
  return "?";
}

const char* name(Accuracy a) {
  switch (a) {
    case Accuracy::torch: return "torch";
    case Accuracy::fast: return "fast";
    case Accuracy::fastest: return "fastest";
  }
  return "?";
}

const char* name(Activation a) {
  switch (a) {
    case Activation::none: return "none";
    case Activation::relu: return "relu";
    case Activation::leaky_relu: return "leaky_relu";
    case Activation::relu6: return "relu6";
    case Activation::elu: return "elu";
    case Activation::sigmoid: return "sigmoid";
    case Activation::tanh: return "tanh";
    case Activation::silu: return "silu";
    case Activation::gelu: return "gelu";
    case Activation::hardswish: return "hardswish";
  }
  return "?";
}

const char* name(Pass p) {
  switch (p) {
    case Pass::forward: return "forward";
    case Pass::grad_input: return "grad_input";
    case Pass::grad_weight: return "grad_weight";
    case Pass::gather: return "gather";
  }
  return "?";
}

const char* name(PoolKind k) {
  switch (k) {
    case PoolKind::max: return "max";
    case PoolKind::avg: return "avg";
    case PoolKind::lp: return "lp";
  }
  return "?";
}

const char* name(Layout l) {
  switch (l) {
    case Layout::nchw: return "nchw";
    case Layout::nhwc: return "nhwc";
    case Layout::both: return "both";
    case Layout::strided: return "strided";
  }
  return "?";
}

int64_t size_of(DType t) {
  switch (t) {
    case DType::u8:
    case DType::i8: return 1;
    case DType::f16:
    case DType::bf16:
    case DType::i16: return 2;
    case DType::f32:
    case DType::i32: return 4;
    case DType::f64:
    case DType::i64: return 8;
  }
  return 0;
}

namespace {

int64_t product(const Sizes4& v) { return v[0] * v[1] * v[2] * v[3]; }

bool is_empty(const Sizes4& v) { return v[0] == 0 || v[1] == 0 || v[2] == 0 || v[3] == 0; }

}  // namespace

Strides4 canonical(Sizes4 sizes, Strides4 strides) {
  const bool empty = is_empty(sizes);
  for (int i = 0; i < 4; ++i)
    if (empty || sizes[i] == 1) strides[i] = 0;
  return strides;
}

Strides4 dense_strides(Sizes4 sizes, Layout layout) {
  if (is_empty(sizes)) return {};  // before any product, which might overflow
  const int64_t c = sizes[1], h = sizes[2], w = sizes[3];
  switch (layout) {
    case Layout::nchw:
    case Layout::both: return canonical(sizes, {c * h * w, h * w, w, 1});
    case Layout::nhwc: return canonical(sizes, {h * w * c, 1, w * c, c});
    case Layout::strided: break;
  }
  throw std::invalid_argument("fastconv: a strided layout has no dense strides");
}

Layout layout_of(Sizes4 sizes, Strides4 strides) {
  strides = canonical(sizes, strides);
  const bool nchw = strides == dense_strides(sizes, Layout::nchw);
  const bool nhwc = strides == dense_strides(sizes, Layout::nhwc);
  return nchw && nhwc ? Layout::both : nchw ? Layout::nchw : nhwc ? Layout::nhwc : Layout::strided;
}

int64_t ConvProblem::minimum_bytes() const {
  // The three passes move the same operands, only in different directions.
  const int64_t y = product(y_sizes());
  const int64_t elements = product(x_sizes()) + product(weight_sizes()) + y + (bias ? bias_size() : 0) + (scale ? k : 0) + (has_aux() ? y : 0);
  return elements * size_of(dtype);
}

void ConvProblem::set_layout(Layout layout) {
  x_strides = dense_strides(x_sizes(), layout);
  weight_strides = dense_strides(weight_sizes(), layout);
  y_strides = dense_strides(y_sizes(), layout);
  aux_strides = has_aux() ? y_strides : Strides4{};
}

void ConvProblem::canonicalise() {
  if (!has_parameter(activation)) activation_parameter = {};
  if (dtype != DType::f32) math = MathMode::ieee;  // the other modes are ways to multiply fp32
  x_strides = canonical(x_sizes(), x_strides);
  weight_strides = canonical(weight_sizes(), weight_strides);
  y_strides = canonical(y_sizes(), y_strides);
  aux_strides = has_aux() ? canonical(y_sizes(), aux_strides) : Strides4{};
}

std::pair<ConvProblem, PoolProblem> apart(const ConvProblem& fused) {
  ConvProblem convolution = fused;
  convolution.max_pool = 0;
  const Layout layout = layout_of(fused.y_sizes(), fused.y_strides) == Layout::nhwc ? Layout::nhwc : Layout::nchw;
  convolution.y_strides = dense_strides(convolution.y_sizes(), layout);
  PoolProblem pool;
  pool.n = fused.n, pool.c = fused.k, pool.h = fused.p(), pool.w = fused.q();
  pool.p = fused.p() / 2, pool.q = fused.q() / 2;
  pool.r = pool.s = pool.stride_h = pool.stride_w = 2;
  pool.dtype = fused.dtype;
  pool.x_strides = convolution.y_strides, pool.y_strides = fused.y_strides;
  return {convolution, pool};
}

bool ConvProblem::operator==(const ConvProblem& other) const { return std::memcmp(this, &other, sizeof other) == 0; }

int64_t PoolProblem::output_size(int64_t in, int64_t window, int64_t stride, int64_t pad, int64_t dilation,
                                 bool ceil_mode) {
  int64_t slack = 0, reach = 0;
  if (stride < 1 || __builtin_mul_overflow(dilation, window - 1, &reach) || __builtin_add_overflow(pad, pad, &slack) ||
      __builtin_add_overflow(slack, in, &slack) || __builtin_sub_overflow(slack, reach, &slack) ||
      __builtin_add_overflow(slack, ceil_mode ? stride - 2 : -1, &slack))
    return 0;
  // Rounded towards minus infinity, so that a window larger than the padded input gives 0 or less.
  const int64_t steps = slack >= 0 ? slack / stride : -((-slack + stride - 1) / stride);
  const int64_t out = steps + 1;
  return ceil_mode && (out - 1) * stride >= in + pad ? out - 1 : out;
}

int64_t PoolProblem::largest_adaptive_window(int64_t in, int64_t out) {
  if (out < 1) return 1;
  // Window i begins at floor(i * in / out); i * in mod out takes every multiple of the common divisor below out.
  const int64_t rest = in % out;
  return in / out + (rest == 0 ? 0 : rest > std::gcd(rest, out) ? 2 : 1);
}

void PoolProblem::fit_adaptive_window() {
  if (!adaptive || ceil_mode || divisor || kind == PoolKind::lp) return;  // check() refuses such
  r = largest_adaptive_window(h, p), s = largest_adaptive_window(w, q);
  stride_h = stride_w = dilation_h = dilation_w = 1;
  pad_top = pad_left = 0;
  count_include_pad = 1;
  if (p < 1 || q < 1 || h % p || w % q) return;
  stride_h = r, stride_w = s;
  adaptive = 0;
}

int64_t PoolProblem::minimum_bytes() const {
  const int64_t y = product(y_sizes());
  const int64_t x = pass == Pass::gather ? y : product(x_sizes());  // gather picks one x for each y
  const int64_t lp_gradient = kind == PoolKind::lp && pass == Pass::grad_input ? 2 : 1;  // also reads the forward's x, y
  return (x + y) * lp_gradient * size_of(dtype) + y * offset_bytes;
}

void PoolProblem::set_layout(Layout layout) {
  x_strides = dense_strides(x_sizes(), layout);
  y_strides = dense_strides(y_sizes(), layout);
  offset_strides = offset_bytes ? y_strides : Strides4{};
}

void PoolProblem::canonicalise() {
  fit_adaptive_window();
  if (kind != PoolKind::lp) norm = {};
  if (kind != PoolKind::avg) {  // nothing is averaged
    count_include_pad = 1;
    divisor = 0;
  }
  x_strides = canonical(x_sizes(), x_strides);
  y_strides = canonical(y_sizes(), y_strides);
  offset_strides = offset_bytes ? canonical(y_sizes(), offset_strides) : Strides4{};
}

bool PoolProblem::operator==(const PoolProblem& other) const { return std::memcmp(this, &other, sizeof other) == 0; }

}  // namespace fastconv
