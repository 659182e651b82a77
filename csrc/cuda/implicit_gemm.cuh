// What im2col borrows from implicit_gemm: a convolution with a 1x1 window is the matrix product that im2col needs.
#pragma once

#include <vector>

#include "gather.cuh"
#include "weight_gradient.cuh"

namespace fastconv::FASTCONV_GPU {

// A matrix product as the choice of a tile sees it: one of these for every phase.
struct GemmSize {
  int64_t rows, columns, depth, batch;
};
struct GemmChoice {
  int64_t tile = 0, blocks = 0, macs = 0;  // multiplications include what lies beyond the edges of tiles
  double seconds = 0;                      // by the multiplications alone
};
GemmChoice predict_tile(DType, int64_t tile, const std::vector<GemmSize>&);
GemmChoice choose_tile(DType, const std::vector<GemmSize>&);

// Seconds of a pass of so many launches that takes `seconds` for its multiplications and moves so many bytes.
double predicted_seconds(double seconds, int64_t bytes, int launches);

// A gather without its phases, and the choice of wide accesses, once the phases are known.
template <class T>
struct GatherLaunch {
  Gather<T> gather;
  std::vector<Axis> rows, columns;  // the phases

  void choose_accesses();
  Status run(int64_t tile, void* stream) const;
};
template <class T>
GatherLaunch<T> gather_of(const ConvProblem&, const ConvOperands&);

Status refuse_large(const ConvProblem&);

// Whether rows of `width` follow each other without a gap, so that pixels are numbered by one stride.
inline bool is_flat(const Strides<int32_t>& s, int64_t height, int64_t width) {
  return (width == 1 || s.w == 1) && (height == 1 || s.h == width);
}
inline bool is_multiple(std::initializer_list<int64_t> values, int64_t of) {
  for (int64_t v : values)
    if (v % of) return false;
  return true;
}
inline bool is_aligned(const void* p, int64_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

}  // namespace fastconv::FASTCONV_GPU
