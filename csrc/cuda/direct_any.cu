#include "direct_any.cuh"

#include <algorithm>

#include "direct.cuh"

namespace fastconv::FASTCONV_GPU {
namespace {

template <class Index>
AnyAxis<Index> axis(int64_t source, int64_t taps, int64_t scale, int64_t shift, int64_t step, int64_t divisor) {
  AnyAxis<Index> a;
  a.scale = static_cast<Index>(scale);
  a.shift = static_cast<Index>(shift);
  a.step = static_cast<Index>(step);
  a.source = static_cast<Index>(source);
  a.taps = static_cast<Index>(taps);
  a.divisor = Divider<Index>(divisor);
  return a;
}

dim3 grid_of(int64_t items, int64_t per_block) {
  return {static_cast<unsigned>(std::clamp<int64_t>(div_up(items, per_block), 1, kMostBlocks)), 1, 1};
}

template <class Index>
void set_axes(const ConvProblem& p, AnyAxis<Index>& rows, AnyAxis<Index>& columns) {
  if (p.pass == Pass::grad_input) {
    rows = axis<Index>(p.p(), p.r, 1, p.pad_top, -p.dilation_h, p.stride_h);
    columns = axis<Index>(p.q(), p.s, 1, p.pad_left, -p.dilation_w, p.stride_w);
  } else {
    rows = axis<Index>(p.h, p.r, p.stride_h, -p.pad_top, p.dilation_h, 1);
    columns = axis<Index>(p.w, p.s, p.stride_w, -p.pad_left, p.dilation_w, 1);
  }
}

template <class T, class Index>
Status run_gather(const ConvProblem& p, const ConvOperands& o, void* stream) {
  const bool forward = p.pass == Pass::forward;
  AnyGather<T, Index> g;
  if (forward) {
    g.source.dy = static_cast<const T*>(o.x);
    g.source.strides = Strides<Index>(p.x_strides);
  } else {
    g.source = GradOutput<T, Index>(p, o);
  }
  g.filter = static_cast<const T*>(o.weight);
  g.out = static_cast<T*>(forward ? o.y : o.x);
  const Strides4& out = forward ? p.y_strides : p.x_strides;
  g.out_strides = Strides<Index>(out);
  g.group_stride = static_cast<Index>(p.group_k() * p.weight_strides[0]);
  g.filter_stride = static_cast<Index>(p.weight_strides[forward ? 0 : 1]);
  g.channel_stride = static_cast<Index>(p.weight_strides[forward ? 1 : 0]);
  g.row_stride = static_cast<Index>(p.weight_strides[2]);
  g.column_stride = static_cast<Index>(p.weight_strides[3]);
  g.channels = static_cast<Index>(forward ? p.group_c() : p.group_k());
  const int64_t filters = forward ? p.k : p.c;
  const int64_t rows = forward ? p.p() : p.h, columns = forward ? p.q() : p.w;
  g.outputs = p.n * filters * rows * columns;
  if (g.outputs == 0) return {};
  g.filters_last = filters > 1 && out[1] == 1;
  g.by_filters = Divider<Index>(filters);
  g.by_filters_of_group = Divider<Index>(filters / p.groups);
  g.by_rows = Divider<Index>(rows);
  g.by_columns = Divider<Index>(columns);
  set_axes(p, g.rows, g.columns);
  g.epilogue = Epilogue<T, Index>(p, o);
  return launch("direct any", direct_any_gather<T, Index>, grid_of(g.outputs, kAnyThreads), dim3{kAnyThreads, 1, 1}, 0,
                stream, g);
}

template <class T, class Index>
Status run_partial(const ConvProblem& p, const ConvOperands& o, void* partial, int64_t splits, int64_t pitch,
                   int64_t first, int64_t last, void* stream) {
  AnyWeight<T, Index> g;
  g.x = static_cast<const T*>(o.x);
  g.x_strides = Strides<Index>(p.x_strides);
  g.dy = GradOutput<T, Index>(p, o);
  g.channels = static_cast<Index>(p.group_c());
  g.filters = static_cast<Index>(p.group_k());
  g.rows = static_cast<Index>(p.p());
  g.columns = static_cast<Index>(p.q());
  set_axes(p, g.row_axis, g.column_axis);
  g.weights = p.k * p.group_c() * p.r * p.s;
  g.first = first;
  g.elements = last - first;
  g.pixels = p.n * p.p() * p.q();
  g.split_pixels = div_up(g.pixels, splits);
  g.splits = splits;
  g.pitch = pitch;
  g.by_channels = Divider<Index>(std::max<int64_t>(p.group_c(), 1));
  g.by_filters = Divider<Index>(std::max<int64_t>(p.group_k(), 1));
  g.by_row_taps = Divider<Index>(p.r);
  g.by_column_taps = Divider<Index>(p.s);
  g.partial = static_cast<Compute<T>*>(partial);
  if (g.elements == 0) return {};
  return launch("direct any weight", direct_any_weight<T, Index>, grid_of(g.elements * splits, kAnyThreads),
                dim3{kAnyThreads, 1, 1}, 0, stream, g);
}

// 32 bits for everything the kernels count, strides and dilations that meet no second tap or pixel included.
bool needs_wide_index(const ConvProblem& p) {
  constexpr int64_t kMost = int64_t{1} << 30;
  return !fits_int32(p) || p.n * p.k * p.p() * p.q() > kMost || p.n * p.c * p.h * p.w > kMost ||
         p.k * p.group_c() * p.r * p.s > kMost ||
         std::max({p.stride_h, p.stride_w, p.dilation_h, p.dilation_w, p.k, p.c}) > kMost;
}

}  // namespace

void direct_any_plan(const ConvProblem& p, ConvPlan& plan) {
  constexpr int64_t kThreadsAtOnce = DirectMachine::kMultiprocessors * 2048;
  constexpr double kInstructions = 12, kLatency = 15e-9;  // of a multiply-add: issued, and from one to the next
  plan.detail[DirectDetail::form] = static_cast<int64_t>(DirectForm::any);
  plan.detail[DirectDetail::wide_index] = needs_wide_index(p);
  plan.executed_macs = p.macs();
  int64_t threads = p.pass == Pass::forward ? p.n * p.k * p.p() * p.q() : p.n * p.c * p.h * p.w;
  int64_t moved = p.minimum_bytes();
  int launches = 1;
  if (p.pass == Pass::grad_weight) {
    // Enough threads for the machine, and no split so long that one fp32 chain of chains loses digits.
    constexpr int64_t kFewest = 64, kMost = 8192, kPartialBytes = int64_t{256} << 20;
    const int64_t elements = p.k * p.group_c() * p.r * p.s + (p.bias ? p.k : 0), pixels = p.n * p.p() * p.q();
    const int64_t sum_bytes = p.dtype == DType::f64 ? 8 : 4;
    int64_t splits = std::min(div_up(kThreadsAtOnce, std::max<int64_t>(elements, 1)), div_up(pixels, kFewest));
    splits = std::max(splits, div_up(pixels, kMost));
    splits = std::max<int64_t>(
        1, std::min(splits, kPartialBytes / std::max<int64_t>(elements * sum_bytes, 1)));
    plan.detail[DirectDetail::splits] = splits;
    plan.workspace_bytes = splits * elements * sum_bytes;
    moved += 2 * plan.workspace_bytes;
    threads = elements * splits;
    launches = 2;
  }
  const double macs = static_cast<double>(p.macs()), each = macs / static_cast<double>(std::max<int64_t>(threads, 1));
  const double issue = macs / 32 * kInstructions /
                       (DirectMachine::kIssue * DirectMachine::kClock * DirectMachine::kMultiprocessors);
  plan.cost = launches * DirectMachine::kLaunch +
              std::max({issue, each * kLatency, static_cast<double>(moved) / DirectMachine::kBytesPerSecond});
}

Status direct_any_partial(const ConvProblem& p, const ConvOperands& o, void* partial, int64_t splits, int64_t pitch,
                          int64_t first, int64_t last, bool wide, void* stream) {
  return with_float(p.dtype, [&](auto v) {
    using T = decltype(v);
    return wide ? run_partial<T, int64_t>(p, o, partial, splits, pitch, first, last, stream)
                : run_partial<T, int32_t>(p, o, partial, splits, pitch, first, last, stream);
  });
}

template <class T>
Status direct_reduce_splits(const ConvProblem& p, const ConvOperands& o, const void* partial, int64_t splits,
                            int64_t pitch, void* stream) {
  DirectReduce<T> g;
  g.partial = static_cast<const Compute<T>*>(partial);
  g.weights = p.k * p.group_c() * p.r * p.s;
  g.elements = g.weights + (p.bias ? p.k : 0);
  g.splits = splits;
  g.pitch = pitch;
  g.channels = p.group_c();
  g.row_taps = p.r;
  g.column_taps = p.s;
  g.strides = Strides<int64_t>(p.weight_strides);
  g.weight = static_cast<T*>(o.weight);
  g.grad_bias = static_cast<T*>(o.grad_bias);
  if (g.elements == 0) return {};
  return launch("direct reduce", direct_reduce<T>, grid_of(g.elements, kReduceElements),
                dim3{kReduceElements * kReduceSlices, 1, 1}, 0, stream, g);
}
template Status direct_reduce_splits<float>(const ConvProblem&, const ConvOperands&, const void*, int64_t, int64_t,
                                          void*);
template Status direct_reduce_splits<double>(const ConvProblem&, const ConvOperands&, const void*, int64_t, int64_t,
                                           void*);
template Status direct_reduce_splits<f16>(const ConvProblem&, const ConvOperands&, const void*, int64_t, int64_t,
                                        void*);
template Status direct_reduce_splits<bf16>(const ConvProblem&, const ConvOperands&, const void*, int64_t, int64_t,
                                         void*);

Status direct_any_run(const ConvPlan& plan, const ConvOperands& o, void* workspace, void* stream) {
  const ConvProblem& p = plan.problem;
  const bool wide = plan.detail[DirectDetail::wide_index];
  return with_float(p.dtype, [&](auto v) {
    using T = decltype(v);
    if (p.pass != Pass::grad_weight)
      return wide ? run_gather<T, int64_t>(p, o, stream) : run_gather<T, int32_t>(p, o, stream);
    const int64_t elements = p.k * p.group_c() * p.r * p.s + (p.bias ? p.k : 0);
    const int64_t splits = plan.detail[DirectDetail::splits];
    const Status status = direct_any_partial(p, o, workspace, splits, elements, 0, elements, wide, stream);
    return status ? direct_reduce_splits<T>(p, o, workspace, splits, elements, stream) : status;
  });
}

}  // namespace fastconv::FASTCONV_GPU
