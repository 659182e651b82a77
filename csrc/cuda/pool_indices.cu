// Window offsets of max-pooling as torch's 64-bit indices: positions in the input's plane, -1 for none.
// One thread per output; 1 to 4 bytes read, 8 written: bound by the writes. Made only for return_indices=True.
#include "max_pool.cuh"
#include "rows.h"

namespace fastconv::FASTCONV_GPU {
namespace {

// Offsets are a caller's tensor: whatever they hold, an index is a position in the plane or -1.
__global__ void __launch_bounds__(kTileThreads)
    write_indices(PoolWindow<int64_t> g, Elements<int64_t> outputs, Strides<int64_t> from, Strides<int64_t> to,
                  const void* offsets, int offset_bytes, int64_t* indices) {
  const int64_t step = int64_t{gridDim.x} * kTileThreads;
  for (int64_t i = int64_t{blockIdx.x} * kTileThreads + threadIdx.x; i < outputs.count; i += step) {
    int64_t n, c, p, q;
    outputs.at(i, n, c, p, q);
    const int64_t offset = load_code(offsets, offset_bytes, from.at(n, c, p, q));
    const int64_t r = offset / g.columns.window, s = offset % g.columns.window;
    const int64_t row = g.rows.start(p) + r * g.rows.dilation, column = g.columns.start(q) + s * g.columns.dilation;
    const bool inside = r < g.rows.window && row >= 0 && row < g.rows.in && column >= 0 && column < g.columns.in;
    indices[to.at(n, c, p, q)] = inside ? row * g.columns.in + column : -1;
  }
}

}  // namespace

Status pool_indices(const PoolProblem& p, const void* offsets, int64_t* indices, void* stream) {
  const Elements<int64_t> outputs(p.y_sizes(), p.y_strides);
  return launch("write_indices", write_indices, grid_of(std::min(blocks_for(outputs.count), kMostBlocks)),
                block_of(kTileThreads), 0, stream, PoolWindow<int64_t>(p), outputs, Strides<int64_t>(p.offset_strides),
                Strides<int64_t>(p.y_strides), offsets, static_cast<int>(p.offset_bytes), indices);
}

}  // namespace fastconv::FASTCONV_GPU
