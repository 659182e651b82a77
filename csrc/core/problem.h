// The vocabulary of the whole project: what is to be computed, as plain data.
//
// A problem says everything a kernel needs to know except the pointers. It is compared and hashed by its bytes, so
// every field is explicit, there is no padding, and strides that carry no information are canonical (zero).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "status.h"

namespace fastconv {

enum class DType : uint8_t { f32, f64, f16, bf16, u8, i8, i16, i32, i64 };
enum class MathMode : uint8_t { ieee, tf32, fp32_3xtf32 };
enum class Accuracy : uint8_t { torch, fast, fastest };
enum class Activation : uint8_t { none, relu, leaky_relu, relu6, elu, sigmoid, tanh, silu, gelu, hardswish };
// `gather` belongs to max-pooling alone: the transpose of its grad_input, needed for second derivatives.
enum class Pass : uint8_t { forward, grad_input, grad_weight, gather };
enum class PoolKind : uint8_t { max, avg, lp };
enum class Layout : uint8_t { nchw, nhwc, both, strided };

const char* name(DType);
const char* name(MathMode);
const char* name(Accuracy);
const char* name(Activation);
const char* name(Pass);
const char* name(PoolKind);
const char* name(Layout);
int64_t size_of(DType);
inline bool is_integer(DType t) { return t >= DType::u8; }

// A real number as its bits, because problems are compared and hashed by bytes. Zero has one form.
struct Real {
  int64_t bits = 0;

  static Real of(double value);
  double value() const;
};

// leaky_relu: the slope for negative values; elu: alpha. The others have no parameter.
bool has_parameter(Activation);
// Whether the derivative follows from the activation's output alone; the others need its input.
bool differentiable_from_output(Activation);
// "relu", "leaky_relu:0.01": the word of an activation in a problem's text, and everywhere else that one is named. Reading
// takes torch's default for a parameter left out; false if the word names no activation.
std::string activation_word(Activation, Real parameter);
bool read_activation(std::string_view word, Activation&, Real& parameter);
std::string activation_names();  // "none, relu, ..."
std::string shortest(double);    // the fewest digits that read back as the same number

using Sizes4 = std::array<int64_t, 4>;    // n c h w, or k c r s for a filter
using Strides4 = std::array<int64_t, 4>;  // in elements, same order as the sizes

// Strides of dense tensors, and the canonical form: dimensions of size 1 (and all of an empty tensor) get stride 0.
// dense_strides returns the canonical form too, so both may be compared with a problem's strides. `both` means nchw.
Strides4 dense_strides(Sizes4 sizes, Layout layout);
Strides4 canonical(Sizes4 sizes, Strides4 strides);
// `both`: the two dense orders coincide. Expects nothing of the strides of size-1 dimensions.
Layout layout_of(Sizes4 sizes, Strides4 strides);

constexpr uint8_t kFullAlignment = 6;  // log2 of 64 bytes, a cache line

struct ConvProblem {
  int64_t n = 1, c = 1, h = 1, w = 1;  // input
  int64_t k = 1, r = 1, s = 1;         // k filters of (c / groups) x r x s
  int64_t stride_h = 1, stride_w = 1;
  int64_t pad_top = 0, pad_left = 0, pad_bottom = 0, pad_right = 0;
  int64_t dilation_h = 1, dilation_w = 1;
  int64_t groups = 1;
  Strides4 x_strides{}, weight_strides{}, y_strides{};  // y stands for grad_output in the gradient passes
  // Forward: the residual. Gradient passes: the forward's output, by which grad_output is masked. Zero when unused.
  Strides4 aux_strides{};
  Real activation_parameter{};
  DType dtype = DType::f32;
  MathMode math = MathMode::ieee;
  Accuracy accuracy = Accuracy::torch;
  Pass pass = Pass::forward;
  Activation activation = Activation::none;
  // forward: adds a bias of k values; grad_input: one of c values (transposed convolution); grad_weight: also wants
  // grad_bias
  uint8_t bias = 0;
  uint8_t residual = 0;  // forward only: adds aux before the activation
  // forward only: multiplies each filter's sums by a number before bias, residual and activation (a folded BatchNorm)
  uint8_t scale = 0;
  // forward only: y holds the largest of each 2x2 outputs, after the activation (a max-pool of window and stride 2); an odd
  // last row or column is left out
  uint8_t max_pool = 0;
  uint8_t deterministic = 0;
  // log2 of the alignment in bytes of each operand's address, at most kFullAlignment
  uint8_t x_align = kFullAlignment, weight_align = kFullAlignment, y_align = kFullAlignment;
  uint8_t unused[3] = {};

  // Always inlined: kernels are compiled once per ISA, and no copy made with AVX may be linked for the rest.
  [[gnu::always_inline]]
  int64_t p() const { return (h + pad_top + pad_bottom - dilation_h * (r - 1) - 1) / stride_h + 1; }
  [[gnu::always_inline]]
  int64_t q() const { return (w + pad_left + pad_right - dilation_w * (s - 1) - 1) / stride_w + 1; }
  [[gnu::always_inline]] int64_t group_c() const { return c / groups; }
  [[gnu::always_inline]] int64_t group_k() const { return k / groups; }
  Sizes4 x_sizes() const { return {n, c, h, w}; }
  Sizes4 weight_sizes() const { return {k, group_c(), r, s}; }
  Sizes4 y_sizes() const { return max_pool ? Sizes4{n, k, p() / 2, q() / 2} : Sizes4{n, k, p(), q()}; }
  int64_t bias_size() const { return pass == Pass::grad_input ? c : k; }
  bool has_aux() const { return residual || (pass != Pass::forward && activation != Activation::none); }

  int64_t macs() const { return n * k * p() * q() * group_c() * r * s; }  // padding counted, as everybody does
  int64_t flops() const { return 2 * macs(); }
  // Each operand of the pass moved once.
  int64_t minimum_bytes() const;
  // Fills dense strides for every operand, canonicalised.
  void set_layout(Layout layout);
  void canonicalise();

  bool operator==(const ConvProblem& other) const;
};

struct PoolProblem {
  int64_t n = 1, c = 1, h = 1, w = 1;
  int64_t p = 1, q = 1;  // output size: stored, because ceil_mode and adaptive pooling choose it
  int64_t r = 1, s = 1;  // window; of adaptive pools, whose windows vary by one, the largest
  int64_t stride_h = 1, stride_w = 1;
  int64_t pad_top = 0, pad_left = 0;  // the bottom and right ones follow from p and q
  int64_t dilation_h = 1, dilation_w = 1;
  int64_t divisor = 0;  // average: the divisor_override, 0 if none
  Real norm{};          // lp: y = (sum of x^norm over the window)^(1/norm), partial windows scaled up to r * s elements
  Strides4 x_strides{}, y_strides{}, offset_strides{};  // y stands for grad_output in grad_input
  DType dtype = DType::f32;
  PoolKind kind = PoolKind::max;
  Pass pass = Pass::forward;
  uint8_t offset_bytes = 0;  // max: 1, 2 or 4 bytes per window offset, 0 if values only
  uint8_t ceil_mode = 0;
  uint8_t count_include_pad = 1;
  uint8_t adaptive = 0;
  uint8_t unused = 0;

  Sizes4 x_sizes() const { return {n, c, h, w}; }
  Sizes4 y_sizes() const { return {n, c, p, q}; }
  // torch's rule: with ceil_mode a last window that would start beyond the padded input is dropped.
  // 0 or less: the window does not fit (0 too if the stride is not positive or the padded size overflows).
  static int64_t output_size(int64_t in, int64_t window, int64_t stride, int64_t pad, int64_t dilation, bool ceil_mode);
  // Adaptive pooling, along one axis of `in` elements and `out` windows: window i covers [adaptive_begin(i),
  // adaptive_end(i)), as in torch.
  [[gnu::always_inline]]
  static int64_t adaptive_begin(int64_t i, int64_t in, int64_t out) { return i * in / out; }
  [[gnu::always_inline]]
  static int64_t adaptive_end(int64_t i, int64_t in, int64_t out) { return ((i + 1) * in + out - 1) / out; }
  static int64_t largest_adaptive_window(int64_t in, int64_t out);  // 1 if there are no windows
  // Makes the window of an adaptive problem canonical; where all windows are equal, that is a plain problem.
  void fit_adaptive_window();
  int64_t flops() const { return n * c * p * q * r * s; }  // one comparison or addition per window element
  int64_t minimum_bytes() const;
  void set_layout(Layout layout);
  void canonicalise();

  bool operator==(const PoolProblem& other) const;
};

// A convolution with a fused max-pool as two problems, values only: what lies between has the memory format of y.
std::pair<ConvProblem, PoolProblem> apart(const ConvProblem&);

// Compared and hashed by bytes.
static_assert(std::has_unique_object_representations_v<ConvProblem>);
static_assert(std::has_unique_object_representations_v<PoolProblem>);

// Whether the fields make sense together: sizes, divisibility, a window that fits, no product beyond int64 (bytes of
// every operand, FLOPs). Everything below trusts a problem that passed.
Status check(const ConvProblem&);
Status check(const PoolProblem&);

// The canonical text, see text.cpp and text_pool.cpp for the grammar. Parsing throws std::invalid_argument naming the
// offending word. text() canonicalises, so parsing gives back the canonical problem.
std::string text(const ConvProblem&);
std::string text(const PoolProblem&);
ConvProblem parse_conv(const std::string&);
PoolProblem parse_pool(const std::string&);

}  // namespace fastconv
