// What the layouts of tensor-core instructions share, and the conflict-free orders of their operands in shared memory.
#pragma once

#include "runtime.cuh"

namespace fastconv::FASTCONV_GPU {

struct Coordinate {
  int row, column;
};

// Byte offsets within a tile of rows of RowBytes, from a base aligned to 8 rows: the 16-byte chunks of a row are permuted
// by the row's number, so that a column of 8 chunks lies in 8 different groups of banks. Its own inverse.
template <int RowBytes>
__host__ __device__ __forceinline__ constexpr unsigned swizzle(unsigned offset) {
  static_assert(RowBytes == 32 || RowBytes == 64 || RowBytes == 128);
  return offset ^ (offset >> 3 & (RowBytes - 16));
}

__device__ __forceinline__ unsigned pack_halves(unsigned short low, unsigned short high) {
  return static_cast<unsigned>(low) | static_cast<unsigned>(high) << 16;
}

}  // namespace fastconv::FASTCONV_GPU
