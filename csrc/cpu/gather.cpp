#include "gather.h"

namespace fastconv::cpu {
namespace {

GatherAxis forward_axis(int64_t in, int64_t out, int64_t taps, int64_t stride, int64_t pad, int64_t dilation) {
  return {in, out, 0, 1, stride, taps, -pad, dilation, 1};
}

GatherAxis backward_axis(int64_t in, int64_t out, int64_t taps, int64_t stride, int64_t pad, int64_t dilation,
                         int64_t phase) {
  const int64_t pixels = phase < in ? (in - phase + stride - 1) / stride : 0;
  return {out, pixels, phase, stride, 1, taps, phase + pad, -dilation, stride};
}

// A 1x1 convolution does not care about rows: one long row avoids short tiles at every row's end.
bool flatten(Strides4& strides, int64_t height, int64_t width) {
  if (height == 1) return true;
  if (width == 1) {
    strides[3] = strides[2];
    return true;
  }
  return strides[2] == width * strides[3];
}

}  // namespace

int64_t gather_phases(const ConvProblem& p) { return p.pass == Pass::forward ? 1 : p.stride_h * p.stride_w; }

Gather gather_of(const ConvProblem& p, int64_t phase) {
  Gather g{};
  if (p.pass == Pass::forward) {
    g.rows = forward_axis(p.h, p.p(), p.r, p.stride_h, p.pad_top, p.dilation_h);
    g.cols = forward_axis(p.w, p.q(), p.s, p.stride_w, p.pad_left, p.dilation_w);
    g.channels = p.group_c();
    g.filters = p.group_k();
    g.src = p.x_strides;
    g.dst = p.y_strides;
    if (p.residual) g.residual = p.aux_strides;
    g.channel_stride = p.weight_strides[1];
    g.filter_stride = p.weight_strides[0];
  } else {
    g.rows = backward_axis(p.h, p.p(), p.r, p.stride_h, p.pad_top, p.dilation_h, phase / p.stride_w);
    g.cols = backward_axis(p.w, p.q(), p.s, p.stride_w, p.pad_left, p.dilation_w, phase % p.stride_w);
    g.channels = p.group_k();
    g.filters = p.group_c();
    g.src = p.y_strides;
    g.dst = p.x_strides;
    if (p.has_aux()) g.mask = p.aux_strides;
    g.channel_stride = p.weight_strides[0];
    g.filter_stride = p.weight_strides[1];
  }
  g.group_src = g.channels;
  g.group_dst = g.filters;

  const bool pointwise = p.r == 1 && p.s == 1 && p.stride_h == 1 && p.stride_w == 1 && p.pad_top == 0 &&
                         p.pad_left == 0 && p.pad_bottom == 0 && p.pad_right == 0;
  if (pointwise) {
    Gather flat = g;
    const int64_t height = g.rows.src, width = g.cols.src;
    bool all = true;
    for (Strides4* s : {&flat.src, &flat.dst, &flat.mask, &flat.residual})
      all = all && flatten(*s, height, width);
    if (all) {
      flat.rows.src = flat.rows.out = 1;
      flat.cols.src = flat.cols.out = height * width;
      return flat;
    }
  }
  return g;
}

}  // namespace fastconv::cpu
