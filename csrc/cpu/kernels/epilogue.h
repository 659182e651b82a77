// From a tile of finished sums to the output tensor: scale, bias, residual, activation, narrowing, any strides.
#pragma once

#include "activation.h"
#include "pack.h"
#include "tile.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// Scales and biases from filter `first` on, counted among all groups'; null if there are none.
template <class T>
inline const Compute<T>* scales_of(const ConvProblem& p, const ConvOperands& operands, int64_t first) {
  return p.scale ? static_cast<const Compute<T>*>(operands.scale) + first : nullptr;
}
template <class T>
inline const T* biases_of(const ConvProblem& p, const ConvOperands& operands, int64_t first) {
  return p.bias ? static_cast<const T*>(operands.bias) + first : nullptr;
}

// Where a tile's values go: element (m, l), pixel m of the tile and filter l of the block, of the output and residual.
template <class T>
struct TileOutput {
  T* y;
  int64_t pixel_stride, filter_stride;
  const T* residual = nullptr;
  int64_t residual_pixel_stride = 0, residual_filter_stride = 0;
};

template <class T>
struct Epilogue {
  using A = Compute<T>;
  static constexpr int W = kTileWidth<A>, L = kLanes<A>;
  Activated<A> activation;
  bool affine = false;
  A scale[W], bias[W];  // of the current filter block, if affine

  // The block's scales (none: 1) and biases (none: 0).
  void set(const A* scales, const T* biases, int64_t filters) {
    affine = scales || biases;
    if (!affine) return;
    for (int64_t l = 0; l < W; ++l) {
      scale[l] = scales && l < filters ? scales[l] : A(1);
      bias[l] = biases && l < filters ? widen(biases[l]) : A(0);
    }
  }

  // acc is [rows][kTileWidth]; a residual is added to it in place, and an activation beyond ReLU done there.
  void write(A* acc, int64_t rows, int64_t filters, const TileOutput<T>& out) const {
    bool affine_later = affine;
    if (out.residual || activation.in_memory()) {
      if (affine) scale_and_add_bias(acc, rows);
      if (out.residual) add_residual(acc, rows, filters, out);
      if (activation.in_memory()) activation.apply(acc, rows * W);
      affine_later = false;
    }
    if (std::is_same_v<T, A> && out.filter_stride == 1 && filters == W) {
      if (affine_later)
        activation.relu() ? write_whole<true, true>(acc, rows, out) : write_whole<true, false>(acc, rows, out);
      else
        activation.relu() ? write_whole<false, true>(acc, rows, out) : write_whole<false, false>(acc, rows, out);
    } else if (out.filter_stride == 1) {
      for (int64_t m = 0; m < rows; ++m) {
        T* y = out.y + m * out.pixel_stride;
        for (int v = 0; v < kTileVectors; ++v)
          store_some(y + v * L, finished(acc, m, v, affine_later), filters - v * L);
      }
    } else if (out.pixel_stride == 1) {
      write_planes(acc, rows, filters, affine_later, out);
    } else {
      for (int64_t m = 0; m < rows; ++m)
        for (int v = 0; v < kTileVectors; ++v) {
          const Vec<A> value = finished(acc, m, v, affine_later);
          for (int64_t l = 0; l < L && v * L + l < filters; ++l)
            out.y[m * out.pixel_stride + (v * L + l) * out.filter_stride] = narrow<T>(static_cast<A>(value[l]));
        }
    }
  }

 private:
  void scale_and_add_bias(A* acc, int64_t rows) const {
    for (int64_t m = 0; m < rows; ++m)
      for (int v = 0; v < kTileVectors; ++v) store(acc + m * W + v * L, finished_sum(acc + m * W + v * L, v));
  }
  static void add_residual(A* acc, int64_t rows, int64_t filters, const TileOutput<T>& out) {
    A more[kTileHeight * W];  // lanes beyond `filters` are anything: they are not stored
    pack(Reader<T>{out.residual, out.residual_filter_stride, out.residual_pixel_stride}, filters, rows,
         [&](int64_t m) { return more + m * W; });
    for (int64_t m = 0; m < rows; ++m)
      for (int v = 0; v * L < filters; ++v) {
        const int64_t at = m * W + v * L;
        store(acc + at, load(acc + at) + load(more + at));
      }
  }
  Vec<A> finished_sum(const A* at, int v) const { return load(at) * load(scale + v * L) + load(bias + v * L); }

  // Vector v of pixel m with scale, bias and activation applied, in registers: one pass over the tile.
  Vec<A> finished(const A* acc, int64_t m, int v, bool affine_later) const {
    const A* at = acc + m * W + v * L;
    return activation.in_registers(affine_later ? finished_sum(at, v) : load(at));
  }

  // Whole vectors along filters: what there is to do is decided once, scales and biases stay in registers. 12 vectors of
  // eight lanes take 30 cycles rather than the 200 that a 1x1 convolution's tile with 64 channels takes 380 for.
  template <bool Affine, bool Relu>
  void write_whole(const A* acc, int64_t rows, const TileOutput<T>& out) const {
    if constexpr (std::is_same_v<T, A>) {
      Vec<A> scales[kTileVectors], biases[kTileVectors];
      for (int v = 0; v < kTileVectors; ++v) {
        scales[v] = Affine ? load(scale + v * L) : Vec<A>{};
        biases[v] = Affine ? load(bias + v * L) : Vec<A>{};
      }
      T* y = out.y;
      for (int64_t m = 0; m < rows; ++m, acc += W, y += out.pixel_stride)
#pragma GCC unroll 2
        for (int v = 0; v < kTileVectors; ++v) {
          Vec<A> value = load(acc + v * L);
          if constexpr (Affine) value = value * scales[v] + biases[v];
          store(y + v * L, Relu ? activation.rectified(value) : value);
        }
    }
  }

  static void store_some(T* y, const Vec<A>& value, int64_t count) {
    if constexpr (std::is_same_v<T, A>) {
      if (count >= L) return store(y, value);
    }
    if (count >= L) {
      for (int l = 0; l < L; ++l) y[l] = narrow<T>(static_cast<A>(value[l]));
    } else {
      for (int64_t l = 0; l < count; ++l) y[l] = narrow<T>(static_cast<A>(value[l]));
    }
  }

  // Pixels are contiguous: turn the tile so that each filter's pixels are stored together. Register transposes write
  // whole vectors into a scratch row; at 14 x 32 that halves the cost of this step against a scalar loop.
  void write_planes(const A* acc, int64_t rows, int64_t filters, bool affine_later,
                    const TileOutput<T>& out) const {
    constexpr int R = (kTileHeight + L - 1) / L * L;
    A turned[W][R];
    for (int64_t m = 0; m < rows; m += L)
      for (int v = 0; v < kTileVectors; ++v) {
        Vec<A> block[L];
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) block[i] = m + i < rows ? finished(acc, m + i, v, affine_later) : Vec<A>{};
        transpose_registers<A>(block);
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) store(&turned[v * L + i][m], block[i]);
      }
    if (rows == kTileHeight) {
      for (int64_t l = 0; l < filters; ++l)
        for (int m = 0; m < kTileHeight; ++m) out.y[l * out.filter_stride + m] = narrow<T>(turned[l][m]);
    } else {
      for (int64_t l = 0; l < filters; ++l)
        for (int64_t m = 0; m < rows; ++m) out.y[l * out.filter_stride + m] = narrow<T>(turned[l][m]);
    }
  }
};

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
