// Path planes of row `depthwise`: NCHW, forward and grad_input.
#include "depthwise.cuh"

namespace fastconv::FASTCONV_GPU {
namespace {

template <class T>
Status run_planes(const ConvProblem& p, const ConvOperands& o, void* stream) {
  const DepthwiseShape shape = shape_of(p);
  const PlaneTiles tiles = plane_tiles(p);
  const DepthwiseSource<T> source(p, o);
  const T* filter = static_cast<const T*>(o.weight);
  T* result = static_cast<T*>(p.pass == Pass::forward ? o.y : o.x);
  const Epilogue<T, int32_t> epilogue(p, o);
  return with_walk(p, [&](auto walk) {
    return launch("depthwise planes", depthwise_planes<T, decltype(walk)>, grid_of(tiles.blocks),
                  block_of(kTileThreads), tiles.shared_bytes, stream, shape, tiles, Divider<int32_t>(p.c), source,
                  FilterStrides(p), filter, result, epilogue);
  });
}

}  // namespace

Status depthwise_planes_run(const ConvProblem& p, const ConvOperands& o, void* stream) {
  switch (p.dtype) {
    case DType::f32: return run_planes<float>(p, o, stream);
    case DType::f16: return run_planes<f16>(p, o, stream);
    case DType::bf16: return run_planes<bf16>(p, o, stream);
    default: return Status::refuse("walks over f32, f16 and bf16 only");
  }
}

}  // namespace fastconv::FASTCONV_GPU
