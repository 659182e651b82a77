// From a tile of finished sums to the output tensor: bias, residual, activation, narrowing, any strides. The one place
// on the CPU that knows what an epilogue is.
#pragma once

#include "activation.h"
#include "pack.h"
#include "tile.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

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
  Activated<A> activation;
  bool has_bias = false;
  A bias[kTileWidth<A>] = {};  // of the current filter block

  void load_bias(const T* from, int64_t filters) {
    has_bias = from != nullptr;
    if (!has_bias) return;
    for (int64_t l = 0; l < kTileWidth<A>; ++l) bias[l] = l < filters ? widen(from[l]) : A(0);
  }

  // acc is [rows][kTileWidth]; a residual is added to it in place, and an activation beyond ReLU done there.
  void write(A* acc, int64_t rows, int64_t filters, const TileOutput<T>& out) const {
    constexpr int W = kTileWidth<A>, L = kLanes<A>;
    if (out.residual) {
      A more[kTileHeight * W];
      pack(Reader<T>{out.residual, out.residual_filter_stride, out.residual_pixel_stride}, filters, rows,
           [&](int64_t m) { return more + m * W; });
      for (int64_t m = 0; m < rows; ++m)
        for (int v = 0; v * L < filters; ++v) {
          const int64_t at = m * W + v * L;
          Vec<A> sum = load(acc + at) + load(more + at);
          if (has_bias) sum += load(bias + v * L);
          store(acc + at, sum);
        }
    }
    bool add_bias = has_bias && !out.residual;  // with a residual it is in acc already
    if (activation.in_memory()) {
      if (add_bias)
        for (int64_t m = 0; m < rows; ++m)
          for (int l = 0; l < W; ++l) acc[m * W + l] += bias[l];
      add_bias = false;
      activation.apply(acc, rows * W);
    }
    if (out.filter_stride == 1) {
      for (int64_t m = 0; m < rows; ++m) {
        T* y = out.y + m * out.pixel_stride;
        for (int v = 0; v < kTileVectors; ++v) store_some(y + v * L, finished(acc, m, v, add_bias), filters - v * L);
      }
    } else if (out.pixel_stride == 1) {
      write_planes(acc, rows, filters, add_bias, out);
    } else {
      for (int64_t m = 0; m < rows; ++m)
        for (int v = 0; v < kTileVectors; ++v) {
          const Vec<A> value = finished(acc, m, v, add_bias);
          for (int64_t l = 0; l < L && v * L + l < filters; ++l)
            out.y[m * out.pixel_stride + (v * L + l) * out.filter_stride] = narrow<T>(static_cast<A>(value[l]));
        }
    }
  }

 private:
  // Vector v of pixel m with bias and activation applied, in registers: one pass over the tile.
  Vec<A> finished(const A* acc, int64_t m, int v, bool add_bias) const {
    constexpr int L = kLanes<A>;
    Vec<A> value = load(acc + m * kTileWidth<A> + v * L);
    if (add_bias) value += load(bias + v * L);
    return activation.in_registers(value);
  }

  static void store_some(T* y, const Vec<A>& value, int64_t count) {
    constexpr int L = kLanes<A>;
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
  void write_planes(const A* acc, int64_t rows, int64_t filters, bool add_bias, const TileOutput<T>& out) const {
    constexpr int W = kTileWidth<A>, L = kLanes<A>;
    constexpr int R = (kTileHeight + L - 1) / L * L;
    A turned[W][R];
    for (int64_t m = 0; m < rows; m += L)
      for (int v = 0; v < kTileVectors; ++v) {
        Vec<A> block[L];
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) block[i] = m + i < rows ? finished(acc, m + i, v, add_bias) : Vec<A>{};
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
