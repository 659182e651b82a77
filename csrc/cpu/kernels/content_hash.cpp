// Eight 64-bit lanes, each with two chained states: add the word, fold the high half onto the low one (a product only
// carries differences upwards), multiply by an odd constant. Both steps are bijective, so a changed word changes its
// lane's states for good. Reads 64 bytes for 2 multiplications per lane: bound by memory beyond the caches.
#include "../content_hash.h"
#include "numeric.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

constexpr int kWords = 8;
typedef uint64_t Words __attribute__((vector_size(kWords * 8)));
typedef uint64_t UnalignedWords __attribute__((vector_size(kWords * 8), aligned(1), may_alias));

constexpr uint64_t kFirst = 0x9e3779b97f4a7c15u;   // 2^64 / golden ratio
constexpr uint64_t kSecond = 0xc2b2ae3d27d4eb4fu;  // odd, with about half its bits set

struct State {
  Words a, b;
  void add(Words x) {
    a += x;
    a ^= a >> 32;
    a *= kFirst;
    b ^= x;
    b ^= b >> 29;
    b = (b + a) * kSecond;
  }
};

inline uint64_t finish(uint64_t h, uint64_t word) {
  h = (h ^ word) * kFirst;
  return h ^ (h >> 31);
}

}  // namespace

Hash128 hash_block(const void* data, int64_t bytes) {
  const char* p = static_cast<const char*>(data);
  State state;
  for (int l = 0; l < kWords; ++l) {
    state.a[l] = kFirst * (l + 1);
    state.b[l] = kSecond * (l + 1);
  }
  int64_t at = 0;
  for (; at + kWords * 8 <= bytes; at += kWords * 8) state.add(*reinterpret_cast<const UnalignedWords*>(p + at));
  if (at < bytes) {
    uint64_t rest[kWords] = {};
    std::memcpy(rest, p + at, static_cast<size_t>(bytes - at));
    Words tail;
    std::memcpy(&tail, rest, sizeof tail);
    state.add(tail);
  }
  Hash128 h{static_cast<uint64_t>(bytes), ~static_cast<uint64_t>(bytes)};
  for (int l = 0; l < kWords; ++l) {
    h.low = finish(finish(h.low, state.a[l]), state.b[l] >> 7);
    h.high = finish(finish(h.high, state.b[l]), state.a[l] >> 9);
  }
  return h;
}

}  // namespace fastconv::cpu::FASTCONV_ISA
