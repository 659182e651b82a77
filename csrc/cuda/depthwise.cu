// Row `depthwise`: every input channel has filters of its own (groups == c).
#include "depthwise.cuh"

#include "depthwise_plan.cuh"
#include "rows.h"

namespace fastconv::FASTCONV_GPU {
namespace {

ChannelTiles channel_tiles(const ConvProblem& p) {
  const DepthwiseShape s = shape_of(p);
  const int64_t vector = vector_of(p);
  return ChannelTiles(p.n, s.rows, s.columns, p.c / vector, 128 / (vector * size_of(p.dtype)), 4);
}
bool planes_fit(const ConvProblem& p) {
  return p.group_k() == 1 && is_dense(p.x_sizes(), p.x_strides, Layout::nchw) &&
         is_dense(p.y_sizes(), p.y_strides, Layout::nchw) && (!p.has_aux() || p.aux_strides == p.y_strides) &&
         plane_tiles(p).blocks > 0;
}

template <class T>
Status run_channels(const ConvProblem& p, const ConvOperands& o, void* stream) {
  const bool forward = p.pass == Pass::forward;
  const DepthwiseShape shape = shape_of(p);
  const DepthwiseSource<T> source(p, o);
  const T* filter = static_cast<const T*>(o.weight);
  T* result = static_cast<T*>(forward ? o.y : o.x);
  const Epilogue<T, int32_t> epilogue(p, o);
  const ChannelTiles tiles = channel_tiles(p);
  return with_walk(p, [&](auto walk) {
    return launch("depthwise channels", depthwise_channels<T, decltype(walk)>, grid_of(tiles.blocks),
                  block_of(tiles.threads()), 0, stream, shape, tiles, source, FilterStrides(p), filter,
                  Strides<int32_t>(forward ? p.y_strides : p.x_strides), result, epilogue);
  });
}

template <class T, class Index>
Status run_any(const ConvProblem& p, const ConvOperands& o, void* stream) {
  const bool forward = p.pass == Pass::forward;
  const Sizes4 sizes = forward ? p.y_sizes() : p.x_sizes();
  const int64_t blocks = blocks_for(sizes[0] * sizes[1] * sizes[2] * sizes[3]);
  if (blocks > kMostBlocks) return Status::refuse("has more elements than a grid has threads");
  const DepthwiseAny<Index> g(p);
  const T* filter = static_cast<const T*>(o.weight);
  if (forward)
    return launch("depthwise any", depthwise_any<T, Index>, grid_of(blocks), block_of(kTileThreads), 0, stream, g,
                  static_cast<const T*>(o.x), filter, static_cast<T*>(o.y), Epilogue<T, Index>(p, o));
  return launch("depthwise any gradient", depthwise_any_gradient<T, Index>, grid_of(blocks), block_of(kTileThreads), 0,
                stream, g, static_cast<T*>(o.x), filter, GradOutput<T, Index>(p, o), Epilogue<T, Index>(p, o).bias);
}

DepthwisePath choose_path(const ConvProblem& p) {
  if (!may_walk(p)) return DepthwisePath::any;
  return channels_fit(p) ? DepthwisePath::channels : planes_fit(p) ? DepthwisePath::planes : DepthwisePath::any;
}

}  // namespace

Status depthwise_supports(const ConvProblem& p) {
  if (is_integer(p.dtype)) return Status::refuse("takes floating-point types only");
  if (p.groups != p.c)
    return Status::refuse("takes one input channel per group only: groups is " + std::to_string(p.groups) +
                          " with c " + std::to_string(p.c));
  constexpr int64_t kMost = (int64_t{1} << 31) - 1;  // images, rows and filters of path any's grad_weight
  if (p.pass == Pass::grad_weight && (p.n * p.p() > kMost || p.k > kMost || p.w > kMost || p.h > kMost))
    return Status::refuse("grad_weight counts rows of all images, and filters, in 32 bits");
  return {};
}

void depthwise_plan(const ConvProblem& p, int threads, ConvPlan& plan) {
  plan.threads = threads;
  plan.executed_macs = p.macs();
  if (p.pass == Pass::grad_weight) return depthwise_weight_plan(p, plan);
  const DepthwisePath path = choose_path(p);
  int64_t count = p.n * (p.pass == Pass::forward ? p.k * p.p() * p.q() : p.c * p.h * p.w);
  if (path == DepthwisePath::channels) {
    const ChannelTiles tiles = channel_tiles(p);
    count = tiles.blocks * tiles.threads();
  } else if (path == DepthwisePath::planes) {
    count = plane_tiles(p).blocks * kTileThreads;
  }
  plan.detail[kDepthwisePath] = static_cast<int64_t>(path);
  plan.detail[kDepthwiseInt32] = fits_int32(p);
  plan.cost = depthwise_seconds(p, path, p.minimum_bytes(), count, 1);
}

Status depthwise_run(const ConvPlan& plan, const ConvOperands& o, void* workspace, const Execution& execution) {
  const ConvProblem& p = plan.problem;
  if (p.pass == Pass::grad_weight) return depthwise_weight_run(plan, o, workspace, execution.stream);
  void* const stream = execution.stream;
  if (is_empty(p.pass == Pass::forward ? p.y_sizes() : p.x_sizes())) return {};
  return with_float(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    auto path = static_cast<DepthwisePath>(plan.detail[kDepthwisePath]);
    if (path == DepthwisePath::channels && !vectors_allowed(p, o)) path = DepthwisePath::any;
    // A mask is read along with grad_output, 16 bytes at a time.
    if (path == DepthwisePath::planes && p.pass == Pass::grad_input && p.has_aux() &&
        lead_of(static_cast<const T*>(o.aux)) != lead_of(static_cast<const T*>(o.y)))
      path = DepthwisePath::any;
    if constexpr (!std::is_same_v<T, double>) {
      if (path == DepthwisePath::channels) return run_channels<T>(p, o, stream);
      if (path == DepthwisePath::planes) return depthwise_planes_run(p, o, stream);
    }
    if constexpr (!std::is_same_v<T, double>)
      if (plan.detail[kDepthwiseInt32]) return run_any<T, int32_t>(p, o, stream);
    return run_any<T, int64_t>(p, o, stream);
  });
}

}  // namespace fastconv::FASTCONV_GPU
