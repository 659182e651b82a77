// One-dimensional Winograd transforms on vectors: straight-line code made from the matrices at compile time. Zeros
// vanish, and the rows of +p and -p share their sums over even and over odd columns.
#pragma once

#include "../winograd_transforms.h"
#include "numeric.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

#define FASTCONV_INLINE inline __attribute__((always_inline))

using Lanes = Vec<float>;

template <int Outputs, int Taps>
struct Form {
  static constexpr int outputs = Outputs, taps = Taps, size = Outputs + Taps - 1, pairs = (size - 2) / 2;
  static constexpr winograd::Matrices<Outputs, Taps> f = winograd::matrices<Outputs, Taps>();
  // Tags that name one matrix each.
  struct B {
    static constexpr int rows = size, columns = size;
    static constexpr float at(int i, int j) { return static_cast<float>(f.b[i][j]); }
  };
  struct G {
    static constexpr int rows = size, columns = Taps;
    static constexpr float at(int i, int j) { return static_cast<float>(f.g[i][j]); }
  };
  struct A {
    static constexpr int rows = Outputs, columns = size;
    static constexpr float at(int i, int j) { return static_cast<float>(f.a[i][j]); }
  };
};

// sum + matrix[Row][j] * d[j] over j = J, J - Step, ... >= 0. From the highest column down, where B^T has its ones, so
// that a fused multiply-add takes them in as the addend.
template <class Matrix, int Row, int J, int Step, bool Started>
FASTCONV_INLINE Lanes dot(const Lanes* d, Lanes sum) {
  if constexpr (J < 0) {
    return sum;
  } else {
    constexpr float c = Matrix::at(Row, J);
    if constexpr (c == 0)
      return dot<Matrix, Row, J - Step, Step, Started>(d, sum);
    else if constexpr (Started)
      return dot<Matrix, Row, J - Step, Step, true>(d, sum + c * d[J]);
    else
      return dot<Matrix, Row, J - Step, Step, true>(d, c * d[J]);
  }
}

// Whether the rows of +p and -p differ in the columns J, J - 2, ...: they do so in sign, in one of the two halves.
template <class Matrix, int Row, int J>
constexpr bool differ() {
  if constexpr (J < 0)
    return false;
  else
    return Matrix::at(Row, J) != Matrix::at(Row + 1, J) || differ<Matrix, Row, J - 2>();
}

// out = matrix * d for B^T and G, whose rows come as 0, pairs of +-p, infinity.
template <class Matrix, int Row = 0>
FASTCONV_INLINE void analyse(const Lanes* d, Lanes* out) {
  constexpr int J = Matrix::columns - 1;
  if constexpr (Row == 0 || Row == Matrix::rows - 1) {
    out[Row] = dot<Matrix, Row, J, 1, false>(d, Lanes{});
    if constexpr (Row == 0) analyse<Matrix, 1>(d, out);
  } else {
    constexpr bool top_changes = differ<Matrix, Row, J>();
    static_assert(top_changes != differ<Matrix, Row, J - 1>());
    const Lanes top = dot<Matrix, Row, J, 2, false>(d, Lanes{}), next = dot<Matrix, Row, J - 1, 2, false>(d, Lanes{});
    out[Row] = top + next;
    out[Row + 1] = top_changes ? next - top : top - next;
    analyse<Matrix, Row + 2>(d, out);
  }
}

// y = A^T * m: column pairs +-p enter rows of even power by their sum, of odd power by their difference.
template <class F, int Row, int Pair>
FASTCONV_INLINE Lanes pairs_sum(const Lanes* folded, Lanes sum, bool started) {
  if constexpr (Pair == F::pairs) {
    return sum;
  } else {
    constexpr float c = F::A::at(Row, 2 * Pair + 1);
    return pairs_sum<F, Row, Pair + 1>(folded, started ? sum + c * folded[Pair] : c * folded[Pair], true);
  }
}
template <class F, int Row = 0>
FASTCONV_INLINE void synthesise_rows(const Lanes* m, const Lanes* even, const Lanes* odd, Lanes* y) {
  if constexpr (Row < F::outputs) {
    y[Row] = Row == 0 ? pairs_sum<F, Row, 0>(even, m[0], true)
                      : pairs_sum<F, Row, 0>(Row % 2 ? odd : even, Row == F::outputs - 1 ? m[F::size - 1] : Lanes{},
                                             Row == F::outputs - 1);
    synthesise_rows<F, Row + 1>(m, even, odd, y);
  }
}
template <class F>
FASTCONV_INLINE void synthesise(const Lanes* m, Lanes* y) {
  Lanes even[F::pairs], odd[F::pairs];
#pragma GCC unroll 8
  for (int i = 0; i < F::pairs; ++i) {
    even[i] = m[2 * i + 1] + m[2 * i + 2];
    odd[i] = m[2 * i + 1] - m[2 * i + 2];
  }
  synthesise_rows<F>(m, even, odd, y);
}

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
