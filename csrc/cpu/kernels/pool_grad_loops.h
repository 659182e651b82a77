// What the gradients of max- and average-pooling have in common. Every input element gathers from the windows that cover
// it, so a task writes only what it owns, in a fixed order, whatever the number of threads.
#pragma once

#include "pool_loops.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// kLanes values of a row of grad_output whose elements are `stride` apart; lanes at and past `left` are anything.
template <class T>
inline Vec<Compute<T>> load_strided(const T* p, int64_t stride, int64_t left, const T* end) {
  constexpr int L = kLanes<Compute<T>>;
  if (stride == 1) return load_until<T, L>(p, end, load_wide<T>);
  T some[L] = {};
  for (int l = 0; l < L && l < left; ++l) some[l] = p[l * stride];
  return load_wide<T>(some);
}

// Writes one row of grad_input. gather(slot, i, v) fills N vectors with the gradients of the padded columns of one phase
// from index i on (see Phases). Columns that no tap reads get zero. `linear` holds a.in + kMargin elements.
template <class T, class Gather>
inline void emit_row(const Axis& a, const Phases& phases, T* to, const T* end, Compute<T>* linear, Gather&& gather) {
  using A = Compute<T>;
  constexpr int L = kLanes<A>;
  auto put = [&](int64_t w, Vec<A> v) {
    if (w < a.in) store_until<T, L>(to + w, end, [&](T* p) { store_narrow<T>(p, v); });
  };
  if (a.stride == 1) {
    in_blocks(ceil_div(a.in, L), [&](int64_t first, auto count) {
      constexpr int N = decltype(count)::value;
      Vec<A> v[N];
      gather(int64_t{0}, first * L + a.pad, v, count);
      for (int n = 0; n < N; ++n) put((first + n) * L, v[n]);
    });
  } else if (a.stride == 2 && phases.slots == 2) {
    in_blocks(ceil_div(a.in, 2 * L), [&](int64_t first, auto count) {
      constexpr int N = decltype(count)::value;
      const int64_t u = first * 2 * L + a.pad;
      Vec<A> even[N], odd[N];
      gather(u & 1, u >> 1, even, count);
      gather((u + 1) & 1, (u + 1) >> 1, odd, count);
      for (int n = 0; n < N; ++n) {
        put((first + n) * 2 * L, interleave<A, 0>(even[n], odd[n]));
        put((first + n) * 2 * L + L, interleave<A, 1>(even[n], odd[n]));
      }
    });
  } else {
    fill(linear, a.in, A(0));
    for (int64_t slot = 0; slot < phases.slots; ++slot) {
      const int64_t phase = phases.phase(slot);
      int64_t i = a.pad > phase ? ceil_div(a.pad - phase, a.stride) : 0;
      int64_t w = i * a.stride + phase - a.pad;
      while (w < a.in) {
        Vec<A> v[1];
        gather(slot, i, v, Count<1>{});
        for (int l = 0; l < L && w < a.in; ++l, w += a.stride) linear[w] = v[0][l];
        i += L;
      }
    }
    for (int64_t w = 0; w < a.in; w += L) put(w, load(linear + w));
  }
}

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
