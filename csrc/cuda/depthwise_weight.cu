// Pass grad_weight of row `depthwise`, with grad_bias.
#include "depthwise_weight.cuh"

#include "depthwise_plan.cuh"

namespace fastconv::FASTCONV_GPU {
namespace {

ChannelTiles weight_tiles(const ConvProblem& p, DepthwisePath path) {
  const int64_t vector = path == DepthwisePath::channels ? vector_of(p) : 1;
  const int64_t line = path == DepthwisePath::channels ? 128 / (vector * size_of(p.dtype)) : 1;
  ChannelTiles tiles(p.n, p.p(), p.q(), p.k / vector, line, 4, kWeightThreads);
  const int64_t columns = tiles.column_blocks.divisor;
  const int64_t wanted = div_up(2 * kFullThreads, kWeightThreads * tiles.vector_blocks.divisor * columns);
  tiles.fold_units(std::clamp<int64_t>(wanted, 1, std::max<int64_t>(kMostPartials / columns, 1)));
  return tiles;
}
int64_t partials_of(const ChannelTiles& tiles) { return int64_t{tiles.column_blocks.divisor} * tiles.unit_blocks; }

template <class T>
Status add_partials(const ConvProblem& p, const ConvOperands& o, const Compute<T>* partials, int64_t count,
                    void* stream) {
  const int64_t taps = p.r * p.s, values = (taps + 1) * p.k;
  return launch("depthwise weight sums", sum_partials<T>, grid_of(div_up(values, kSumValues)),
                block_of(kSumValues * kSumSlices), 0, stream, partials, static_cast<int32_t>(count), values,
                Divider<int64_t>(p.k), taps, p.s, Strides<int64_t>(p.weight_strides), static_cast<T*>(o.weight),
                p.bias ? static_cast<T*>(o.grad_bias) : nullptr);
}

template <class Traits>
Status launch_weight(const ConvPlan& plan, const ConvOperands& o, DepthwisePath path, void* workspace, void* stream) {
  using T = typename Traits::T;
  const ConvProblem& p = plan.problem;
  const ChannelTiles tiles = weight_tiles(p, path);
  auto* partials = static_cast<typename Traits::A*>(workspace);
  dim3 grid = grid_of(tiles.blocks);
  if (Traits::R == 1) grid.y = static_cast<unsigned>(std::min<int64_t>(p.r * p.s, 65535));
  const Status status =
      launch("depthwise weight", depthwise_weight<Traits>, grid,
             block_of(Traits::V == 1 ? kWeightThreads : tiles.threads()), 0, stream,
             WeightShape<typename Traits::Index>(p), tiles, GradOutput<T, typename Traits::Index>(p, o),
             static_cast<const T*>(o.x), partials);
  if (!status) return status;
  return add_partials<T>(p, o, partials, partials_of(tiles), stream);
}

template <class T>
Status run_weight(const ConvPlan& plan, const ConvOperands& o, void* workspace, void* stream) {
  const ConvProblem& p = plan.problem;
  // Addresses that forbid vectors lead to the same plan's workspace: sized for either path.
  auto path = static_cast<DepthwisePath>(plan.detail[kDepthwisePath]);
  if (path == DepthwisePath::channels && !vectors_allowed(p, o)) path = DepthwisePath::columns;
  const auto with = [&](auto traits) {
    return launch_weight<decltype(traits)>(plan, o, path, workspace, stream);
  };
  if constexpr (!std::is_same_v<T, double>) {
    if (path == DepthwisePath::channels) {
      if (p.r == 3)
        return p.stride_h == 1 ? with(WeightTraits<T, 3, 1, 4, int32_t>{}) : with(WeightTraits<T, 3, 2, 4, int32_t>{});
      return with(WeightTraits<T, 5, 1, 2, int32_t>{});
    }
    if (path == DepthwisePath::columns) {
      if (p.r == 3)
        return p.stride_h == 1 ? with(WeightTraits<T, 3, 1, 1, int32_t>{}) : with(WeightTraits<T, 3, 2, 1, int32_t>{});
      return with(WeightTraits<T, 5, 1, 1, int32_t>{});
    }
  }
  if (plan.detail[kDepthwiseInt32]) return with(WeightTraits<T, 1, 1, 1, int32_t>{});
  return with(WeightTraits<T, 1, 1, 1, int64_t>{});
}

}  // namespace

void depthwise_weight_plan(const ConvProblem& p, ConvPlan& plan) {
  DepthwisePath path = DepthwisePath::any;
  if (may_walk(p)) path = channels_fit(p) ? DepthwisePath::channels : DepthwisePath::columns;
  plan.detail[kDepthwisePath] = static_cast<int64_t>(path);
  plan.detail[kDepthwiseInt32] = fits_int32(p);
  if (is_empty(p.y_sizes()) || is_empty(p.x_sizes())) return;  // sums of nothing
  const ChannelTiles tiles = weight_tiles(p, path);
  int64_t partials = partials_of(tiles);
  if (path == DepthwisePath::channels)
    partials = std::max(partials, partials_of(weight_tiles(p, DepthwisePath::columns)));
  plan.detail[kDepthwisePartials] = partials;
  plan.workspace_bytes = partials * (p.r * p.s + 1) * p.k * (p.dtype == DType::f64 ? 8 : 4);
  const int64_t bytes = path == DepthwisePath::any ? p.minimum_bytes() * p.r * p.s : p.minimum_bytes();
  plan.cost = depthwise_seconds(p, path, bytes + 2 * plan.workspace_bytes, tiles.blocks * kWeightThreads, 2);
}

Status depthwise_weight_run(const ConvPlan& plan, const ConvOperands& o, void* workspace, void* stream) {
  const ConvProblem& p = plan.problem;
  if (p.k == 0) return {};
  return with_float(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (plan.detail[kDepthwisePartials] == 0) return add_partials<T>(p, o, nullptr, 0, stream);
    return run_weight<T>(plan, o, workspace, stream);
  });
}

}  // namespace fastconv::FASTCONV_GPU
