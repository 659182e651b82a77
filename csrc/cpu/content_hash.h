// A 128-bit hash of memory, to recognise a filter whose transformed form is still at hand. Not cryptographic: it guards
// against change, not against an adversary. Every single-word change alters it; unrelated contents collide with
// probability 2^-128 per pair as far as a mixing function of this kind can promise.
#pragma once

#include <cstdint>

#include "isa.h"

namespace fastconv::cpu {

struct Hash128 {
  uint64_t low = 0, high = 0;
  bool operator==(const Hash128& other) const { return low == other.low && high == other.high; }
};

// The same value whatever the ISA in use.
Hash128 content_hash(const void* data, int64_t bytes);

FASTCONV_KERNEL(Hash128, hash_block, const void* data, int64_t bytes)

}  // namespace fastconv::cpu
