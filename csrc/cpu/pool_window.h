// The geometry of pooling windows, shared by the planner and the kernels. In an anonymous namespace because the kernels
// are compiled once per ISA.
#pragma once

#include <cstdint>

#include "../core/problem.h"

namespace fastconv::cpu {
namespace {

inline int64_t ceil_div(int64_t a, int64_t b) {  // a >= 0 or b == 1; most strides are 1 or 2
  return b == 1 ? a : b == 2 ? (a + 1) >> 1 : (a + b - 1) / b;
}

// One axis of a window: tap t of output o reads input o * stride - pad + t * dilation, if that lies inside. Adaptive
// windows lie inside always, and `window` is the largest of them.
struct Axis {
  int64_t in, out, window, stride, pad, dilation;
  bool adaptive;

  int64_t start(int64_t o) const {
    return adaptive ? PoolProblem::adaptive_begin(o, in, out) : o * stride - pad;
  }
  int64_t first(int64_t o) const { return start(o) < 0 ? ceil_div(-start(o), dilation) : 0; }
  int64_t last(int64_t o) const {  // one past; [first, last) is empty if the window lies wholly in padding
    if (adaptive) return PoolProblem::adaptive_end(o, in, out) - start(o);
    const int64_t room = in - start(o);
    const int64_t fit = room > 0 ? ceil_div(room, dilation) : 0;
    return fit < window ? fit : window;
  }
  // The output whose tap t reads input i, or -1. Not of adaptive windows, which may share a tap.
  int64_t output(int64_t i, int64_t t) const {
    const int64_t reach = i + pad - t * dilation;
    if (reach < 0 || (stride > 1 && reach % stride)) return -1;
    const int64_t o = stride == 1 ? reach : reach / stride;
    return o < out ? o : -1;
  }
  // This axis' factor of an average's divisor. torch's rule: with padding counted, a window reaches no further than the
  // padded input; without, only taps inside count. At least 1, so that an empty window divides zero by something.
  int64_t divisor(int64_t o, bool count_pad) const {
    if (!count_pad || adaptive) {
      const int64_t taps = last(o) - first(o);
      return taps > 1 ? taps : 1;
    }
    const int64_t room = in + pad - start(o);
    return room < window ? room : window;
  }
};

inline Axis vertical(const PoolProblem& p) {
  return {p.h, p.p, p.r, p.stride_h, p.pad_top, p.dilation_h, p.adaptive != 0};
}
inline Axis horizontal(const PoolProblem& p) {
  return {p.w, p.q, p.s, p.stride_w, p.pad_left, p.dilation_w, p.adaptive != 0};
}

// A row regrouped by the column's remainder modulo the stride, so that tap s of neighbouring windows is contiguous:
// padded column u = q * stride + s * dilation stands at index u / stride of the slot of remainder u % stride. Only
// remainders that some tap reads have a slot. Rows are followed by a margin: vectors may run past the end.
constexpr int64_t kMargin = 64;  // the most lanes a vector has

struct Phases {
  int64_t stride, dilation, slots, reach, pitch;

  Phases(const Axis& a, int64_t length) : stride(a.stride), dilation(a.dilation) {
    int64_t g = stride, rest = dilation % stride;
    while (rest) {
      const int64_t next = g % rest;
      g = rest;
      rest = next;
    }
    const int64_t period = stride / g;
    slots = a.window < period ? a.window : period;
    reach = (a.window - 1) * dilation / stride;
    pitch = (length + reach + kMargin - 1) / kMargin * kMargin + kMargin;
  }
  int64_t phase(int64_t slot) const {  // without a division where it matters
    return stride == 1 ? 0 : stride == 2 ? slot * dilation & 1 : slot * dilation % stride;
  }
  int64_t slot(int64_t tap) const { return tap % slots; }
  int64_t delay(int64_t tap) const { return tap * dilation / stride; }
};

// Outputs, and the places beside them that taps of an input row's columns would come from.
inline int64_t padded_outputs(const Axis& a) {
  const int64_t last = (a.in - 1 + a.pad) / a.stride + 1;
  return last > a.out ? last : a.out;
}

// The outputs of a plane as the inputs of max-pooling's gradient see them. Input column w is column (w + pad) / stride
// of phase (w + pad) % stride, and its tap s, of the same phase, belongs to the output s / stride columns before; rows
// likewise. Rows of outputs are `pitch` apart, so far that no tap of any input leads into a wrong row. A band of rows
// of one plane is worked on at a time, or several planes, stacked with as many empty rows between them as taps reach.
//
// `overlaid`: no two inputs of a phase fall together even if rows are only as far apart as they are long, and planes as
// they are high. Then nothing has to lie between: a tap that leads into another row or plane leads to an output that
// did not choose it, because from there it leads into padding.
struct Lattice {
  static constexpr int64_t kShiftBytes = 16;
  static constexpr int64_t kBandElements = 1024;  // 4 KB of fp32 for each phase: first-level cache
  int64_t stride_h, stride_w, row_delay, column_delay, columns, outputs, pitch, band, planes = 1;
  bool overlaid;

  explicit Lattice(const PoolProblem& p)
      : stride_h(p.stride_h),
        stride_w(p.stride_w),
        row_delay((p.r - 1) / p.stride_h),
        column_delay((p.s - 1) / p.stride_w),
        columns((p.w - 1 + p.pad_left) / stride_w + 1),
        outputs(p.q) {
    const int64_t rows = (p.h - 1 + p.pad_top) / stride_h + 1;
    pitch = columns > p.q + column_delay ? columns : p.q + column_delay;
    band = kBandElements / pitch < 4 ? 4 : kBandElements / pitch;
    if (band >= rows) {
      planes = (band + row_delay) / (rows + row_delay);
      band = rows;
    }
    overlaid = most_of_a_phase(p.h, p.pad_top, stride_h) <= p.p && most_of_a_phase(p.w, p.pad_left, stride_w) <= p.q;
  }
  int64_t phases() const { return stride_h * stride_w; }
  // Columns by which the last row exceeds one of outputs.
  int64_t spill() const { return columns > outputs ? columns - outputs : 0; }
  static int64_t most_of_a_phase(int64_t in, int64_t pad, int64_t stride) {  // inputs, of an axis
    int64_t most = 0;
    for (int64_t phase = 0; phase < stride; ++phase) {
      const int64_t to = in - 1 + pad - phase, from = pad - phase;
      const int64_t count = (to < 0 ? -1 : to / stride) - (from > 0 ? ceil_div(from, stride) : 0) + 1;
      if (count > most) most = count;
    }
    return most;
  }
  int64_t size() const { return planes * (band + row_delay) * pitch + column_delay + 2 * kMargin; }
  int64_t shared_bytes(int64_t taps) const { return 8 * (phases() + 1) + kShiftBytes * taps; }
  int64_t scratch_bytes(int64_t value) const { return (value * (phases() + 1) + 1) * size(); }
};

// What a pixel's tap takes in max-pooling's gradient over channels, and how many an input has at most, along an axis.
constexpr int64_t kChannelTapBytes = 24;
inline int64_t most_covers(const Axis& a) { return a.adaptive && a.in > 0 ? a.out / a.in + 2 : a.window; }

// A window (output o of one axis) that covers an input, and the tap that does.
struct Cover {
  int64_t o, tap;
};

// The covers of every input along an axis; those of input i are all[start[i]] to all[start[i + 1]].
struct CoverTable {
  int64_t* start;
  Cover* all;

  static int64_t bytes(const Axis& a) { return 8 * (a.in + 1) + 16 * a.out * a.window; }
  CoverTable(const Axis& a, void* memory) : start(static_cast<int64_t*>(memory)) {
    all = reinterpret_cast<Cover*>(start + a.in + 1);
    int64_t count = 0, ended = 0;
    for (int64_t i = 0; i < a.in; ++i) {
      start[i] = count;
      if (a.adaptive) {
        while (ended < a.out && a.start(ended) + a.last(ended) <= i) ++ended;
        for (int64_t o = ended; o < a.out && a.start(o) <= i; ++o) all[count++] = {o, i - a.start(o)};
        continue;
      }
      for (int64_t tap = 0; tap < a.window; ++tap) {
        const int64_t o = a.output(i, tap);
        if (o >= 0) all[count++] = {o, tap};
      }
    }
    start[a.in] = count;
  }
  void* end(const Axis& a) const { return reinterpret_cast<char*>(start) + bytes(a); }
  int64_t count(int64_t i) const { return start[i + 1] - start[i]; }
  const Cover* of(int64_t i) const { return all + start[i]; }
  // Without dilation the windows over an input are consecutive.
  bool same_windows(int64_t i, int64_t j) const {
    return count(i) == count(j) && (count(i) == 0 || of(i)->o == of(j)->o);
  }
};

}  // namespace
}  // namespace fastconv::cpu
