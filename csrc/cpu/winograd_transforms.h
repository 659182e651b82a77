// The matrices of Winograd's minimal filtering, derived at compile time from interpolation points.
//
// F(m, r) computes m outputs of an r-tap correlation, y_i = sum_k d_{i+k} g_k, with n = m + r - 1 multiplications:
//
//     y = A^T [ (G g) * (B^T d) ]
//
// and in two dimensions Y = A^T [ (G g G^T) * (B^T d B) ] A (Winograd 1980; Lavin & Gray, "Fast algorithms for
// convolutional neural networks", CVPR 2016). The construction is Toom-Cook's, transposed: with points p_0 ... p_{n-2}
// and infinity, N_j = prod_{l != j} (p_j - p_l),
//
//     A^T[i][j] = p_j^i        G[j][k] = p_j^k / N_j     B^T[j] = coefficients of prod_{l != j} (x - p_l)
//     A^T[.][inf] = e_{m-1}    G[inf]  = e_{r-1}         B^T[inf] = coefficients of prod_l (x - p_l)
//
// because Lagrange's interpolation reproduces x^{i+k} for i + k <= n - 2, and for n - 1 leaves prod_l (x - p_l).
//
// Points come as 0, pairs +-p and infinity, so that both signs share their sums over even and over odd columns. They
// decide the error: (5/8, 3/2) has 3 to 4 times less than (1, 2) for n = 6. They are dyadic, so that A^T and B^T are
// exact in binary floating point. Found by measuring fp32 errors of all triples of fractions over 8 below 3.
#pragma once

#include <array>

namespace fastconv::cpu::winograd {

constexpr int kMaxSize = 8;  // n of the largest transform

constexpr int kMaxPairs = 3;
using Points = std::array<double, kMaxPairs>;  // the positive ones; (n - 2) / 2 of them are used

constexpr Points points_of(int n) {
  return n == 4 ? Points{1.0} : n == 6 ? Points{5.0 / 8, 3.0 / 2} : Points{1.0 / 2, 1.0, 2.0};
}

template <int Outputs, int Taps>
struct Matrices {
  static constexpr int outputs = Outputs, taps = Taps, size = Outputs + Taps - 1;
  static_assert(size % 2 == 0 && size <= kMaxSize);
  double a[Outputs][size]{};  // A^T
  double g[size][Taps]{};     // G
  double b[size][size]{};     // B^T
};

template <int Outputs, int Taps>
constexpr Matrices<Outputs, Taps> matrices() {
  Matrices<Outputs, Taps> f{};
  constexpr int n = Outputs + Taps - 1, last = n - 1;
  // Order: 0, +p0, -p0, +p1, -p1, ..., infinity.
  double p[n]{};
  for (int i = 0; i < (n - 2) / 2; ++i) {
    p[2 * i + 1] = points_of(n)[static_cast<unsigned>(i)];
    p[2 * i + 2] = -p[2 * i + 1];
  }
  for (int j = 0; j <= last; ++j) {
    double polynomial[n + 1]{1.0};
    int degree = 0;
    double norm = 1;
    for (int l = 0; l < last; ++l) {
      if (l == j) continue;
      for (int d = degree + 1; d > 0; --d) polynomial[d] = polynomial[d - 1] - p[l] * polynomial[d];
      polynomial[0] *= -p[l];
      ++degree;
      norm *= p[j] - p[l];
    }
    for (int d = 0; d < n; ++d) f.b[j][d] = polynomial[d];
    double power = 1;
    if (j < last) {
      for (int i = 0; i < Outputs || i < Taps; ++i, power *= p[j]) {
        if (i < Outputs) f.a[i][j] = power;
        if (i < Taps) f.g[j][i] = power / norm;
      }
    }
  }
  f.a[Outputs - 1][last] = 1;
  f.g[last][Taps - 1] = 1;
  return f;
}

// The forms that exist: (outputs, taps). F(3,4) makes a 3x3 filter's gradient from tiles of 4x4 grad_outputs.
#define FASTCONV_WINOGRAD_FORMS(form) form(2, 3) form(4, 3) form(6, 3) form(2, 5) form(4, 5) form(3, 2) form(3, 4) \
  form(5, 2)

}  // namespace fastconv::cpu::winograd
