// A vector of 64-bit lanes, each with two chained states: add the word, fold the high half onto the low one (a product only
// carries differences upwards), multiply by an odd constant. Both steps are bijective, so a changed word changes its
// lane's states for good. A chain takes 20 cycles per vector: four of them side by side hide that. What is left is
// memory, from which hardware prefetches no further than the end of a page: with asking 4 KiB ahead an Intel
// Xeon hashes 12 GB/s of cold weights, against 5 without both, and an AMD EPYC with AVX2 9.
#include "../content_hash.h"
#include "lines.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

constexpr int kWords = kVectorBytes / 8, kChains = 4;
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
  constexpr int64_t kVector = kWords * 8, kStep = kChains * kVector, kAhead = 4096;
  const char* p = static_cast<const char*>(data);
  State chains[kChains];
  for (int c = 0; c < kChains; ++c)
    for (int l = 0; l < kWords; ++l) {
      chains[c].a[l] = kFirst * (c * kWords + l + 1);
      chains[c].b[l] = kSecond * (c * kWords + l + 1);
    }
  int64_t at = 0;
  for (; at + kStep <= bytes; at += kStep)
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) {
      if (c * kVector % kLineBytes == 0) prefetch_read(p + at + kAhead + c * kVector);
      chains[c].add(*reinterpret_cast<const UnalignedWords*>(p + at + c * kVector));
    }
  for (int c = 0; at < bytes; at += kVector, ++c) {
    uint64_t rest[kWords] = {};
    std::memcpy(rest, p + at, static_cast<size_t>(bytes - at < kVector ? bytes - at : kVector));
    Words tail;
    std::memcpy(&tail, rest, sizeof tail);
    chains[c].add(tail);
  }
  Hash128 h{static_cast<uint64_t>(bytes), ~static_cast<uint64_t>(bytes)};
  for (const State& chain : chains)
    for (int l = 0; l < kWords; ++l) {
      h.low = finish(finish(h.low, chain.a[l]), chain.b[l] >> 7);
      h.high = finish(finish(h.high, chain.b[l]), chain.a[l] >> 9);
    }
  return h;
}

}  // namespace fastconv::cpu::FASTCONV_ISA
