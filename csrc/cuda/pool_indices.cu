// Window offsets of max-pooling as torch's 64-bit indices: positions in the input's plane, -1 for none.
// One thread per output; 1 to 4 bytes read, 8 written: bound by the writes. Made only for return_indices=True.
#include "index.cuh"
#include "rows.h"

namespace fastconv::FASTCONV_GPU {
namespace {

constexpr int kThreads = 256;

struct Window {
  int64_t p, q, c, h, w, r, s;
  int64_t stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;
};

// Offsets are a caller's tensor: whatever they hold, an index is a position in the plane or -1.
template <class Offset>
__global__ void __launch_bounds__(kThreads)
    write_indices(Window t, int64_t outputs, Strides<int64_t> from, Strides<int64_t> to, const Offset* offsets,
                  int64_t* indices) {
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < outputs; i += step) {
    const int64_t x = i % t.q, y = i / t.q % t.p, c = i / t.q / t.p % t.c, n = i / t.q / t.p / t.c;
    const int64_t offset = offsets[from.at(n, c, y, x)];
    const int64_t row = y * t.stride_h - t.pad_top + offset / t.s * t.dilation_h;
    const int64_t column = x * t.stride_w - t.pad_left + offset % t.s * t.dilation_w;
    const bool inside = offset < t.r * t.s && row >= 0 && row < t.h && column >= 0 && column < t.w;
    indices[to.at(n, c, y, x)] = inside ? row * t.w + column : -1;
  }
}

template <class Offset>
Status launch_for(const PoolProblem& p, const void* offsets, int64_t* indices, void* stream) {
  const Window window{p.p,        p.q,        p.c,       p.h,        p.w,          p.r,         p.s,
                      p.stride_h, p.stride_w, p.pad_top, p.pad_left, p.dilation_h, p.dilation_w};
  const int64_t outputs = p.n * p.c * p.p * p.q, blocks = div_up(outputs, kThreads);
  const unsigned grid = static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks);
  return launch("write_indices", write_indices<Offset>, dim3{grid, 1, 1}, dim3{kThreads, 1, 1}, 0, stream, window,
                outputs, Strides<int64_t>(p.offset_strides), Strides<int64_t>(p.y_strides),
                static_cast<const Offset*>(offsets), indices);
}

}  // namespace

Status pool_indices(const PoolProblem& p, const void* offsets, int64_t* indices, void* stream) {
  switch (p.offset_bytes) {
    case 1: return launch_for<uint8_t>(p, offsets, indices, stream);
    case 2: return launch_for<uint16_t>(p, offsets, indices, stream);
    default: return launch_for<uint32_t>(p, offsets, indices, stream);
  }
}

}  // namespace fastconv::FASTCONV_GPU
