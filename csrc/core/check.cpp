// What makes a problem well formed. Every product that a kernel or a formula may take is tried here once, with
// overflow detected, so that nothing after this needs to.
#include <cmath>
#include <initializer_list>
#include <string>

#include "problem.h"

namespace fastconv {
namespace {

// Arithmetic that remembers an overflow.
struct Checked {
  int64_t value = 0;
  bool overflow = false;

  Checked(int64_t v) : value(v) {}
  Checked operator*(Checked o) const {
    Checked r = 0;
    r.overflow = __builtin_mul_overflow(value, o.value, &r.value) || overflow || o.overflow;
    return r;
  }
  Checked operator+(Checked o) const {
    Checked r = 0;
    r.overflow = __builtin_add_overflow(value, o.value, &r.value) || overflow || o.overflow;
    return r;
  }
  Checked operator-(Checked o) const {
    Checked r = 0;
    r.overflow = __builtin_sub_overflow(value, o.value, &r.value) || overflow || o.overflow;
    return r;
  }
};

int64_t or_one(int64_t v) { return v ? v : 1; }  // a zero factor must not hide the overflow of the others

Checked elements(const Sizes4& v) {
  return Checked(or_one(v[0])) * or_one(v[1]) * or_one(v[2]) * or_one(v[3]);
}

// Distance in elements from the first to past the last one.
Checked extent(const Sizes4& sizes, const Strides4& strides) {
  Checked e = 1;
  for (int i = 0; i < 4; ++i) e = e + Checked(or_one(sizes[i]) - 1) * strides[i];
  return e;
}

struct Field {
  const char* name;
  int64_t value;
};

std::string below(std::initializer_list<Field> fields, int64_t least) {
  for (const Field& f : fields)
    if (f.value < least)
      return std::string(f.name) + " is " + std::to_string(f.value) + ", expected at least " + std::to_string(least);
  return {};
}

std::string bad_strides(const char* operand, const Sizes4& sizes, const Strides4& strides, int64_t bytes) {
  for (int64_t s : strides)
    if (s < 0) return std::string("a stride of ") + operand + " is negative";
  if ((elements(sizes) * bytes).overflow || (extent(sizes, strides) * bytes).overflow)
    return std::string("the size of ") + operand + " in bytes does not fit into 64 bits";
  return {};
}

// Padded input minus window: what the window can travel.
Checked travel(int64_t in, int64_t before, int64_t after, int64_t window, int64_t dilation) {
  return Checked(in) + before + after - Checked(dilation) * (window - 1) - 1;
}

std::string bad_window(const char* axis, const Checked& travel) {
  if (travel.overflow) return std::string("the padded size along ") + axis + " does not fit into 64 bits";
  if (travel.value < 0) return std::string("the window is larger than the padded input along ") + axis;
  return {};
}

std::string problem_with(const ConvProblem& p) {
  std::string bad = below({{"n", p.n}, {"c", p.c}, {"h", p.h}, {"w", p.w}, {"k", p.k}}, 0);
  if (bad.empty())
    bad = below({{"r", p.r}, {"s", p.s}, {"stride_h", p.stride_h}, {"stride_w", p.stride_w},
                 {"dilation_h", p.dilation_h}, {"dilation_w", p.dilation_w}, {"groups", p.groups}}, 1);
  if (bad.empty())
    bad = below({{"pad_top", p.pad_top}, {"pad_left", p.pad_left}, {"pad_bottom", p.pad_bottom},
                 {"pad_right", p.pad_right}}, 0);
  if (!bad.empty()) return bad;
  if (p.pass == Pass::gather) return "gather is a pass of max-pooling, not of a convolution";
  if (p.c % p.groups || p.k % p.groups)
    return "groups " + std::to_string(p.groups) + " must divide c " + std::to_string(p.c) + " and k " +
           std::to_string(p.k);
  if (p.residual && p.pass != Pass::forward) return "a residual belongs to the forward pass only";
  if (p.scale && p.pass != Pass::forward) return "a scale belongs to the forward pass only";
  if (p.scale && is_integer(p.dtype)) return "a scale is a real number: none for integers";
  if (p.max_pool && p.pass != Pass::forward) return "a fused max-pool belongs to the forward pass only";
  if (p.max_pool && p.residual) return "a fused max-pool goes without a residual";
  const double parameter = p.activation_parameter.value();
  if (has_parameter(p.activation) && !(parameter >= 0 && std::isfinite(parameter)))
    return std::string("the parameter of ") + name(p.activation) + " must be finite and at least 0";
  if (p.pass != Pass::forward && !differentiable_from_output(p.activation))
    return std::string("the gradient of ") + name(p.activation) + " does not follow from its output";
  if (p.math != MathMode::ieee && p.dtype != DType::f32) return std::string(name(p.math)) + " is a mode of f32 only";
  for (uint8_t align : {p.x_align, p.weight_align, p.y_align})
    if (align > kFullAlignment) return "an alignment is the log2 of bytes, at most " + std::to_string(kFullAlignment);
  bad = bad_window("h", travel(p.h, p.pad_top, p.pad_bottom, p.r, p.dilation_h));
  if (bad.empty()) bad = bad_window("w", travel(p.w, p.pad_left, p.pad_right, p.s, p.dilation_w));
  if (bad.empty() && p.max_pool && (p.p() < 2 || p.q() < 2))
    return "the fused max-pool's window is larger than the output";
  const int64_t bytes = size_of(p.dtype);
  if (bad.empty()) bad = bad_strides("x", p.x_sizes(), p.x_strides, bytes);
  if (bad.empty()) bad = bad_strides("weight", p.weight_sizes(), p.weight_strides, bytes);
  if (bad.empty()) bad = bad_strides("y", p.y_sizes(), p.y_strides, bytes);
  if (bad.empty()) bad = bad_strides("aux", p.y_sizes(), p.aux_strides, bytes);
  if (!bad.empty()) return bad;
  const Checked x = elements(p.x_sizes()), weight = elements(p.weight_sizes());
  const Checked y = elements({p.n, p.k, p.p(), p.q()});
  if (((x + weight + y + y + p.bias_size()) * bytes).overflow || (y * or_one(p.group_c()) * p.r * p.s * 2).overflow)
    return "bytes or FLOPs do not fit into 64 bits";
  return {};
}

std::string problem_with(const PoolProblem& p) {
  std::string bad = below({{"n", p.n}, {"c", p.c}, {"h", p.h}, {"w", p.w}, {"pad_top", p.pad_top},
                           {"pad_left", p.pad_left}}, 0);
  if (bad.empty() && p.adaptive) bad = below({{"p", p.p}, {"q", p.q}}, 0);
  if (bad.empty())
    bad = below({{"r", p.r}, {"s", p.s}, {"stride_h", p.stride_h}, {"stride_w", p.stride_w},
                 {"dilation_h", p.dilation_h}, {"dilation_w", p.dilation_w}}, 1);
  if (!bad.empty()) return bad;
  if (p.pass == Pass::grad_weight) return "a pool has no weight";
  const bool max = p.kind == PoolKind::max, lp = p.kind == PoolKind::lp;
  const std::string kind = lp ? "LP pooling" : "average pooling";
  if (!max && p.pass == Pass::gather) return "gather is a pass of max-pooling only";
  if (!max && p.offset_bytes) return kind + " has no window offsets";
  if (!max && (p.dilation_h != 1 || p.dilation_w != 1)) return kind + " has no dilation";
  if (lp && (p.pad_top || p.pad_left)) return kind + " has no padding";
  if (lp && p.adaptive) return kind + " is never adaptive";
  if (lp && (p.norm.value() == 0 || std::isnan(p.norm.value()))) return "the norm of LP pooling must be a number other than 0";
  if (p.offset_bytes != 0 && p.offset_bytes != 1 && p.offset_bytes != 2 && p.offset_bytes != 4)
    return "a window offset has 1, 2 or 4 bytes, not " + std::to_string(p.offset_bytes);
  if (max && p.pass != Pass::forward && !p.offset_bytes)
    return std::string(name(p.pass)) + " of max-pooling needs window offsets";
  const Checked positions = Checked(p.r) * p.s;  // numbered from 0, and all ones is kept for "none"
  if (p.offset_bytes && (positions.overflow || positions.value >= int64_t{1} << (8 * p.offset_bytes)))
    return "window offsets of " + std::to_string(p.offset_bytes) + " bytes cannot count the window's positions";
  if (p.adaptive && p.ceil_mode) return "adaptive pooling has no ceil_mode";
  if (p.adaptive && ((Checked(p.p) + 1) * p.h + p.p).overflow) return "the windows along h do not fit into 64 bits";
  if (p.adaptive && ((Checked(p.q) + 1) * p.w + p.q).overflow) return "the windows along w do not fit into 64 bits";
  if (p.adaptive && p.divisor) return "adaptive pooling has no divisor";
  if (p.adaptive && (p.r != PoolProblem::largest_adaptive_window(p.h, p.p) ||
                     p.s != PoolProblem::largest_adaptive_window(p.w, p.q) || p.stride_h != 1 || p.stride_w != 1 ||
                     p.dilation_h != 1 || p.dilation_w != 1 || p.pad_top || p.pad_left))
    return "an adaptive pool has a window of its own: the largest of its windows, stride 1, no padding, no dilation";
  const int64_t bytes = size_of(p.dtype);
  if (!p.adaptive) {
    // Any ceil_mode window starts inside the padded input, so its end is at most one window beyond.
    const Checked h = travel(p.h, p.pad_top, p.pad_top, p.r, p.dilation_h) + p.stride_h;
    const Checked w = travel(p.w, p.pad_left, p.pad_left, p.s, p.dilation_w) + p.stride_w;
    if (h.overflow || w.overflow) return "the padded size does not fit into 64 bits";
    if (p.pad_top > p.r / 2 || p.pad_left > p.s / 2)  // torch's rule, which leaves dilation out
      return "the padding is more than half of the window";
    const int64_t rows = PoolProblem::output_size(p.h, p.r, p.stride_h, p.pad_top, p.dilation_h, p.ceil_mode);
    const int64_t columns = PoolProblem::output_size(p.w, p.s, p.stride_w, p.pad_left, p.dilation_w, p.ceil_mode);
    if (rows < 1 || columns < 1) return "the output would be smaller than 1 x 1";
    if (p.p != rows || p.q != columns)
      return "the output size is " + std::to_string(p.p) + " x " + std::to_string(p.q) + ", expected " +
             std::to_string(rows) + " x " + std::to_string(columns);
  }
  bad = bad_strides("x", p.x_sizes(), p.x_strides, bytes);
  if (bad.empty()) bad = bad_strides("y", p.y_sizes(), p.y_strides, bytes);
  if (bad.empty()) bad = bad_strides("offsets", p.y_sizes(), p.offset_strides, 4);
  if (!bad.empty()) return bad;
  const Checked x = elements(p.x_sizes()), y = elements(p.y_sizes());
  if (((x + y) * 2 * bytes + y * 4).overflow || (y * p.r * p.s).overflow)
    return "bytes or operations do not fit into 64 bits";
  return {};
}

template <class Problem>
Status status_of(const Problem& p) {
  std::string bad = problem_with(p);
  return bad.empty() ? Status() : Status::refuse(std::move(bad));
}

}  // namespace

Status check(const ConvProblem& p) { return status_of(p); }
Status check(const PoolProblem& p) { return status_of(p); }

}  // namespace fastconv
