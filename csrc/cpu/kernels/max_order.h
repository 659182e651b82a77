// What "greater" means in max-pooling, as torch has it: the first of equal elements wins, any NaN wins over any number,
// and the last NaN over earlier ones. (Maximum instructions drop NaN on one side, so this is compare and select.)
#pragma once

#include <limits>

#include "pool_lanes.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// E: what is loaded, stored and passed through rows. take() replaces the best so far, and its code, where v wins.
template <class T>
struct Order {
  using E = T;
  static constexpr bool is_float = std::is_same_v<T, float> || std::is_same_v<T, double>;
  struct Best {
    Vec<E> value;
    Vec<Code<E>> code;
  };
  static constexpr E lowest() {
    if constexpr (is_float) {
      return -std::numeric_limits<T>::infinity();
    } else {
      return std::numeric_limits<T>::min();
    }
  }
  static bool wins(E v, E best) {
    if constexpr (is_float) {
      return v > best || v != v;
    } else {
      return v > best;
    }
  }
  static Best start(Vec<Code<E>> code) { return {Vec<E>{} + lowest(), code}; }
  static void take(Best& best, Vec<E> v, Vec<Code<E>> code) {
    const Vec<Code<E>> win = is_float ? (v > best.value) | (v != v) : (v > best.value);
    best.value = win ? v : best.value;
    best.code = win ? code : best.code;
  }
  static Vec<E> result(const Best& best) { return best.value; }

  // Without codes.
  static Vec<E> enter(Vec<E> v) { return v; }
  static Vec<E> leave(Vec<E> v) { return v; }
  static constexpr E lowest_key() { return lowest(); }
  template <class V>  // vectors or values
  static V max(V best, V v) {
    if constexpr (is_float) {
      return ((v > best) | (v != v)) ? v : best;
    } else {
      return v > best ? v : best;
    }
  }
};

// 16-bit floating point, compared by its bits as integers: most ISAs cannot compare it otherwise, and it needs half the
// vectors that widening to fp32 would.
template <int16_t Infinity>
struct Order16 {
  using E = int16_t;
  using V = Vec<int16_t>;
  static constexpr E kNaN = INT16_MAX;  // as a key, above infinity; as bits, a quiet NaN
  struct Best {
    V value, code, key;
  };
  static constexpr E lowest() { return static_cast<E>(Infinity | INT16_MIN); }
  static bool wins(E v, E best) {
    const int magnitude = v & kNaN, best_magnitude = best & kNaN;
    if (magnitude > Infinity) return true;
    if (best_magnitude > Infinity) return false;
    return (v < 0 ? -magnitude : magnitude) > (best < 0 ? -best_magnitude : best_magnitude);
  }
  // Keys here are two's complement, so that -0 equals +0 and the first of them keeps its place.
  static Best start(V code) { return {V{} + lowest(), code, V{} - Infinity}; }
  static void take(Best& best, V v, V code) {
    const V sign = v >> 15, magnitude = v & kNaN;
    const V nan = magnitude > Infinity;
    const V key = nan ? V{} + kNaN : (magnitude ^ sign) - sign;
    const V win = (key > best.key) | nan;
    best.value = win ? v : best.value;
    best.key = win ? key : best.key;
    best.code = win ? code : best.code;
  }
  static V result(const Best& best) { return best.value; }

  // Keys here are one's complement, which leads back to the bits; of -0 and +0 the latter is the maximum.
  static V enter(V v) {
    const V key = v ^ ((v >> 15) & kNaN);
    return (v & kNaN) > Infinity ? V{} + kNaN : key;
  }
  static V leave(V key) { return key ^ ((key >> 15) & kNaN); }
  static constexpr E lowest_key() { return static_cast<E>(lowest() ^ kNaN); }
  template <class Keys>  // vectors or values
  static Keys max(Keys best, Keys key) {
    return key > best ? key : best;
  }
};
template <>
struct Order<f16> : Order16<0x7c00> {};
template <>
struct Order<bf16> : Order16<0x7f80> {};

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
