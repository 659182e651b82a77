// Moving tensors into the order that the register tile reads, widening to the compute type on the way.
#pragma once

#include <utility>

#include "activation.h"
#include "lines.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

template <class T>
inline Vec<Compute<T>> load_widened(const T* p) {
  using A = Compute<T>;
  if constexpr (sizeof(T) == sizeof(A) && !std::is_integral_v<T>) {
    return load(p);
  } else {
    A wide[kLanes<A>];
    for (int l = 0; l < kLanes<A>; ++l) wide[l] = widen(p[l]);
    return load(wide);
  }
}

// A strided matrix of T read as Compute<T>: element (i, j). With a mask (the output of an
// activation, same shape, own strides) the values are gradients of that output, and read as those of its input.
template <class T>
struct Reader {
  using A = Compute<T>;
  const T* p;
  int64_t si, sj;
  const T* mask = nullptr;
  int64_t mask_si = 0, mask_sj = 0;
  OutputGradient<A> gradient{};

  A at(int64_t i, int64_t j) const {
    const A v = widen(p[i * si + j * sj]);
    if (!mask) return v;
    return gradient.one(v, widen(mask[i * mask_si + j * mask_sj]));
  }
  // The same matrix from (i, j) on.
  Reader from(int64_t i, int64_t j) const {
    Reader r = *this;
    r.p += i * si + j * sj;
    if (mask) r.mask += i * mask_si + j * mask_sj;
    return r;
  }
  bool contiguous_i() const { return si == 1 && (!mask || mask_si == 1); }
  bool contiguous_j() const { return sj == 1 && (!mask || mask_sj == 1); }
  // kLanes values starting at (i, j) along the dimension that is contiguous.
  Vec<A> lanes_at(int64_t i, int64_t j) const {
    const Vec<A> v = load_widened(p + i * si + j * sj);
    if (!mask) return v;
    return gradient(v, load_widened(mask + i * mask_si + j * mask_sj));
  }
};

// One butterfly stage of a register transpose: rows whose index differs in bit D swap their off-diagonal D-blocks.
template <int D, class V, size_t... J>
inline void exchange(V& a, V& b, std::index_sequence<J...>) {
  constexpr int L = sizeof...(J);
  const V low = __builtin_shufflevector(a, b, ((J & D) ? L + (J ^ D) : J)...);
  const V high = __builtin_shufflevector(a, b, ((J & D) ? L + J : (J ^ D))...);
  a = low;
  b = high;
}

template <class A, int D = kLanes<A> / 2>
inline void transpose_registers(Vec<A>* rows) {
  constexpr int L = kLanes<A>;
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i)
    if (!(i & D)) exchange<D>(rows[i], rows[i | D], std::make_index_sequence<L>{});
  if constexpr (D > 1) transpose_registers<A, D / 2>(rows);
}

// Rows i to i + ni and columns j to j + nj, at most L of each, turned.
template <class T, class DstRow>
inline void pack_corner(const Reader<T>& reader, int64_t i, int64_t j, int64_t ni, int64_t nj, DstRow&& dst_row) {
  constexpr int L = kLanes<Compute<T>>;
  if constexpr (std::is_same_v<T, float>) {
    if (!reader.mask) {
      Vec<float> rows[L];
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l)
        rows[l] = l < ni ? load_part(reader.p + (i + l) * reader.si + j, nj) : Vec<float>{};
      transpose_registers<float>(rows);
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l)
        if (l < nj) store_part(dst_row(j + l) + i, rows[l], ni);
      return;
    }
  }
  for (int64_t c = j; c < j + nj; ++c) {
    auto* dst = dst_row(c);
    for (int64_t r = i; r < i + ni; ++r) dst[r] = reader.at(r, c);
  }
}

// dst_row(j)[i] = reader(i, j) for i < ni, j < nj, where j is the contiguous dimension of the source: a transpose in
// registers, L x L values at a time.
template <class T, class DstRow>
inline void pack_transposed(const Reader<T>& reader, int64_t ni, int64_t nj, DstRow&& dst_row) {
  using A = Compute<T>;
  constexpr int L = kLanes<A>;
  for (int64_t i = 0; i < ni; i += L)
    for (int64_t j = 0; j < nj; j += L) {
      if (i + L > ni || j + L > nj) {
        pack_corner(reader, i, j, i + L > ni ? ni - i : L, j + L > nj ? nj - j : L, dst_row);
        continue;
      }
      Vec<A> rows[L];
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) rows[l] = reader.lanes_at(i + l, j);
      transpose_registers<A>(rows);
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) store(dst_row(j + l) + i, rows[l]);
    }
}

// dst_row(j)[i] = reader(i, j) for i < ni, j < nj, whatever the strides.
template <class T, class DstRow>
inline void pack(const Reader<T>& reader, int64_t ni, int64_t nj, DstRow&& dst_row) {
  using A = Compute<T>;
  constexpr int L = kLanes<A>;
  if (reader.contiguous_i()) {
    for (int64_t j = 0; j < nj; ++j) {
      A* dst = dst_row(j);
      int64_t i = 0;
      for (; i + L <= ni; i += L) store(dst + i, reader.lanes_at(i, j));
      if constexpr (std::is_same_v<T, float>) {
        if (i < ni && !reader.mask) {
          store_part(dst + i, load_part(reader.p + i + j * reader.sj, ni - i), ni - i);
          continue;
        }
      }
      for (; i < ni; ++i) dst[i] = reader.at(i, j);
    }
  } else if (reader.contiguous_j()) {
    pack_transposed(reader, ni, nj, dst_row);
  } else {
    for (int64_t j = 0; j < nj; ++j) {
      A* dst = dst_row(j);
      for (int64_t i = 0; i < ni; ++i) dst[i] = reader.at(i, j);
    }
  }
}

template <class A>
inline void zero(A* p, int64_t count) {
  for (int64_t i = 0; i < count; ++i) p[i] = A(0);
}

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
