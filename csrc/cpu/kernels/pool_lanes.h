// Vector helpers of the pooling kernels: conversions between lanes of different widths, loads and stores at the end of
// a tensor, and splitting even from odd lanes.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <utility>

#include "numeric.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

template <int Bytes>
struct IntOf {
  using type = int64_t;
};
template <>
struct IntOf<1> {
  using type = int8_t;
};
template <>
struct IntOf<2> {
  using type = int16_t;
};
template <>
struct IntOf<4> {
  using type = int32_t;
};
// An integer as wide as E: what comparisons of Vec<E> yield, and the lanes that window offsets travel in.
template <class E>
using Code = typename IntOf<sizeof(E)>::type;

// N lanes of E, however many bytes that is.
template <class E, int N>
struct Lanes {
  typedef E type __attribute__((vector_size(N * sizeof(E))));
  typedef E unaligned __attribute__((vector_size(N * sizeof(E)), aligned(alignof(E)), may_alias));
};

// Integer lanes of another width, zero-extended or truncated, where one instruction does it: of a whole vector of the
// wider ones. GCC 12 finds none of them: it takes eight for 16 offsets to 32 bits, which made gradients 3 times slower.
template <int To, int From, class Narrow, class Wide>
inline bool resize_at_once([[maybe_unused]] Narrow& narrow, [[maybe_unused]] Wide& wide) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)  // masked, because GCC 12 warns of its own header otherwise
  constexpr bool whole = sizeof(Wide) == 64;
#elif defined(__AVX2__)
  constexpr bool whole = sizeof(Wide) == 32 && To > From;
#else
  constexpr bool whole = false;
#endif
  if constexpr (whole && To > From) {
#if defined(__AVX2__)
    typename Lanes<long long, sizeof(Narrow) == 32 ? 4 : 2>::type in{};
    std::memcpy(&in, &narrow, sizeof(Narrow));
#if defined(__AVX512BW__)
    __m512i out;
    if constexpr (To == 2) out = _mm512_maskz_cvtepu8_epi16(~__mmask32{0}, in);
    else if constexpr (To == 4 && From == 1) out = _mm512_maskz_cvtepu8_epi32(0xffff, in);
    else if constexpr (To == 4) out = _mm512_maskz_cvtepu16_epi32(0xffff, in);
    else if constexpr (From == 1) out = _mm512_maskz_cvtepu8_epi64(0xff, in);
    else return false;
#else
    __m256i out;
    if constexpr (To == 2) out = _mm256_cvtepu8_epi16(in);
    else if constexpr (To == 4 && From == 1) out = _mm256_cvtepu8_epi32(in);
    else if constexpr (To == 4) out = _mm256_cvtepu16_epi32(in);
    else if constexpr (From == 1) out = _mm256_cvtepu8_epi64(in);
    else return false;
#endif
    wide = (Wide)out;
    return true;
#endif
  } else if constexpr (whole) {
#if defined(__AVX512BW__)
    typename Lanes<long long, sizeof(Narrow) == 32 ? 4 : 2>::type out;
    if constexpr (From == 2) out = _mm512_maskz_cvtepi16_epi8(~__mmask32{0}, (__m512i)wide);
    else if constexpr (From == 4 && To == 1) out = _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)wide);
    else if constexpr (From == 4) out = _mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)wide);
    else if constexpr (To == 1) out = _mm512_maskz_cvtepi64_epi8(0xff, (__m512i)wide);
    else return false;
    std::memcpy(&narrow, &out, sizeof(Narrow));
    return true;
#endif
  }
  return false;
}

// The same of any number of lanes. One doubling at a time: GCC 12 knows an instruction for each of these steps and
// takes wider ones apart lane by lane.
template <class To, int N, class From>
inline typename Lanes<To, N>::type resize(typename Lanes<From, N>::type v) {
  typename Lanes<To, N>::type resized;
  if constexpr (sizeof(To) > sizeof(From)) {
    if (resize_at_once<sizeof(To), sizeof(From)>(v, resized)) return resized;
  } else if constexpr (sizeof(To) < sizeof(From)) {
    if (resize_at_once<sizeof(To), sizeof(From)>(resized, v)) return resized;
  }
  if constexpr (sizeof(To) == sizeof(From)) {
    return (typename Lanes<To, N>::type)v;
  } else if constexpr (sizeof(To) > sizeof(From)) {
    using Unsigned = std::make_unsigned_t<From>;
    using Next = std::make_unsigned_t<typename IntOf<2 * sizeof(From)>::type>;
    const auto wide =
        __builtin_convertvector((typename Lanes<Unsigned, N>::type)v, typename Lanes<Next, N>::type);
    return resize<To, N, Next>(wide);
  } else {
    using Next = std::make_unsigned_t<typename IntOf<sizeof(From) / 2>::type>;
    return resize<To, N, Next>(__builtin_convertvector(v, typename Lanes<Next, N>::type));
  }
}

// kLanes<E> window offsets of type O, as Code<E>.
template <class E, class O>
inline Vec<Code<E>> load_codes(const O* p) {
  constexpr int L = kLanes<E>;
  return resize<Code<E>, L, O>(*reinterpret_cast<const typename Lanes<O, L>::unaligned*>(p));
}
template <class E, class O>
inline void store_codes(O* p, Vec<Code<E>> v) {
  constexpr int L = kLanes<E>;
  *reinterpret_cast<typename Lanes<O, L>::unaligned*>(p) = resize<O, L, Code<E>>(v);
}

// kLanes<Compute<T>> values of T, widened; and back.
template <class T>
inline Vec<Compute<T>> load_wide(const T* p) {
  using A = Compute<T>;
  constexpr int L = kLanes<A>;
  if constexpr (sizeof(T) == sizeof(A)) {
    return load(reinterpret_cast<const A*>(p));
  } else if constexpr (sizeof(T) == 2 && std::is_same_v<T, bf16>) {
    const auto bits = *reinterpret_cast<const typename Lanes<uint16_t, L>::unaligned*>(p);
    return (Vec<A>)(resize<uint32_t, L, uint16_t>(bits) << 16);
  } else {
#if defined(__AVX512F__)  // masked, because GCC 12 warns of its own header otherwise
    return (Vec<A>)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
    return (Vec<A>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
    Vec<A> v{};
    for (int l = 0; l < L; ++l) v[l] = widen(p[l]);
    return v;
#endif
  }
}
template <class T>
inline void store_narrow(T* p, Vec<Compute<T>> v) {
  using A = Compute<T>;
  constexpr int L = kLanes<A>;
  if constexpr (sizeof(T) == sizeof(A)) {
    store(reinterpret_cast<A*>(p), v);
  } else if constexpr (std::is_same_v<T, bf16>) {
    const auto bits = (Vec<uint32_t>)v;
    const Vec<uint32_t> rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Vec<uint32_t> nan = Vec<uint32_t>{} + 0x7fc0;
    *reinterpret_cast<typename Lanes<uint16_t, L>::unaligned*>(p) =
        resize<uint16_t, L, uint32_t>(v != v ? nan : rounded);
  } else {
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int l = 0; l < L; ++l) p[l] = narrow<T>(v[l]);
#endif
  }
}

// The first of two vectors' even (Odd = 0) or odd lanes, and the inverse: lanes of a and b in turn.
template <class V, int Odd, size_t... I>
inline V every_second(V a, V b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, (2 * I + Odd)...);
}
template <class E>
inline Vec<E> evens(Vec<E> a, Vec<E> b) {
  return every_second<Vec<E>, 0>(a, b, std::make_index_sequence<kLanes<E>>{});
}
template <class E>
inline Vec<E> odds(Vec<E> a, Vec<E> b) {
  return every_second<Vec<E>, 1>(a, b, std::make_index_sequence<kLanes<E>>{});
}
template <class V, int From, size_t... I>
inline V in_turn(V a, V b, std::index_sequence<I...>) {
  constexpr int L = sizeof...(I);
  return __builtin_shufflevector(a, b, ((I & 1 ? L : 0) + (From * L + I) / 2)...);
}
template <class E, int Half>  // the lower or the upper half of the result
inline Vec<E> interleave(Vec<E> a, Vec<E> b) {
  return in_turn<Vec<E>, Half>(a, b, std::make_index_sequence<kLanes<E>>{});
}

// Tensors are dense enough for a whole vector to be read or written past a row's end, into the next row, except at the
// very end: `end` is one past the last element that may be touched. What is written past a row's end must be written
// again later.
template <class T, int L, class Whole>
inline auto load_until(const T* p, const T* end, Whole&& whole) {
  if (p + L <= end) return whole(p);
  T some[L] = {};
  for (int l = 0; l < L && p + l < end; ++l) some[l] = p[l];
  return whole(static_cast<const T*>(some));
}
template <class T, int L, class Whole>
inline void store_until(T* p, const T* end, Whole&& whole) {
  if (p + L <= end) return whole(p);
  T some[L];
  whole(static_cast<T*>(some));
  for (int l = 0; l < L && p + l < end; ++l) p[l] = some[l];
}

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
